"""What splat refuses. Works on tensors and arrays alike, so imports neither library."""

from __future__ import annotations

from types import ModuleType
from typing import Any

MODES = ("sum", "max")
SUPPORTS = ("ball", "box")
FLOATS = ("float32", "float64")


def check_options(mode: str, support: str, truncate: float) -> None:
    """Refuse an unknown mode or support, and a reach that is not positive."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if support not in SUPPORTS:
        raise ValueError(f"support must be one of {', '.join(SUPPORTS)}, got {support!r}")
    if not truncate > 0:
        raise ValueError(f"truncate must be positive (in sigmas), got {truncate}")


def check_layout(peaks_mm: Any, offsets: Any, fwhm: Any, weights: Any) -> None:
    """Refuse wrong shapes and dtypes; looks at no value."""
    if peaks_mm.ndim != 2 or peaks_mm.shape[1] != 3:
        raise ValueError(f"peaks_mm must be (P, 3), got {tuple(peaks_mm.shape)}")
    if offsets.ndim != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets must be (B + 1,), got {tuple(offsets.shape)}")
    if fwhm.ndim != 1 or fwhm.shape[0] < 1:
        raise ValueError(f"fwhm must be a number or (K,) with K > 0, got {tuple(fwhm.shape)}")
    _check_dtype("peaks_mm", peaks_mm, FLOATS)
    _check_dtype("offsets", offsets, ("int64",))
    _check_dtype("fwhm", fwhm, FLOATS)
    if weights is not None:
        if weights.ndim != 1 or weights.shape[0] != peaks_mm.shape[0]:
            got, need = tuple(weights.shape), peaks_mm.shape[0]
            raise ValueError(f"weights must be one for each of the {need} peaks, got {got}")
        _check_dtype("weights", weights, FLOATS)


def check_values(library: ModuleType, peaks_mm: Any, offsets: Any, fwhm: Any, weights: Any) -> None:
    """Refuse numbers that are not finite, widths that are not positive, and broken offsets.

    ``library`` is torch or numpy, whichever the arrays belong to.
    """
    bad = ~library.isfinite(peaks_mm)
    if bad.any():
        row, axis = divmod(_first(bad), 3)
        value = float(peaks_mm[row, axis])
        raise ValueError(f"peaks_mm must be finite, but peaks_mm[{row}, {axis}] is {value}")
    if weights is not None:
        bad = ~library.isfinite(weights)
        if bad.any():
            where = _first(bad)
            raise ValueError(
                f"weights must be finite, but weights[{where}] is {float(weights[where])}"
            )
    bad = ~(library.isfinite(fwhm) & (fwhm > 0))
    if bad.any():
        where = _first(bad)
        raise ValueError(
            f"fwhm must be positive and finite, but width {where} is {float(fwhm[where])}"
        )
    _check_offsets(offsets, len(peaks_mm))


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
