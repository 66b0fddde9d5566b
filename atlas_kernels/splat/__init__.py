"""splat: peaks in millimetres to volumes. See ``docs/kernels/splat.md`` for the maths."""

# The function and this folder share a name, so the function lives here and the package imports it
# eagerly. Nothing here may import torch: that is what `op` is for, when the function is called.
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_kernels.grid import Grid

if TYPE_CHECKING:
    import torch

__all__ = ["splat"]


def splat(
    peaks_mm: torch.Tensor,
    offsets: torch.Tensor,
    grid: Grid,
    fwhm: float | Sequence[float] | torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    mode: str = "sum",
    truncate: float = 4.0,
    support: str = "ball",
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Draw each study's peaks as Gaussians of height ``weight``, added up or maximised.

    ``out[b, k, v]`` is the sum (or the maximum, with 0 among its members) over the peaks ``p`` of
    study ``b`` of ``weights[p] * exp(-|v - p|^2 / (2 sigma[k]^2))`` where ``v``, the centre of a
    voxel, lies in the support of ``p``; ``sigma = fwhm / (2 sqrt(2 ln 2))``.

    Parameters
    ----------
    peaks_mm : (P, 3) float32 or float64, mm
        World coordinates; they keep their sub-voxel position and may lie outside the grid.
    offsets : (B + 1,) int64
        Study ``b`` owns the peaks ``offsets[b]`` to ``offsets[b + 1] - 1``. Starts at 0, ends at P.
    grid : Grid
        The X x Y x Z voxels to write.
    fwhm : float, sequence, or () or (K,) float32 or float64, mm
        Full width at half maximum; each of the K widths gives a volume of its own.
    weights : (P,) float32 or float64, optional
        Heights of the peaks, of either sign; 1 without.
    mode : {"sum", "max"}
        How peaks of a study combine. A maximum starts from the background 0: it is 0 where no peak
        reaches and where all that reach are negative.
    truncate : float, sigmas
        Reach of a peak; ``math.inf`` for no cut.
    support : {"ball", "box"}
        Whether the reach is a Euclidean distance or holds along each axis.
    dtype : torch.float32 or torch.float64, optional
        Of the result; without, that of ``peaks_mm``.
    out : (B, K, X, Y, Z), optional
        Written to and returned. Saves the cost of fresh memory, which exceeds that of drawing.
    backend : {"auto", "cpu", "reference"}
        Implementation; "auto" takes the fastest that runs (or what ATLAS_KERNELS_BACKEND names).

    Returns
    -------
    (B, K, X, Y, Z) tensor of ``dtype``
        On the device of ``peaks_mm``, contiguous unless ``out`` was given.

    Raises
    ------
    TypeError
        If an argument that must be a tensor or a Grid is not.
    ValueError
        If a shape, dtype, device or option is wrong; on the CPU also if a coordinate, weight or
        width is not finite, a width is not positive, or offsets decrease or do not span the peaks.
    RuntimeError
        If ``out`` is given while a gradient is asked for, or ``backend`` cannot run here.

    Notes
    -----
    Differentiable once in ``peaks_mm``, ``weights`` and ``fwhm``, as if the support were fixed.
    Where peaks tie for a maximum the gradient goes to the one of lowest index. Forward and backward
    give the same bits for any number of threads. B = 0, P = 0 and studies without peaks are legal.
    """
    from . import op

    return op.splat(
        peaks_mm, offsets, grid, fwhm, weights, mode, truncate, support, dtype, out, backend
    )
