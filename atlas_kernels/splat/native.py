"""From arrays of either library to the C++ kernel's arguments. Imports neither torch nor NumPy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from atlas_kernels._extension import kernels

from .problem import Problem

if TYPE_CHECKING:
    from atlas_kernels._kernels import SplatProblem


def native_problem(address: Callable[[Any], int], problem: Problem) -> SplatProblem:
    """Describe one call to the C++ kernel, which keeps addresses only.

    The arrays must be contiguous, float64 (offsets and voxels int64), and outlive the call.
    """
    affine = problem.affine

    def optional(array: Any | None) -> int:
        return 0 if array is None else address(array)

    native: SplatProblem = kernels().SplatProblem(
        peaks=address(problem.peaks_mm),
        offsets=address(problem.offsets),
        widths=address(problem.widths),
        weights=optional(problem.weights),
        voxels=optional(problem.voxels),
        n_peaks=len(problem.peaks_mm),
        n_studies=problem.n_studies,
        n_kernels=problem.n_kernels,
        n_voxels=-1 if problem.voxels is None else len(problem.voxels),
        shape=problem.shape,
        spacing=(affine[0], affine[5], affine[10]),
        origin=(affine[3], affine[7], affine[11]),
        mode=problem.splat_mode,
        widths_of=problem.widths_of,
        support=problem.support,
        normalize=problem.normalize,
        centre=problem.centre,
        truncate=problem.truncate,
        count=problem.counts,
    )
    return native


def why_not_diagonal(problem: Problem | None) -> str | None:
    """Say why only the reference draws on this grid; None if the others can."""
    oblique = problem and any(problem.affine[i] for i in (1, 2, 4, 6, 8, 9))
    return "it takes diagonal affines, this grid is oblique" if oblique else None


def why_no_numba() -> str | None:
    """Say why the numba kernel cannot be used; None if it can."""
    return None if find_spec("numba") else "numba is not installed"
