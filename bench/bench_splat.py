"""splat beside fills of its output, beside what people use, and its backward beside its forward.

The studies are the first of Neurosynth v7 that report at least 5 peaks. Outputs are written before
(`out=`), and every result is compared with the PyTorch reference first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from atlas_kernels.splat.op import TABLE
from tests.kernels.cases import GRADIENT_TOLERANCE, MNI_2MM, MNI_4MM, TOLERANCE, Inputs
from tests.support import require_neurosynth

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
SIGMA = 2.0 * (2 * np.log(2)) ** 0.5  # FWHM per sigma
FAST = [row.name for row in TABLE if "cpu" in (row.devices or ()) and not row.why_not()]
COORDINATES = "neurosynth/data-neurosynth_version-7_coordinates.tsv.gz"


@pytest.fixture(scope="session")
def coordinates() -> pd.DataFrame:
    table = pd.read_csv(require_neurosynth() / COORDINATES, sep="\t")
    return table[table.groupby("id")["id"].transform("size") >= 5]


def studies(table: pd.DataFrame, number: int | None, fwhm: float, grid: Any = MNI_2MM) -> Inputs:
    """Make splat's arguments, float32, from the first studies; all of them without a number."""
    ids = table["id"].unique()[:number]
    rows = table[table["id"].isin(ids)]
    counts = rows.groupby("id", sort=False).size().to_numpy()
    peaks = torch.from_numpy(rows[["x", "y", "z"]].to_numpy(np.float32))
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return Inputs(peaks, offsets, torch.tensor([fwhm]), None, grid, {})


def memset(buffer: torch.Tensor) -> Callable[[], Any]:
    """Return a call of the C library's memset over a buffer, on one core."""
    return lambda: ctypes.memset(buffer.data_ptr(), 0, buffer.nbytes)


def stream(given: Inputs, out: torch.Tensor) -> Callable[[], Any]:
    """Return a fill with non-temporal stores: the kernel itself, with no peak to draw."""
    empty = replace(
        given, peaks=given.peaks[:0], offsets=torch.zeros_like(given.offsets), options={}
    )
    return lambda: empty.splat(out=out)


def assert_equals_reference(table: pd.DataFrame, fwhm: float, dtype: Any, **options: Any) -> None:
    given = studies(table, 1, fwhm)  # the reference needs a second for one
    ours = given.splat(**options, dtype=dtype).double()
    assert_close(ours, given.splat(**{**options, "backend": "reference"}), TOLERANCE[dtype])


def assert_close(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert (ours - wanted).abs().max() <= tolerance * wanted.abs().max()


# ---- the floor -----------------------------------------------------------------------------------


DRAWN = [
    ("sum", FLOAT32, 6.0, 3.0),
    ("sum", FLOAT32, 12.0, 4.0),
    ("max", FLOAT32, 6.0, 4.0),
    ("max", FLOAT32, 12.0, 4.0),
    ("union", FLOAT32, 6.0, 4.0),
    ("sum", BFLOAT16, 6.0, 3.0),
    ("sum", BFLOAT16, 6.0, 4.0),
]


def label(mode: str, dtype: torch.dtype, fwhm: float, sigmas: float) -> str:
    return f"{mode}-{str(dtype).removeprefix('torch.')}-fwhm{fwhm:g}-{sigmas:g}sigma"


@pytest.mark.parametrize("number", [16, 64])
@pytest.mark.parametrize(("mode", "dtype", "fwhm", "sigmas"), DRAWN, ids=[label(*d) for d in DRAWN])
def test_splat_forward(
    measure: Any,
    coordinates: pd.DataFrame,
    mode: str,
    dtype: torch.dtype,
    fwhm: float,
    sigmas: float,
    number: int,
) -> None:
    options = {"mode": mode, "truncate": sigmas, "backend": "cpu"}
    assert_equals_reference(coordinates, fwhm, dtype, **options)
    given = studies(coordinates, number, fwhm)
    out = given.splat(**options, dtype=dtype)
    measure(lambda: given.splat(**options, out=out), memset=memset(out), stream=stream(given, out))


# ---- what people use -----------------------------------------------------------------------------


@pytest.mark.parametrize("fwhm", [6.0, 12.0], ids="fwhm{:g}".format)
def test_splat_beside_packages(measure: Any, coordinates: pd.DataFrame, fwhm: float) -> None:
    options = {"mode": "max", "backend": "cpu"}
    assert_equals_reference(coordinates, fwhm, FLOAT32, **options)
    given = studies(coordinates, 16, fwhm)
    out = given.splat(**options)
    ours = {"numba": lambda: given.splat(mode="max", backend="numba", out=out)}
    others = {
        "nimare": nimare_ale(given, fwhm),
        "scipy": lambda: scipy_filter(given, fwhm),
        "nilearn": nilearn_smooth(given, fwhm),
        "stream": stream(given, out),  # what no kernel that writes the volumes can beat
    }
    measure(lambda: given.splat(**options, out=out), **(ours if "numba" in FAST else {}), **others)


@pytest.mark.parametrize("fwhm", [6.0, 12.0], ids="fwhm{:g}".format)
def test_splat_beside_convolution(measure: Any, coordinates: pd.DataFrame, fwhm: float) -> None:
    given = studies(coordinates, 16, fwhm)
    out = given.splat(mode="max")
    others = {"conv3d": lambda: scatter_convolve(given, fwhm), "stream": stream(given, out)}
    measure(lambda: given.splat(mode="max", out=out), **others)


@pytest.mark.parametrize("fwhm", [6.0, 12.0], ids="fwhm{:g}".format)
def test_numba_beside_nimare(measure: Any, coordinates: pd.DataFrame, fwhm: float) -> None:
    if "numba" not in FAST:
        pytest.skip("numba is not installed")
    options = {"mode": "max", "backend": "numba"}
    assert_equals_reference(coordinates, fwhm, FLOAT32, **options)
    given = studies(coordinates, 16, fwhm)
    out = given.splat(**options)
    measure(lambda: given.splat(**options, out=out), nimare=nimare_ale(given, fwhm))


def by_study(given: Inputs) -> list[np.ndarray]:
    return np.split(given.peaks.numpy(), given.offsets[1:-1].numpy())


def voxels(peaks: np.ndarray, grid: Any) -> np.ndarray:
    """Return the voxels of the peaks that lie in the grid."""
    indices = np.rint((peaks - grid.origin) / grid.spacing).astype(int)
    return indices[((indices >= 0) & (indices < grid.shape)).all(axis=1)]


def nimare_ale(given: Inputs, fwhm: float) -> Callable[[], Any]:
    """Return NiMARE's own kernel; the faster of its representations for these studies."""
    from nimare.meta.kernel import ALEKernel
    from nimare.nimads import Studyset

    def analysis(number: int, peaks: np.ndarray) -> dict[str, Any]:
        points = [{"coordinates": peak.tolist(), "space": "MNI"} for peak in peaks.astype(float)]
        analyses = [{"id": "1", "name": "1", "points": points}]
        return {"id": f"s{number}", "name": f"s{number}", "analyses": analyses}

    found = [analysis(i, peaks) for i, peaks in enumerate(by_study(given))]
    studyset = Studyset({"id": "x", "name": "x", "studies": found}, target="mni152_2mm")
    kernel = ALEKernel(fwhm=fwhm)
    return lambda: kernel.transform(studyset, return_type="sparse")


def scipy_filter(given: Inputs, fwhm: float) -> None:
    from scipy.ndimage import gaussian_filter

    sigma = [fwhm / SIGMA / abs(step) for step in given.grid.spacing]
    for peaks in by_study(given):
        flat = np.ravel_multi_index(voxels(peaks, given.grid).T, given.grid.shape)
        counts = np.bincount(flat, minlength=np.prod(given.grid.shape)).astype(np.float32)
        gaussian_filter(counts.reshape(given.grid.shape), sigma, mode="constant", truncate=4.0)


def nilearn_smooth(given: Inputs, fwhm: float) -> Callable[[], Any]:
    from nibabel import Nifti1Image
    from nilearn.image import smooth_img

    def run() -> None:
        for peaks in by_study(given):
            image = np.zeros(given.grid.shape, np.float32)
            np.add.at(image, tuple(voxels(peaks, given.grid).T), 1)
            smooth_img(Nifti1Image(image, np.array(given.grid.affine)), fwhm)

    return run


def scatter_convolve(given: Inputs, fwhm: float) -> torch.Tensor:
    reach = int(4 * fwhm / SIGMA / 2 + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) * 2 / (fwhm / SIGMA)) ** 2)
    volumes = torch.zeros(len(given.offsets) - 1, 1, *given.grid.shape)
    for volume, peaks in zip(volumes, by_study(given), strict=True):
        where = tuple(torch.from_numpy(voxels(peaks, given.grid).T))
        volume[0].index_put_(where, torch.ones(len(where[0])), accumulate=True)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = len(taps)
        volumes = functional.conv3d(volumes, taps.reshape(shape), padding="same")
    return volumes


# ---- backward ------------------------------------------------------------------------------------


def backward(given: Inputs, backend: str, mode: str) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Return a call of the gradient alone, of the peaks, the width and the weights."""
    weights = torch.ones(len(given.peaks))
    moved = replace(given, peaks=given.peaks.clone(), fwhm=given.fwhm.clone(), weights=weights)
    out = moved.requires_grad().splat(mode=mode, backend=backend)
    # Not all ones: the gradient of a sum would then be nearly 0 everywhere, by symmetry.
    upstream = torch.rand(out.shape, generator=torch.Generator().manual_seed(0))
    return lambda: torch.autograd.grad(out, moved.leaves(), upstream, retain_graph=True)


def jittered(given: Inputs) -> Inputs:
    """Move the peaks by 2 mm, as in training: printed ones tie for many a voxel of a maximum."""
    noise = torch.randn(given.peaks.shape, generator=torch.Generator().manual_seed(0))
    return replace(given, peaks=given.peaks + 2 * noise)


@pytest.mark.parametrize("number", [16, 64])
@pytest.mark.parametrize("mode", ["sum", "max", "union"])
def test_splat_backward(measure: Any, coordinates: pd.DataFrame, mode: str, number: int) -> None:
    one = jittered(studies(coordinates, 1, 6.0))
    gradients = (backward(one, name, mode)() for name in ("cpu", "reference"))
    for mine, theirs in zip(*gradients, strict=True):
        assert_close(mine, theirs, GRADIENT_TOLERANCE[FLOAT32])
    given = jittered(studies(coordinates, number, 6.0))
    out = given.splat(mode=mode)
    measure(backward(given, "cpu", mode), forward=lambda: given.splat(mode=mode, out=out))


@pytest.mark.parametrize("mode", ["sum", "max", "union"])
def test_splat_backward_beside_reference(
    measure: Any, coordinates: pd.DataFrame, mode: str
) -> None:
    given = jittered(studies(coordinates, 2, 6.0, MNI_4MM))
    measure(backward(given, "cpu", mode), reference=backward(given, "reference", mode))


# ---- cost ----------------------------------------------------------------------------------------


def test_splat_of_every_study(measure: Any, coordinates: pd.DataFrame) -> None:
    """Every study in one call, to a quarter of the voxels at 4 mm; `shares`: 64 at a time.

    The first 64 have a third more peaks than the average study.
    """
    everything = studies(coordinates, None, 6.0, MNI_4MM)
    some = studies(coordinates, 64, 6.0, MNI_4MM)
    number, mask = len(everything.offsets) - 1, torch.arange(0, 116_380, 4)
    out = torch.zeros(number, 1, len(mask))

    def in_shares() -> None:
        for start in range(0, number - 63, 64):
            some.splat(mask=mask, out=out[start : start + 64])

    measure(lambda: everything.splat(mask=mask, out=out), shares=in_shares)
