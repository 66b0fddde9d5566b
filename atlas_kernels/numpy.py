"""The kernels for NumPy arrays. Forward only, on the CPU, and without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_kernels._extension import kernels, why_missing
from atlas_kernels._threads import available_threads
from atlas_kernels.grid import Grid
from atlas_kernels.splat.checks import (
    check_layout,
    check_options,
    check_output,
    check_values,
    dtype_name,
)
from atlas_kernels.splat.native import native_problem, why_no_numba, why_not_diagonal
from atlas_kernels.splat.problem import Problem, make_problem

__all__ = ["splat"]

Array = npt.NDArray[Any]


def splat(
    peaks_mm: npt.ArrayLike,
    offsets: npt.ArrayLike,
    grid: Grid,
    fwhm: float | Sequence[float] | Array | None = None,
    weights: npt.ArrayLike | None = None,
    *,
    mode: str = "sum",
    peak_fwhm: npt.ArrayLike | None = None,
    study_fwhm: npt.ArrayLike | None = None,
    truncate: float = 4.0,
    support: str = "ball",
    normalize: str = "peak",
    centre: str = "peak",
    radius: float | Sequence[float] | Array | None = None,
    count: bool = False,
    dtype: npt.DTypeLike | None = None,
    out: Array | None = None,
    mask: npt.ArrayLike | None = None,
    threads: int | None = None,
) -> Array:
    """Draw each study's peaks as Gaussians or spheres: ``atlas_kernels.splat`` for arrays.

    Parameters
    ----------
    peaks_mm : (P, 3) float32 or float64, mm
    offsets : (B + 1,) int64
    grid : Grid
        Not oblique.
    fwhm : float or (K,) float32 or float64, mm
    weights : (P,) float32 or float64, optional
    mode, truncate, support, normalize, centre, count
        As for ``atlas_kernels.splat``.
    peak_fwhm, study_fwhm : (P,) or (B,) float32 or float64, mm, optional
    radius : float or (K,) float32 or float64, mm
    dtype : float32, float64, float16 or, for spheres, uint8, optional
        Of the result; without, that of ``peaks_mm``, of spheres uint8. bfloat16 where a library
        has given NumPy such a dtype.
    out : (B, K, X, Y, Z) or (B, K, V), optional
        C-contiguous and writable; written to and returned.
    mask : (X, Y, Z) bool or (V,) int64, optional
        The voxels to write, or their flat numbers in ascending order.
    threads : int, optional
        At most this many; without, all that this process may use. Does not change the bits.

    Returns
    -------
    (B, K, X, Y, Z) array of ``dtype``, or (B, K, V) with ``mask``

    Raises
    ------
    ImportError
        If the C++ extension is not built and numba, which would stand in for it, not installed.
    TypeError
        If ``grid`` is not a Grid.
    ValueError
        As for ``atlas_kernels.splat``; also if the grid is oblique.
    """
    run = _implementation()
    problem = make_problem(
        lambda widths: np.atleast_1d(_floats(widths)),
        np.flatnonzero,
        np.asarray(peaks_mm),
        np.asarray(offsets),
        grid,
        fwhm,
        None if weights is None else np.asarray(weights),
        mode=mode,
        peak_fwhm=peak_fwhm,
        study_fwhm=study_fwhm,
        radius=radius,
        mask=None if mask is None else np.asarray(mask),
        support=support,
        normalize=normalize,
        centre=centre,
        truncate=float(truncate),
        count=count,
        check=True,
    )
    check_options(problem)
    check_layout(problem)
    check_values(np, problem)
    if reason := why_not_diagonal(problem):
        raise ValueError(f"grid: {reason}; atlas_kernels.splat has a reference that draws on it")
    usual = np.dtype(np.uint8) if mode == "sphere" else problem.peaks_mm.dtype
    volumes = _output(problem, usual, dtype, out)
    run(problem, volumes, available_threads() if threads is None else threads)
    return volumes


def _implementation() -> Callable[[Problem, Array, int], None]:
    """Return the C++ kernel, or the numba one where the extension is missing."""
    if not why_missing() or why_no_numba():
        kernels()  # says why where neither is there
        return _run_native
    from atlas_kernels.splat import numba_kernel

    return numba_kernel.forward


def _run_native(problem: Problem, volumes: Array, threads: int) -> None:
    held = _dense(problem)
    native = native_problem(lambda array: int(array.ctypes.data), held)
    kernels().splat_cpu(native, volumes.ctypes.data, dtype_name(volumes.dtype), threads)


def _floats(values: Any) -> Array:
    """Make an array, float64 unless it has a dtype of its own."""
    return np.asarray(values, dtype=getattr(values, "dtype", np.float64))


def _dense(problem: Problem) -> Problem:
    """Make the arrays what the kernel reads; it is given addresses, so they must be kept."""

    def double(array: Array | None) -> Array | None:
        return None if array is None else np.ascontiguousarray(array, dtype=np.float64)

    return problem._replace(
        peaks_mm=double(problem.peaks_mm),
        offsets=np.ascontiguousarray(problem.offsets),
        widths=double(problem.widths),
        weights=double(problem.weights),
        voxels=None if problem.voxels is None else np.ascontiguousarray(problem.voxels),
    )


def _output(
    problem: Problem, usual: np.dtype[Any], asked: npt.DTypeLike | None, out: Array | None
) -> Array:
    """Return the array to write to: ``out`` where it fits, else a new one."""
    dtype, shape = np.dtype(usual if asked is None else asked), problem.output_shape()
    if out is None:
        check_output(problem, dtype)
        return np.empty(shape, dtype)
    if out.shape != shape:
        axes = "(B, K, X, Y, Z)" if problem.voxels is None else "(B, K, V)"
        raise ValueError(f"out must be {axes} = {shape}, got {out.shape}")
    if asked is not None and out.dtype != dtype:
        raise ValueError(f"out is {dtype_name(out.dtype)}, but {dtype_name(dtype)} is wanted")
    check_output(problem, out.dtype)
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writable")
    return out
