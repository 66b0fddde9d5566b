"""group_norm_film in plain PyTorch, on any device: the specification. Slow, and obviously right.

Everything is computed in the dtype of the statistics (float32; float64 for float64) and rounded to
the dtype of ``x`` once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .op import Problem


def forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and mean and 1 / sqrt(variance + eps) of each group, (N, G)."""
    x_NGK = _grouped(problem)
    mean_NG = x_NGK.mean(2)
    variance_NG = (x_NGK - mean_NG[:, :, None]).square().mean(2)
    rstd_NG = (variance_NG + problem.eps).rsqrt()
    z = _modulated(problem, mean_NG, rstd_NG)[0]
    y = z * z.sigmoid() if problem.activation == "silu" else z
    return y.to(problem.x.dtype), mean_NG, rstd_NG


def backward(
    grad: Tensor, problem: Problem, mean_NG: Tensor, rstd_NG: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias, gamma and beta by the documented formulas."""
    z, normed, gain = _modulated(problem, mean_NG, rstd_NG)
    dz = grad.to(z.dtype)
    if problem.activation == "silu":
        s = z.sigmoid()
        dz = dz * (s + s * z * (1 - s))
    voxels = tuple(range(2, z.ndim))
    one_NC, two_NC = dz.sum(voxels), (dz * normed).sum(voxels)
    weight, bias, film_NC = _parameters(problem, z.dtype)
    back = _grouped(problem, gain * dz)
    normed_NGK = _grouped(problem, normed)
    dx = rstd_NG[:, :, None] * (
        back - back.mean(2, keepdim=True) - normed_NGK * (back * normed_NGK).mean(2, keepdim=True)
    )
    return (
        dx.reshape(z.shape).to(problem.x.dtype),
        (film_NC * two_NC).sum(0),
        (film_NC * one_NC).sum(0),
        weight * two_NC + bias * one_NC,
        one_NC,
    )


def _grouped(problem: Problem, x: Tensor | None = None) -> Tensor:
    """Return x as (N, G, numbers of a group), in the dtype of the statistics."""
    x = problem.x if x is None else x
    shape = (x.shape[0], problem.groups, x[:1, : x.shape[1] // problem.groups].numel())
    if not x.shape[0]:
        shape = (0, problem.groups, x.shape[1] // problem.groups * x.shape[2:].numel())
    return x.to(problem.statistics_dtype()).reshape(shape)


def _parameters(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight and bias (C), and 1 + gamma (N, C), with what is absent filled in."""
    n, c = problem.x.shape[:2]
    ones = torch.ones((n, c), dtype=dtype, device=problem.x.device)
    weight = ones.new_ones(c) if problem.weight is None else problem.weight.to(dtype)
    bias = ones.new_zeros(c) if problem.bias is None else problem.bias.to(dtype)
    return weight, bias, ones if problem.gamma is None else 1 + problem.gamma.to(dtype)


def _modulated(problem: Problem, mean_NG: Tensor, rstd_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, what the activation is given; the normalised x; and what that is multiplied by."""
    x_NGK = _grouped(problem)
    normed = ((x_NGK - mean_NG[:, :, None]) * rstd_NG[:, :, None]).reshape(problem.x.shape)
    weight, bias, film_NC = _parameters(problem, normed.dtype)
    beta_NC = 0 if problem.beta is None else problem.beta.to(normed.dtype)
    gain, shift = weight * film_NC, bias * film_NC + beta_NC
    spread = (..., *[None] * (normed.ndim - 2))
    return normed * gain[spread] + shift[spread], normed, gain[spread]
