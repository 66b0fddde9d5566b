"""From arrays of either library to the C++ kernel's arguments. Imports neither torch nor NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kernels._extension import kernels

if TYPE_CHECKING:
    from atlas_kernels._kernels import SplatProblem


def native_problem(
    address: Callable[[Any], int],
    peaks_mm: Any,
    offsets: Any,
    fwhm: Any,
    weights: Any,
    shape: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    mode: str,
    support: str,
    truncate: float,
) -> SplatProblem:
    """Describe one call to the C++ kernel, which keeps addresses only.

    The arrays must be contiguous, float64 (offsets int64), and outlive the call.
    """
    problem: SplatProblem = kernels().SplatProblem(
        peaks=address(peaks_mm),
        offsets=address(offsets),
        fwhm=address(fwhm),
        weights=0 if weights is None else address(weights),
        n_studies=len(offsets) - 1,
        n_widths=len(fwhm),
        shape=shape,
        spacing=spacing,
        origin=origin,
        mode=mode,
        support=support,
        truncate=truncate,
    )
    return problem
