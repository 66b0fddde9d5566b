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
    fwhm: float | Sequence[float] | torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    *,
    mode: str = "sum",
    peak_fwhm: torch.Tensor | None = None,
    study_fwhm: torch.Tensor | None = None,
    truncate: float = 4.0,
    support: str = "ball",
    normalize: str = "peak",
    centre: str = "peak",
    radius: float | Sequence[float] | torch.Tensor | None = None,
    count: bool = False,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    backend: str = "auto",
    check: bool = False,
) -> torch.Tensor:
    """Draw each study's peaks as Gaussians or spheres and combine them into volumes.

    The values of the peaks ``p`` of study ``b`` are ``weights[p] * exp(-|v - p|^2 / (2 sigma^2))``
    where ``v``, the centre of a voxel, lies in the support of ``p``, and 0 elsewhere;
    ``sigma = fwhm / (2 sqrt(2 ln 2))``. ``out[b, k, v]`` combines them as ``mode`` says.

    Parameters
    ----------
    peaks_mm : (P, 3) float32 or float64, mm
        World coordinates; they may lie outside the grid.
    offsets : (B + 1,) int64
        Study ``b`` owns the peaks ``offsets[b]`` to ``offsets[b + 1] - 1``. Starts at 0, ends at P.
    grid : Grid
        The X x Y x Z voxels to write. An oblique one runs on the reference only.
    fwhm : float, sequence, or () or (K,) float32 or float64, mm
        Full width at half maximum; each of the K widths gives a volume of its own.
    weights : (P,) float32 or float64, optional
        Heights of the peaks, of either sign; 1 without.
    mode : {"sum", "max", "union", "sphere"}
        "sum" adds: a density. "max" takes the greatest, or the background 0: NiMARE's modelled
        activation map [1]_. "union" is ``1 - prod(1 - value)``, the probability that any of
        independent peaks is there. "sphere" is 1 within ``radius`` of any peak: MKDA [2]_.
    peak_fwhm : (P,) float32 or float64, mm, optional
        A width for each peak, instead of ``fwhm``; K is 1.
    study_fwhm : (B,) float32 or float64, mm, optional
        A width for each study, instead of ``fwhm``; K is 1.
    truncate : float, sigmas
        Reach of a Gaussian; ``math.inf`` for no cut.
    support : {"ball", "box", "taper"}
        Whether the reach is a Euclidean distance or holds along each axis. "taper" is a ball whose
        values and slopes fall to 0 at its edge, so that the gradient has no jump to leave out.
    normalize : {"peak", "sum", "mm3"}
        What is 1 for a peak of weight 1: its value at the peak; the sum of its values over the
        voxels of a grid without bounds; the same times the voxel's volume in mm3.
    centre : {"peak", "voxel"}
        Draw at the peak, or at the voxel centre nearest to it (half to even, as NiMARE rounds).
    radius : float, sequence, or () or (K,) float32 or float64, mm
        Of the spheres of mode "sphere", and of nothing else.
    count : bool
        Spheres are counted where they overlap: KDA.
    dtype : torch.dtype, optional
        Of the result: float32, float64, or bfloat16 and float16, rounded once from float32; for
        spheres also uint8, with counts up to 255. Without, that of ``peaks_mm``; of spheres uint8.
    out : (B, K, X, Y, Z) or (B, K, V), optional
        Written to and returned. Saves the cost of fresh memory, which exceeds that of drawing.
    mask : (X, Y, Z) bool or (V,) int64, optional
        The voxels to write, or their flat numbers in ascending order, which spare the search.
    backend : {"auto", "cpu", "numba", "triton", "reference"}
        Implementation; "auto" takes the fastest that runs (or what ATLAS_KERNELS_BACKEND names).
    check : bool
        Look at the values on a GPU too, which waits for it. On the CPU they always are.

    Returns
    -------
    (B, K, X, Y, Z) tensor of ``dtype``, or (B, K, V) with ``mask``
        On the device of ``peaks_mm``, contiguous unless ``out`` was given.

    Raises
    ------
    TypeError
        If an argument that must be a tensor or a Grid is not.
    ValueError
        If a shape, dtype, device or option is wrong. Where values are looked at, also if a
        coordinate, weight or width is not finite, a width is not positive, offsets decrease or do
        not span the peaks, or voxel numbers do not ascend inside the grid.
    RuntimeError
        If a gradient is asked for and ``out`` is given or the mode is "sphere", which has none; if
        ``backend`` cannot run here; if ``check`` is set while a CUDA graph is captured.

    Notes
    -----
    Differentiable once in ``peaks_mm``, ``weights``, ``fwhm``, ``peak_fwhm`` and ``study_fwhm``, as
    if the support were fixed (exact for "taper"); with ``centre="voxel"`` the gradient of
    coordinates is 0. Where peaks tie for a maximum the gradient goes to the one of lowest index.
    Forward and backward give the same bits for any number of threads. B = 0, P = 0 and studies
    without peaks are legal. Where values are not looked at, a bad number makes its own study's
    volumes NaN and no other's.

    References
    ----------
    .. [1] Turkeltaub et al. (2012), Human Brain Mapping 33, 1-13 (one map a study, by the maximum).
    .. [2] Wager, Lindquist and Kaplan (2007), Social Cognitive and Affective Neuroscience 2,
       150-158.
    """
    from . import op

    return op.splat(
        peaks_mm,
        offsets,
        grid,
        fwhm,
        weights,
        mode=mode,
        peak_fwhm=peak_fwhm,
        study_fwhm=study_fwhm,
        radius=radius,
        mask=mask,
        support=support,
        normalize=normalize,
        centre=centre,
        truncate=float(truncate),
        count=count,
        check=check,
        dtype=dtype,
        out=out,
        backend=backend,
    )
