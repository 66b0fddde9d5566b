"""splat in plain PyTorch: the specification that every other implementation is tested against.

Loop order: study, width, peak; each peak is evaluated on the whole grid, in float64, so it runs on
any device that has it and is obviously right rather than fast. Autograd goes through `forward`;
`backward` is the same derivative written out, which is what the op uses.
Siblings: csrc/splat/splat_cpu.cpp. Maths: docs/kernels/splat.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


def forward(
    peaks_mm: Tensor,
    offsets: Tensor,
    fwhm: Tensor,
    weights: Tensor | None,
    shape: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    mode: str,
    support: str,
    truncate: float,
) -> Tensor:
    """Return the (B, K, X, Y, Z) float64 volumes; arguments as for ``atlas_kernels.splat``."""
    peaks, weights = peaks_mm.double(), _weights_or_ones(peaks_mm, weights)
    volumes = []
    for first, last in pairwise(offsets.tolist()):
        for sigma in fwhm.double() / FWHM_PER_SIGMA:
            volume = peaks.new_zeros(tuple(shape))
            for p in range(first, last):
                offset = _offset_mm(peaks[p], shape, spacing, origin)
                value = weights[p] * _gaussian(offset, sigma, support, truncate)
                volume = volume + value if mode == "sum" else _greater(value, volume)
            volumes.append(volume)
    stacked = torch.stack(volumes) if volumes else peaks.new_zeros((0, *shape))
    return stacked.reshape(len(offsets) - 1, len(fwhm), *shape)


def backward(
    grad_out: Tensor,
    peaks_mm: Tensor,
    offsets: Tensor,
    fwhm: Tensor,
    weights: Tensor | None,
    shape: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    mode: str,
    support: str,
    truncate: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the float64 gradients of ``peaks_mm`` (P, 3), ``weights`` (P,) and ``fwhm`` (K,)."""
    peaks, weights = peaks_mm.double(), _weights_or_ones(peaks_mm, weights)
    grad_peaks, grad_weights = torch.zeros_like(peaks), torch.zeros_like(weights)
    grad_fwhm = torch.zeros_like(fwhm, dtype=torch.float64)
    for b, (first, last) in enumerate(pairwise(offsets.tolist())):
        for k, sigma in enumerate(fwhm.double() / FWHM_PER_SIGMA):
            offsets_mm = [_offset_mm(peaks[p], shape, spacing, origin) for p in range(first, last)]
            kernels = [_gaussian(offset, sigma, support, truncate) for offset in offsets_mm]
            owned = _owned(kernels, weights[first:last], mode)
            for p, offset, kernel, own in zip(
                range(first, last), offsets_mm, kernels, owned, strict=True
            ):
                pull = torch.where(own, grad_out[b, k].double() * kernel, 0.0)
                dx, dy, dz = offset
                grad_weights[p] += pull.sum()
                grad_peaks[p] += (
                    weights[p] / sigma**2 * torch.stack([(pull * d).sum() for d in offset])
                )
                squared = (pull * (dx * dx + dy * dy + dz * dz)).sum()
                grad_fwhm[k] += weights[p] / sigma**3 * squared / FWHM_PER_SIGMA
    return grad_peaks, grad_weights, grad_fwhm


def _weights_or_ones(peaks_mm: Tensor, weights: Tensor | None) -> Tensor:
    return torch.ones_like(peaks_mm[:, 0]).double() if weights is None else weights.double()


def _offset_mm(
    peak: Tensor, shape: Sequence[int], spacing: Sequence[float], origin: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Voxel centre minus peak along each axis, mm: (X, 1, 1), (1, Y, 1) and (1, 1, Z)."""
    x, y, z = (
        start + step * torch.arange(size, dtype=torch.float64, device=peak.device) - peak[axis]
        for axis, (size, step, start) in enumerate(zip(shape, spacing, origin, strict=True))
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


def _gaussian(
    offset: tuple[Tensor, Tensor, Tensor], sigma: Tensor, support: str, truncate: float
) -> Tensor:
    """exp(-|offset|^2 / (2 sigma^2)) inside the support, 0 outside: (X, Y, Z)."""
    x2, y2, z2 = (d * d for d in offset)
    radius2 = (truncate * sigma) ** 2
    if support == "ball":
        covered = x2 + y2 + z2 <= radius2
    else:
        covered = (x2 <= radius2) & (y2 <= radius2) & (z2 <= radius2)
    return torch.where(covered, torch.exp(-0.5 * (x2 + y2 + z2) / sigma**2), 0.0)


def _greater(value: Tensor, best: Tensor) -> Tensor:
    """Maximum whose gradient goes to ``best`` in a tie (torch.maximum would share it)."""
    return torch.where(value > best, value, best)


def _owned(kernels: Sequence[Tensor], weights: Tensor, mode: str) -> Iterator[Tensor]:
    """For each peak of a study, the voxels whose value depends on it: all, or those it wins."""
    if mode == "sum":
        yield from (torch.ones_like(kernel, dtype=torch.bool) for kernel in kernels)
        return
    values = [weight * kernel for weight, kernel in zip(weights, kernels, strict=True)]
    for i, value in enumerate(values):
        own = value > 0
        for earlier in values[:i]:
            own = own & (value > earlier)
        for later in values[i + 1 :]:
            own = own & (value >= later)
        yield own
