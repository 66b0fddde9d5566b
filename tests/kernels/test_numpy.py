"""The NumPy side: same numbers as the op, and no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from atlas_kernels import _extension
from atlas_kernels.numpy import splat

from .cases import CASES, OBLIQUE, SMALL, WIDTHS, Case, Inputs, inputs

pytestmark = pytest.mark.skipif(
    bool(_extension.why_missing()), reason=str(_extension.why_missing())
)


def arrays(given: Inputs) -> dict:
    return {
        "peaks_mm": given.peaks.numpy(),
        "offsets": given.offsets.numpy(),
        "grid": given.grid,
        WIDTHS[given.widths_of]: given.fwhm.numpy(),
        "weights": None if given.weights is None else given.weights.numpy(),
        **given.options,
        **({"mask": given.options["mask"].numpy()} if "mask" in given.options else {}),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["sum", "max", "union"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_as_the_op(case: Case, mode: str, dtype: str) -> None:
    given = inputs(case)
    got = splat(**arrays(given), mode=mode, dtype=dtype)
    want = given.splat(mode=mode, backend="cpu", dtype=getattr(__import__("torch"), dtype)).numpy()
    assert got.dtype == dtype and np.array_equal(got, want)


def test_halves_and_spheres() -> None:
    given = inputs(CASES[0])
    half = splat(**arrays(given), dtype="float16")
    assert half.dtype == np.float16
    assert np.array_equal(half, splat(**arrays(given), dtype="float32").astype(np.float16))
    options = {"fwhm": None, "mode": "sphere", "radius": [3.0, 5.0]}
    balls = splat(**{**arrays(given), **options})
    counts = splat(**{**arrays(given), **options}, count=True)
    assert balls.dtype == np.uint8 and balls.shape[1] == 2 and set(np.unique(balls)) == {0, 1}
    assert np.array_equal(balls, counts > 0) and counts.max() > 1


def test_bfloat16_of_another_library() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = inputs(CASES[0])
    want = splat(**arrays(given), dtype="float32").astype(ml_dtypes.bfloat16)
    assert np.array_equal(splat(**arrays(given), dtype=ml_dtypes.bfloat16), want)
    assert np.array_equal(splat(**arrays(given), out=np.zeros_like(want)), want)


def test_lists_strides_out_and_threads() -> None:
    given = inputs(CASES[0])
    want = splat(**arrays(given))
    peaks = np.repeat(given.peaks.numpy(), 2, axis=0)[::2]
    assert not peaks.flags.c_contiguous
    out = np.full_like(want, np.nan)
    got = splat(peaks, given.offsets.tolist(), SMALL, 6, out=out, threads=3)
    assert got is out and np.array_equal(out, want)
    assert np.array_equal(splat(given.peaks.tolist(), [0, 3, 3, 5], SMALL, [6.0]), want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peaks_mm": np.full((5, 3), np.nan)}, r"peaks_mm\[0, 0\] is nan"),
        ({"peaks_mm": np.zeros((5, 3), "int32")}, "peaks_mm must be float32 or float64, got int32"),
        ({"offsets": np.array([0, 3, 1, 5])}, r"offsets\[2\] is 1 after 3"),
        ({"offsets": np.array([0.0, 5.0])}, "offsets must be int64, got float64"),
        ({"fwhm": -1.0}, r"fwhm\[0\] is -1.0"),
        ({"mode": "mean"}, "mode must be one of"),
        ({"dtype": "int32"}, "dtype must be one of float32, .* got int32"),
        ({"grid": OBLIQUE[0].grid}, "grid: it takes diagonal affines, this grid is oblique"),
        ({"mask": np.ones((9, 11, 7))}, "mask must be bool of the grid's shape"),
        ({"out": np.empty((1,))}, "out must be"),
        ({"out": np.empty((3, 1, 9, 11, 14))[..., ::2]}, "out must be C-contiguous"),
        ({"out": np.empty((3, 1, 9, 11, 7), "int32")}, "dtype must be one of .* got int32"),
        ({"out": np.empty((3, 1, 9, 11, 7)), "dtype": "float32"}, "out is float64, but float32"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splat(**{**arrays(inputs(CASES[0])), **changes})


def test_wrong_grid() -> None:
    with pytest.raises(TypeError, match="grid must be"):
        splat(np.zeros((1, 3)), [0, 1], (9, 9, 9), 6.0)


def test_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None  # importing it fails
import numpy as np
from atlas_kernels import Grid, implementations
from atlas_kernels.numpy import splat
grid = Grid((3, 4, 5), np.diag([2.0, 2, 2, 1]))
assert splat(np.zeros((1, 3)), [0, 1], grid, 6.0)[0, 0, 0, 0, 0] == 1
del sys.modules["torch"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    lazy = "import sys, atlas_kernels.numpy; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", lazy], check=True, timeout=60)
