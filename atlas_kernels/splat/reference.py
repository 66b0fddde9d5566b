"""splat in plain PyTorch: the specification that every other implementation is tested against.

Loop order: study, width, peak; each peak is evaluated on the whole grid, in float64, so it runs on
any device that has it and is obviously right rather than fast. Autograd goes through `forward`;
`backward` is the same derivative written out, which is what the op uses.
It alone takes oblique affines. Where values are not checked, what is bad about one study (a peak,
weight or width that is not finite, a width that is not positive) makes its volume NaN and no other.
Siblings: csrc/splat/splat_cpu.cpp, numba_kernel.py. Maths: docs/kernels/splat.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Problem

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
LATTICE_REACH = 10.0  # sigmas: beyond, a Gaussian adds nothing to its sum that a float64 can hold

Axes = tuple[Tensor, Tensor, Tensor]  # one coordinate each; they broadcast to a box of voxels


class Peak(NamedTuple):
    """One peak drawn on the grid, for weight 1."""

    offset: Axes  # voxel centre minus peak, mm
    value: Tensor  # (X, Y, Z)
    slope: Tensor  # (X, Y, Z): minus the derivative of value by |offset|^2 / (2 sigma^2)
    pull: Sequence[Tensor]  # what normalising takes off again: sums of slope times offset, x y z,
    stretch: Tensor  # and of slope times |offset|^2, over all voxels of an unbounded grid


def forward(problem: Problem) -> Tensor:
    """Return the float64 volumes, (B, K, X, Y, Z) or (B, K, V)."""
    volumes = [_volume(problem, *item) for item in _volumes(problem)]
    stacked = torch.stack(volumes) if volumes else _zeros(problem)[:0]
    return stacked.reshape(problem.output_shape())


def backward(grad_out: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return the float64 gradients of ``peaks_mm`` (P, 3), ``weights`` (P,) and ``widths``."""
    weights = _weights_or_ones(problem)
    grad_peaks = torch.zeros_like(problem.peaks_mm, dtype=torch.float64)
    grad_weights = torch.zeros_like(weights)
    grad_widths = torch.zeros_like(problem.widths, dtype=torch.float64)
    grads = grad_out.double().reshape(-1, *grad_out.shape[2:])
    for grad, (members, widths) in zip(grads, _volumes(problem), strict=True):
        drawn = [_draw(problem, p, problem.widths[w]) for p, w in zip(members, widths, strict=True)]
        values = [weights[p] * peak.value for p, peak in zip(members, drawn, strict=True)]
        shares = _shares(values, problem.splat_mode)
        for p, w, peak, share in zip(members, widths, drawn, shares, strict=True):
            sigma = problem.widths[w].double() / FWHM_PER_SIGMA
            flow = _unmasked(grad, problem) * share
            total = (flow * peak.value).sum()
            square = sum(d * d for d in peak.offset)
            moments = [(flow * peak.slope * d).sum() for d in peak.offset]
            stretch = (flow * peak.slope * square).sum() - total * peak.stretch
            grad_weights[p] += total
            grad_widths[w] += weights[p] / sigma**3 * stretch / FWHM_PER_SIGMA
            if problem.centre == "peak":
                centred = [m - total * pull for m, pull in zip(moments, peak.pull, strict=True)]
                grad_peaks[p] += weights[p] / sigma**2 * torch.stack(centred)
    return grad_peaks, grad_weights, grad_widths


# ---- which peaks make a volume -------------------------------------------------------------------


def _volumes(problem: Problem) -> Iterator[tuple[range, list[int]]]:
    """For each volume, the numbers of its peaks and where in ``widths`` each finds its own.

    Offsets out of range are clamped.
    """
    n_peaks, bounds = len(problem.peaks_mm), problem.offsets.tolist()
    for b in range(problem.n_studies):
        first = min(max(bounds[b], 0), n_peaks)
        members = range(first, min(max(bounds[b + 1], first), n_peaks))
        for k in range(problem.n_kernels):
            if problem.widths_of == "peaks":
                yield members, list(members)
            else:
                yield members, [b if problem.widths_of == "studies" else k] * len(members)


def _volume(problem: Problem, members: range, widths: list[int]) -> Tensor:
    weights, volume = _weights_or_ones(problem), _zeros(problem)
    for p, w in zip(members, widths, strict=True):
        width = problem.widths[w]
        volume = _combine(problem, volume, weights[p] * _draw(problem, p, width).value)
        numbers = torch.stack([*problem.peaks_mm[p].double(), weights[p], width.double()])
        if not (numbers.isfinite().all() and width > 0):
            return torch.full_like(volume.reshape(-1), math.nan)[_voxels(problem)]
    return volume.reshape(-1)[_voxels(problem)]


def _combine(problem: Problem, volume: Tensor, value: Tensor) -> Tensor:
    """Add one peak to a volume, in the mode's way."""
    if problem.splat_mode == "union":  # 1 - (1 - volume) (1 - value) without cancellation
        return volume + value * (1 - volume)
    if problem.splat_mode == "sum" or problem.counts:
        return volume + value
    # A maximum whose gradient goes to `volume` in a tie (torch.maximum would share it).
    return torch.where(value > volume, value, volume)


def _shares(values: Sequence[Tensor], mode: str) -> Iterator[Tensor]:
    """For each peak of a volume, the derivative of the volume by that peak's values."""
    for i, value in enumerate(values):
        if mode == "sum":
            yield torch.ones_like(value)
        elif mode == "union":
            others = [1 - other for j, other in enumerate(values) if j != i]
            yield reduce(torch.mul, others, torch.ones_like(value))
        else:
            own = value > 0
            for j, other in enumerate(values):
                if j != i:
                    own = own & (value > other if j < i else value >= other)
            yield own.double()


# ---- one peak ------------------------------------------------------------------------------------


def _draw(problem: Problem, p: int, width: Tensor) -> Peak:
    """Evaluate a peak of weight 1 and what its gradient needs."""
    position, width = _position(problem, p), width.double()
    offset = _offset_mm(problem, position, [torch.arange(size) for size in problem.shape])
    value, slope = _kernel(problem, offset, width)
    nothing = torch.zeros_like(width)
    if problem.normalize == "peak":
        return Peak(offset, value, slope, [nothing] * 3, nothing)
    around = _offset_mm(problem, position, _lattice(problem, position, width))
    values, slopes = _kernel(problem, around, width)
    total, square = values.sum(), sum(d * d for d in around)
    total = torch.where(total > 0, total, 1.0)  # no voxel within reach: nothing is drawn
    height = total * (_voxel_mm3(problem) if problem.normalize == "mm3" else 1.0)
    pull = [(slopes * d).sum() / total for d in around]
    return Peak(offset, value / height, slope / height, pull, (slopes * square).sum() / total)


def _kernel(problem: Problem, offset: Axes, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel and its slope, where the support holds the voxel and 0 outside."""
    x2, y2, z2 = (d * d for d in offset)
    square = x2 + y2 + z2
    if problem.splat_mode == "sphere":
        inside = (square <= width**2).double()
        return inside, torch.zeros_like(inside)
    sigma, truncate = width / FWHM_PER_SIGMA, problem.truncate
    reach2 = (truncate * sigma) ** 2
    covered = square <= reach2
    if problem.support == "box":
        covered = (x2 <= reach2) & (y2 <= reach2) & (z2 <= reach2)
    u = 0.5 * square / sigma**2
    value = slope = torch.exp(-u)
    if problem.support == "taper" and truncate < math.inf:
        # Less the tangent, in u, at the cut-off: value and slope end there at 0.
        end = 0.5 * truncate**2
        edge = math.exp(-end)
        height = 1 - edge * (1 + end)
        value, slope = (value - edge * (1 + end - u)) / height, (slope - edge) / height
    return torch.where(covered, value, 0.0), torch.where(covered, slope, 0.0)


# ---- geometry ------------------------------------------------------------------------------------


def _affine(problem: Problem) -> Tensor:
    device = problem.peaks_mm.device
    return torch.tensor(problem.affine, dtype=torch.float64, device=device).reshape(3, 4)


def _position(problem: Problem, p: int) -> Tensor:
    """Where a peak is drawn, mm: at its own place, or at the voxel centre nearest to it."""
    peak = problem.peaks_mm[p].double()
    if problem.centre == "peak":
        return peak
    affine = _affine(problem)
    return affine[:, :3] @ _voxel_coordinates(affine, peak).round() + affine[:, 3]  # half to even


def _voxel_coordinates(affine: Tensor, peak: Tensor) -> Tensor:
    steps, away = affine[:, :3], peak - affine[:, 3]
    if steps.count_nonzero() == 3 and steps.diagonal().count_nonzero() == 3:
        return away / steps.diagonal()
    return torch.linalg.solve(steps, away)


def _offset_mm(problem: Problem, position: Tensor, index: Sequence[Tensor]) -> Axes:
    """Voxel centre minus peak along x, y and z for a box of voxel numbers, mm."""
    places = [
        numbers.to(position.device).double().reshape([-1 if b == a else 1 for b in range(3)])
        for a, numbers in enumerate(index)
    ]
    rows = [problem.affine[4 * a : 4 * a + 4] for a in range(3)]
    x, y, z = (
        row[3] + sum(step * n for step, n in zip(row, places, strict=False) if step) - position[a]
        for a, row in enumerate(rows)
    )
    return x, y, z


def _lattice(problem: Problem, position: Tensor, width: Tensor) -> list[Tensor]:
    """Numbers of all voxels that the kernel can reach on a grid without bounds."""
    affine, position = _affine(problem).cpu(), position.detach().cpu()
    if not (position.isfinite().all() and width.isfinite() and width > 0):
        return [torch.zeros(1)] * 3
    sigma, diagonal = width.item() / FWHM_PER_SIGMA, affine[:, :3].norm().item()
    # A kernel narrower than a voxel must still find the voxel nearest to it.
    reach = min(problem.truncate * sigma, max(LATTICE_REACH * sigma, 2 * diagonal))
    centre = _voxel_coordinates(affine, position).round()
    # How far a ball extends along an axis of the grid; a box, whose corners are further away.
    inverse = torch.linalg.inv(affine[:, :3])
    extent = inverse.abs().sum(dim=1) if problem.support == "box" else inverse.norm(dim=1)
    radius = (reach * extent).floor() + 1
    return [c + torch.arange(-r, r + 1) for c, r in zip(centre, radius, strict=True)]


def _voxel_mm3(problem: Problem) -> float:
    return abs(torch.linalg.det(_affine(problem).cpu()[:, :3]).item())


def _zeros(problem: Problem) -> Tensor:
    shape = tuple(problem.shape)
    return torch.zeros(shape, dtype=torch.float64, device=problem.peaks_mm.device)


def _weights_or_ones(problem: Problem) -> Tensor:
    if problem.weights is None:
        return torch.ones_like(problem.peaks_mm[:, 0], dtype=torch.float64)
    return problem.weights.double()


def _voxels(problem: Problem) -> Tensor | slice:
    return slice(None) if problem.voxels is None else problem.voxels


def _unmasked(grad: Tensor, problem: Problem) -> Tensor:
    """Spread the gradient of some voxels over a whole volume."""
    if problem.voxels is None:
        return grad.reshape(tuple(problem.shape))
    whole = _zeros(problem).reshape(-1)
    whole[problem.voxels] = grad
    return whole.reshape(tuple(problem.shape))
