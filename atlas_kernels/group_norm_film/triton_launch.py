"""From tensors to the Triton kernels of group_norm_film; also in parts, for dense_block.

Sizes of tiles and numbers of programs follow from the shape, so the bits of a result do too: the
same on every GPU, and nothing is tuned while running. No call waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from atlas_kernels._dispatch import INTERPRETED

from . import triton_kernel as kernels
from .op import Problem, layout

WARPS = 8
PART_TILE, TILE = 4096, 2048  # numbers: two vectors of 16 bytes a thread, where a tile is summed
PROGRAMS = 2048  # aimed at: several for each multiprocessor of the largest GPUs, and full waves
PARTS = 512  # of a channel, at most: as many as one program puts together quickly
MERGED = 1024  # numbers that it takes at a time

Parameters = Sequence[Tensor | None]  # weight, bias (C) and gamma, beta (N, C)


class Walk(NamedTuple):
    """How programs share a view (N, V, C) out: tiles of voxels by blocks of channels."""

    last: bool  # channels lie side by side, not voxels
    samples: int
    voxels: int
    channels: int
    row: int  # numbers between two voxels, where channels lie side by side
    size: int  # voxels of a tile
    block: int  # channels of a block

    @property
    def eight(self) -> bool:
        """Whether a vector of eight numbers never reaches past the channels."""
        return self.last and self.channels % 8 == 0 and self.row % 8 == 0

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return triton.cdiv(self.channels, self.block)

    @property
    def tiles(self) -> int:
        """Tiles of a channel's voxels, which may begin up to 15 numbers before its first."""
        spare = 0 if self.last or self.voxels % 16 == 0 else 15
        return max(1, triton.cdiv(self.voxels + spare, self.size))

    def parts(self) -> tuple[int, int]:
        """Return parts of a channel's voxels, and tiles in one."""
        programs = max(1, self.samples * self.blocks)
        parts = min(max(1, PROGRAMS // programs), PARTS)
        tiles = triton.cdiv(self.tiles, parts)
        return triton.cdiv(self.tiles, tiles), tiles


def _walk(x: Tensor, numbers: int) -> Walk:
    samples, voxels, channels = x.shape
    if x.stride(1) == 1:
        return Walk(False, samples, voxels, channels, channels, numbers, 1)
    divides = channels & -channels
    block = min(64, divides if divides >= 16 else triton.next_power_of_2(channels))
    return Walk(True, samples, voxels, channels, x.stride(1), numbers // block, block)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    return nullcontext() if INTERPRETED else torch.cuda.device(x.device)


def _rows(film: Tensor | None) -> tuple[Tensor | None, int]:
    """Return gamma or beta, and how far its samples are apart: often it is half of a wider one."""
    if film is None:
        return None, 0
    film = film if film.stride(1) == 1 else film.contiguous()
    return film, film.stride(0)


def _parameters(parameters: Parameters) -> tuple[Any, ...]:
    weight, bias = (None if p is None else p.contiguous() for p in parameters[:2])
    (gamma, gamma_row), (beta, beta_row) = map(_rows, parameters[2:])
    return weight, bias, gamma, beta, gamma_row, beta_row


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, squared deviations and voxels of the parts of every channel, (N, parts, C)."""
    walk = _walk(x, PART_TILE)
    parts, tiles = walk.parts()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    found = x.new_empty((3, walk.samples, parts, walk.channels), dtype=dtype)
    means, squares, counts = found.unbind()
    kernels.part_kernel[(walk.samples * parts * walk.blocks,)](
        x, means, squares, counts, walk.voxels, walk.channels, walk.row, parts, walk.blocks, tiles,
        walk.last, walk.eight, walk.size, walk.block, num_warps=WARPS,
    )  # fmt: skip
    return means, squares, counts


def _merge(
    means: Tensor,
    squares: Tensor,
    counts: Tensor | None,
    voxels: int,
    groups: int,
    eps: float | None,
) -> tuple[Tensor, Tensor]:
    """Join parts, (N, parts, C) with rows of any length, to groups of channels, (N, groups)."""
    samples, parts, channels = means.shape
    mean = means.new_empty((samples, groups))
    second = torch.empty_like(mean)
    kernels.merge_kernel[(samples * groups,)](
        means, squares, counts, mean, second, voxels, channels, means.stride(0) // parts, groups,
        parts, eps, MERGED,
    )  # fmt: skip
    return mean, second


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and sum of squared deviations, (N, C); x is a view (N, V, C)."""
    with _on(x):
        return _merge(*_parts(x), x.shape[1], x.shape[2], None)


def group_statistics(
    mean: Tensor, m2: Tensor, voxels: int, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Return mean and rstd of the groups, (N, G), from the channels', (N, C)."""
    with _on(mean):
        return _merge(mean[:, None], m2[:, None], None, voxels, groups, eps)


def statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and rstd of the groups, (N, G), of a view (N, V, C)."""
    with _on(x):
        return _merge(*_parts(x), x.shape[1], groups, eps)


def apply(
    x: Tensor, parameters: Parameters, mean: Tensor, rstd: Tensor, out: Tensor, activation: str
) -> None:
    """Write y into ``out``, dense in the layout of the view x, of any floating dtype.

    Parameters
    ----------
    x : (N, V, C)
    parameters : weight, bias (C) and gamma, beta (N, C), each may be None
    mean, rstd : (N, G), float32; float64 for float64
    out : (N, V, C)
    activation : {"silu", "none"}
    """
    walk = _walk(x, TILE)
    *given, gamma_row, beta_row = _parameters(parameters)
    with _on(x):
        kernels.apply_kernel[(walk.samples * walk.tiles * walk.blocks,)](
            x, out, mean, rstd, *given, gamma_row, beta_row,
            walk.voxels, walk.channels, walk.row, mean.shape[1], walk.tiles, walk.blocks,
            activation == "silu", walk.last, walk.eight, walk.size, walk.block, num_warps=WARPS,
        )  # fmt: skip


def backward(
    dy: Tensor,
    x: Tensor,
    parameters: Parameters,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor,
    activation: str,
    accumulate: bool = False,
) -> tuple[Tensor | None, ...]:
    """Write the gradient of x into ``dx``, or add it, and return those of the parameters.

    Parameters
    ----------
    dy : (N, V, C)
        Dense in the layout of x, of any floating dtype; stays as it is.
    x, parameters, mean, rstd, activation
        As for `apply`.
    dx : (N, V, C)
        With the strides of x.
    accumulate : bool
        Whether to add to what ``dx`` holds.

    Returns
    -------
    tuple of tensor or None
        Gradients of weight, bias (C), gamma and beta (N, C), in the dtype of the statistics; None
        for what is absent.
    """
    walk, groups, silu = _walk(x, TILE), mean.shape[1], activation == "silu"
    parts, tiles = walk.parts()
    *given, gamma_row, beta_row = _parameters(parameters)
    weight, bias, gamma, _ = given
    ones, twos = mean.new_empty((2, walk.samples, parts, walk.channels)).unbind()
    d_beta, normed, d_gamma = mean.new_empty((3, walk.samples, walk.channels)).unbind()
    offset, slope = mean.new_empty((2, *mean.shape)).unbind()
    with _on(x):
        kernels.sums_kernel[(walk.samples * parts * walk.blocks,)](
            dy, x, ones, twos, mean, rstd, *given, gamma_row, beta_row,
            walk.voxels, walk.channels, walk.row, groups, parts, walk.blocks, tiles,
            silu, walk.last, walk.eight, walk.size, walk.block, num_warps=WARPS,
        )  # fmt: skip
        kernels.finish_kernel[(walk.samples * groups,)](
            ones, twos, d_beta, normed, None if gamma is None else d_gamma, offset, slope,
            mean, rstd, weight, bias, gamma, gamma_row, walk.voxels, walk.channels, groups, parts,
            32, 32,
        )  # fmt: skip
        kernels.gradient_kernel[(walk.samples * walk.tiles * walk.blocks,)](
            dy, x, dx, offset, slope, mean, rstd, *given, gamma_row, beta_row,
            walk.voxels, walk.channels, walk.row, groups, walk.tiles, walk.blocks,
            accumulate, silu, walk.last, walk.eight, walk.size, walk.block, num_warps=WARPS,
        )  # fmt: skip
        d_weight, d_bias = mean.new_empty((2, walk.channels)).unbind()
        if weight is not None or bias is not None:
            kernels.parameters_kernel[(triton.cdiv(walk.channels, 32),)](
                d_beta, normed, d_weight, d_bias, gamma, gamma_row, walk.samples, walk.channels, 32
            )
    grads = (d_weight, d_bias, d_gamma, d_beta)
    return tuple(None if p is None else grad for p, grad in zip(given, grads, strict=True))


# ---- the op --------------------------------------------------------------------------------------


def _view(x: Tensor) -> Tensor:
    """Show (N, C, ...) in either layout as (N, V, C)."""
    if layout(x) == torch.contiguous_format:
        return x.flatten(2).transpose(1, 2)
    return x.movedim(1, -1).flatten(1, -2)


def forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and the groups' mean and rstd; x is dense in one of the two layouts."""
    x, y = problem.x, torch.empty_like(problem.x, memory_format=layout(problem.x))
    mean, rstd = statistics(_view(x), problem.groups, problem.eps)
    apply(_view(x), problem.parameters(), mean, rstd, _view(y), problem.activation)
    return y, mean, rstd


def op_backward(grad: Tensor, problem: Problem, mean: Tensor, rstd: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight, bias, gamma and beta; grad has the layout of x."""
    x, dx = problem.x, torch.empty_like(problem.x, memory_format=layout(problem.x))
    views = _view(grad), _view(x), problem.parameters(), mean, rstd, _view(dx)
    grads = backward(*views, problem.activation)
    return (dx, *(mean.new_empty(0) if value is None else value for value in grads))
