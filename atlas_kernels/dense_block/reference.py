"""dense_block in plain PyTorch, on any device: the specification.

`forward` is differentiable by autograd; `backward`, for the operator, is the same chain by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas_kernels.group_norm_film import reference as group_norm_film
from atlas_kernels.group_norm_film.op import Problem

from .op import Block


def forward(x: Tensor, block: Block) -> Tensor:
    """Return the block's output, (N, C + layers * growth, X, Y, Z)."""
    for layer in block.layers():
        groups = x.shape[1] // block.groups_size
        # GroupNorm computes in float32 and rounds; so does each step after it.
        weight, bias = (t.to(x.dtype) for t in (layer.norm_weight, layer.norm_bias))
        # Not torch.nn's, which refuses a group of one number.
        a = torch.group_norm(x, groups, weight, bias, block.eps)
        if layer.gamma is not None and layer.beta is not None:
            gamma, beta = (t.to(x.dtype)[..., None, None, None] for t in (layer.gamma, layer.beta))
            a = a * (1 + gamma) + beta
        d = layer.dilation
        y = F.conv3d(F.silu(a), layer.conv_weight.to(x.dtype), padding=d, dilation=d)
        x = torch.cat([x, y], dim=1)
    return x


def backward(grad: Tensor, out: Tensor, block: Block) -> tuple[Tensor, list[list[Tensor]]]:
    """Return the gradients of x and of each list of tensors, from those of the output."""
    found = []
    for layer in reversed(list(block.layers())):
        k, weight, d = layer.channels, layer.conv_weight.to(out.dtype), [layer.dilation] * 3
        film = (layer.norm_weight, layer.norm_bias, layer.gamma, layer.beta)
        problem = Problem(out[:, :k], k // block.groups_size, *film, "silu", block.eps)
        a, mean, rstd = group_norm_film.forward(problem)
        da, dw, _ = torch.ops.aten.convolution_backward(
            grad[:, k:], a, weight, None, [1] * 3, d, d, False, [0] * 3, 1, [True, True, False]
        )
        dx, *rest = group_norm_film.backward(da, problem, mean, rstd)
        grad = grad[:, :k] + dx
        found.append((dw, *rest))
    lists = [list(grads) for grads in zip(*reversed(found))] if found else [[] for _ in range(5)]
    return grad, lists if block.gammas else [*lists[:3], [], []]
