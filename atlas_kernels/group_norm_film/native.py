"""From tensors to the C++ kernels of group_norm_film, which know addresses only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas_kernels._extension import kernels

from .op import DTYPES, Problem, layout

if TYPE_CHECKING:
    from atlas_kernels._kernels import GroupNormFilm

Parameters = tuple[Tensor | None, ...]


NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


def dtype_name(tensor: Tensor) -> str:
    """Return "bfloat16" for torch.bfloat16."""
    return NAMES[tensor.dtype]


def typed(tensor: Tensor | None) -> tuple[int, str]:
    """Return where a contiguous tensor's numbers are and their dtype; nowhere for None."""
    return (0, "") if tensor is None else (tensor.data_ptr(), NAMES[tensor.dtype])


def dense(parameters: Parameters) -> Parameters:
    """Return weight, bias (C) and gamma, beta (N, C) as the CPU's kernels take them."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in parameters)


def as_doubles(parameters: Parameters) -> Parameters:
    """Return the same as the GPU's kernels take them."""
    return tuple(
        None if tensor is None else tensor.detach().to(torch.float64).contiguous()
        for tensor in parameters
    )


def describe(
    held: Parameters,
    samples: int,
    channels: int,
    voxels: int,
    groups: int,
    *,
    channels_last: bool,
    row: int | None = None,
    activation: str = "silu",
    eps: float = 1e-5,
) -> GroupNormFilm:
    """Describe one call to the kernels, which may keep the addresses of `held`.

    ``row`` numbers lie between two voxels of x in channels last.
    """
    weight, bias, gamma, beta = map(typed, held)
    problem: GroupNormFilm = kernels().GroupNormFilm(
        samples=samples,
        channels=channels,
        voxels=voxels,
        groups=groups,
        channels_last=channels_last,
        x_row=channels if row is None else row,
        weight=weight,
        bias=bias,
        gamma=gamma,
        beta=beta,
        silu=activation == "silu",
        eps=eps,
    )
    return problem


def forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and the groups' mean and rstd; x is dense in one of the two layouts."""
    x, held = problem.x, dense(problem.parameters())
    y = torch.empty_like(x, memory_format=layout(x))
    mean = x.new_empty((x.shape[0], problem.groups), dtype=problem.statistics_dtype())
    rstd = torch.empty_like(mean)
    kernels().group_norm_film_cpu(
        _described(problem, held),
        x.data_ptr(),
        dtype_name(x),
        y.data_ptr(),
        typed(mean),
        typed(rstd),
        torch.get_num_threads(),
    )
    return y, mean, rstd


def backward(grad: Tensor, problem: Problem, mean: Tensor, rstd: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight, bias, gamma and beta; grad has the layout of x."""
    x, held = problem.x, dense(problem.parameters())
    dx = torch.empty_like(x, memory_format=layout(x))
    mean, rstd = mean.contiguous(), rstd.contiguous()
    grads = tuple(mean.new_empty(0) if t is None else torch.empty_like(t) for t in held)
    kernels().group_norm_film_backward_cpu(
        _described(problem, held),
        grad.data_ptr(),
        dtype_name(grad),
        x.data_ptr(),
        dtype_name(x),
        typed(mean),
        typed(rstd),
        dx.data_ptr(),  # also the room for dL/dz
        dx.data_ptr(),
        False,
        *(typed(None if t is None else g) for t, g in zip(held, grads, strict=True)),
        torch.get_num_threads(),
    )
    return (dx, *grads)


def forward_cuda(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same on a GPU, on the current stream."""
    x = problem.x
    with torch.cuda.device(x.device):
        held = as_doubles(problem.parameters())
        described = _described(problem, held)
        y = torch.empty_like(x, memory_format=layout(x))
        mean = x.new_empty((x.shape[0], problem.groups), dtype=torch.float64)
        rstd = torch.empty_like(mean)
        kernels().group_norm_film_cuda(
            described,
            x.data_ptr(),
            dtype_name(x),
            y.data_ptr(),
            mean.data_ptr(),
            rstd.data_ptr(),
            _room(described, mean).data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
        dtype = problem.statistics_dtype()
        return y, mean.to(dtype), rstd.to(dtype)


def backward_cuda(grad: Tensor, problem: Problem, mean: Tensor, rstd: Tensor) -> tuple[Tensor, ...]:
    """Do the same on a GPU, on the current stream."""
    x = problem.x
    with torch.cuda.device(x.device):
        held = as_doubles(problem.parameters())
        described = _described(problem, held)
        dx = torch.empty_like(x, memory_format=layout(x))
        mean, rstd = (t.to(torch.float64).contiguous() for t in (mean, rstd))
        grads = tuple(mean.new_empty(0) if t is None else torch.empty_like(t) for t in held)
        kernels().group_norm_film_backward_cuda(
            described,
            grad.data_ptr(),
            x.data_ptr(),
            dtype_name(x),
            mean.data_ptr(),
            rstd.data_ptr(),
            dx.data_ptr(),
            False,
            *(0 if t is None else g.data_ptr() for t, g in zip(held, grads, strict=True)),
            _room(described, mean).data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
        return (dx, *grads)


def _room(described: GroupNormFilm, like: Tensor) -> Tensor:
    # The allocator reuses it for later work of the same stream alone, so it may be dropped at once.
    return like.new_empty(kernels().group_norm_film_room(described) // 8)


def _described(problem: Problem, held: Parameters) -> GroupNormFilm:
    x = problem.x
    return describe(
        held,
        x.shape[0],
        x.shape[1],
        x.shape[2:].numel(),
        problem.groups,
        channels_last=layout(x) != torch.contiguous_format,
        activation=problem.activation,
        eps=problem.eps,
    )
