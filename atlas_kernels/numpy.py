"""The kernels for NumPy arrays. Forward only, on the CPU, and without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_kernels._extension import kernels
from atlas_kernels._threads import available_threads
from atlas_kernels.grid import Grid
from atlas_kernels.splat.checks import (
    FLOATS,
    check_layout,
    check_options,
    check_values,
    dtype_name,
)
from atlas_kernels.splat.native import native_problem

__all__ = ["splat"]

Array = npt.NDArray[Any]


def splat(
    peaks_mm: npt.ArrayLike,
    offsets: npt.ArrayLike,
    grid: Grid,
    fwhm: float | Sequence[float] | Array,
    weights: npt.ArrayLike | None = None,
    *,
    mode: str = "sum",
    truncate: float = 4.0,
    support: str = "ball",
    dtype: npt.DTypeLike | None = None,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Draw each study's peaks as Gaussians: ``atlas_kernels.splat`` for arrays.

    Parameters
    ----------
    peaks_mm : (P, 3) float32 or float64, mm
    offsets : (B + 1,) int64
    grid : Grid
    fwhm : float or (K,) float32 or float64, mm
    weights : (P,) float32 or float64, optional
    mode, truncate, support
        As for ``atlas_kernels.splat``.
    dtype : float32 or float64, optional
        Of the result; without, that of ``peaks_mm``.
    out : (B, K, X, Y, Z), optional
        C-contiguous and writable; written to and returned.
    threads : int, optional
        At most this many; without, all that this process may use. Does not change the bits.

    Returns
    -------
    (B, K, X, Y, Z) array of ``dtype``

    Raises
    ------
    ImportError
        If the C++ extension is not built.
    TypeError
        If ``grid`` is not a Grid.
    ValueError
        As for ``atlas_kernels.splat``.
    """
    native = kernels()
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be an atlas_kernels.Grid, got {type(grid).__name__}")
    peaks, spans = np.asarray(peaks_mm), np.asarray(offsets)
    widths = np.atleast_1d(np.asarray(fwhm, dtype=getattr(fwhm, "dtype", np.float64)))
    heights = None if weights is None else np.asarray(weights)
    check_options(mode, support, truncate)
    check_layout(peaks, spans, widths, heights)
    check_values(np, peaks, spans, widths, heights)
    volumes = _output((len(spans) - 1, len(widths), *grid.shape), peaks.dtype, dtype, out)
    # The kernel is given addresses only: these names hold the memory until it has returned.
    peaks, spans, widths = _dense(peaks), np.ascontiguousarray(spans), _dense(widths)
    heights = None if heights is None else _dense(heights)
    problem = native_problem(
        lambda array: int(array.ctypes.data),
        peaks,
        spans,
        widths,
        heights,
        grid.shape,
        grid.spacing,
        grid.origin,
        mode,
        support,
        float(truncate),
    )
    threads = available_threads() if threads is None else threads
    native.splat_cpu(problem, volumes.ctypes.data, dtype_name(volumes.dtype), threads)
    return volumes


def _dense(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=np.float64)


def _output(
    shape: tuple[int, ...], usual: npt.DTypeLike, asked: npt.DTypeLike | None, out: Array | None
) -> Array:
    """Return the array to write to: ``out`` where it fits, else a new one."""
    dtype = np.dtype(usual if asked is None else asked)
    if out is None:
        if dtype_name(dtype) not in FLOATS:
            raise ValueError(f"dtype must be {' or '.join(FLOATS)}, got {dtype_name(dtype)}")
        return np.empty(shape, dtype)
    if out.shape != shape:
        raise ValueError(f"out must be (B, K, X, Y, Z) = {shape}, got {out.shape}")
    if dtype_name(out.dtype) not in FLOATS or (asked is not None and out.dtype != dtype):
        raise ValueError(f"out is {dtype_name(out.dtype)}, but {dtype_name(dtype)} is wanted")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writable")
    return out
