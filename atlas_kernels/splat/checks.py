"""What splat refuses. Works on tensors and arrays alike, so imports neither library."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from .problem import Problem

MODES = ("sum", "max", "union", "sphere")
CHOICES = {
    "mode": MODES,
    "support": ("ball", "box", "taper"),
    "normalize": ("peak", "sum", "mm3"),
    "centre": ("peak", "voxel"),
}
FLOATS = ("float32", "float64")
OUTPUTS = ("float32", "float64", "bfloat16", "float16")


def check_options(problem: Problem) -> None:
    """Refuse an unknown choice, a reach that is not positive, and options that have no meaning."""
    for name, allowed in CHOICES.items():
        value = problem.splat_mode if name == "mode" else getattr(problem, name)
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if not problem.truncate > 0:
        raise ValueError(f"truncate must be positive (in sigmas), got {problem.truncate}")
    if problem.splat_mode != "sphere":
        if problem.counts:
            raise ValueError(f"count is for mode 'sphere' alone, got mode {problem.splat_mode!r}")
        return
    if problem.weights is not None:
        raise ValueError("weights must be None for mode 'sphere': its values are 1, or counts")
    for name, usual in (("normalize", "peak"), ("support", "ball")):
        value = getattr(problem, name)
        if value != usual:
            raise ValueError(f"{name} must be {usual!r} for mode 'sphere', got {value!r}")


def check_layout(problem: Problem) -> None:
    """Refuse wrong shapes and dtypes; looks at no value."""
    peaks_mm, offsets, widths = problem.peaks_mm, problem.offsets, problem.widths
    if peaks_mm.ndim != 2 or peaks_mm.shape[1] != 3:
        raise ValueError(f"peaks_mm must be (P, 3), got {tuple(peaks_mm.shape)}")
    if offsets.ndim != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets must be (B + 1,), got {tuple(offsets.shape)}")
    _check_dtype("peaks_mm", peaks_mm, FLOATS)
    _check_dtype("offsets", offsets, ("int64",))
    _check_dtype(problem.widths_name(), widths, FLOATS)
    got = tuple(widths.shape)
    if problem.widths_of == "kernels":
        if widths.ndim != 1 or got[0] < 1:
            name = problem.widths_name()
            raise ValueError(f"{name} must be a number or (K,) with K > 0, got {got}")
    elif problem.widths_of == "studies":
        _check_one_each("study_fwhm", widths, problem.n_studies, "studies")
    else:
        _check_one_each("peak_fwhm", widths, peaks_mm.shape[0], "peaks")
    if problem.weights is not None:
        _check_one_each("weights", problem.weights, peaks_mm.shape[0], "peaks")
        _check_dtype("weights", problem.weights, FLOATS)


def check_output(problem: Problem, dtype: Any) -> None:
    """Refuse a dtype that the result cannot have."""
    name = dtype_name(dtype)
    if name in OUTPUTS or (name == "uint8" and problem.splat_mode == "sphere"):
        return
    hint = "; uint8 is for mode 'sphere'" if name == "uint8" else ""
    raise ValueError(f"dtype must be one of {', '.join(OUTPUTS)}, got {name}{hint}")


def check_values(library: ModuleType, problem: Problem) -> None:
    """Refuse numbers that are not finite, widths that are not positive, and broken offsets.

    ``library`` is torch or numpy, whichever the arrays belong to.
    """
    peaks_mm, weights, widths = problem.peaks_mm, problem.weights, problem.widths
    bad = ~library.isfinite(peaks_mm)
    if bad.any():
        row, axis = divmod(_first(bad), 3)
        value = float(peaks_mm[row, axis])
        raise ValueError(f"peaks_mm must be finite, but peaks_mm[{row}, {axis}] is {value}")
    if weights is not None:
        _check_each("weights", weights, ~library.isfinite(weights), "finite")
    bad = ~(library.isfinite(widths) & (widths > 0))
    _check_each(problem.widths_name(), widths, bad, "positive and finite")
    _check_offsets(problem.offsets, len(peaks_mm))
    if problem.voxels is not None:
        _check_voxels(problem.voxels, math.prod(problem.shape))


def _check_each(name: str, values: Any, bad: Any, wanted: str) -> None:
    if bad.any():
        where = _first(bad)
        raise ValueError(f"{name} must be {wanted}, but {name}[{where}] is {float(values[where])}")


def _check_offsets(offsets: Any, n_peaks: int) -> None:
    if offsets[0] != 0:
        raise ValueError(f"offsets must start at 0, but offsets[0] is {int(offsets[0])}")
    bad = offsets[1:] < offsets[:-1]
    if bad.any():
        where = _first(bad) + 1
        values = f"{int(offsets[where])} after {int(offsets[where - 1])}"
        raise ValueError(f"offsets must not decrease, but offsets[{where}] is {values}")
    if offsets[-1] != n_peaks:
        where, value = len(offsets) - 1, int(offsets[-1])
        raise ValueError(f"offsets must end at P = {n_peaks}, but offsets[{where}] is {value}")


def _check_voxels(voxels: Any, size: int) -> None:
    bad = (voxels < 0) | (voxels >= size)
    bad[1:] |= voxels[1:] <= voxels[:-1]
    if bad.any():
        where = _first(bad)
        raise ValueError(
            f"mask must be ascending voxel numbers below {size}, "
            f"but mask[{where}] is {int(voxels[where])}"
        )


def _check_one_each(name: str, array: Any, number: int, things: str) -> None:
    if array.ndim != 1 or array.shape[0] != number:
        got = tuple(array.shape)
        raise ValueError(f"{name} must be one for each of the {number} {things}, got {got}")


def _check_dtype(name: str, array: Any, allowed: tuple[str, ...]) -> None:
    dtype = dtype_name(array.dtype)
    if dtype not in allowed:
        raise ValueError(f"{name} must be {' or '.join(allowed)}, got {dtype}")


def dtype_name(dtype: Any) -> str:
    """Return "float32" for torch.float32 and numpy.dtype("float32") alike."""
    return str(dtype).removeprefix("torch.")


def _first(bad: Any) -> int:
    """Flat index of the first True."""
    flat: list[bool] = bad.reshape(-1).tolist()
    return flat.index(True)
