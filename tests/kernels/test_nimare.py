"""FastMKDAKernel, FastKDAKernel, FastALEKernel against NiMARE's own: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse

pytest.importorskip("nimare")
from nimare.meta.cbma import ALE, KDA, SCALE, ALESubtraction, MKDAChi2, MKDADensity
from nimare.meta.kernel import ALEKernel, KDAKernel, MKDAKernel

from atlas_kernels import _extension
from atlas_kernels.nimare import FastALEKernel, FastKDAKernel, FastMKDAKernel, fallback
from tests.support import require_neurosynth

from . import studysets

pytestmark = pytest.mark.filterwarnings(
    "ignore:Passing a Dataset:FutureWarning",
    "ignore::UserWarning",
    "ignore:invalid value encountered in divide:RuntimeWarning",
)
native = pytest.mark.skipif(
    bool(_extension.why_missing()), reason=str(_extension.why_missing())
)  # fmt: skip

PAIRS = [
    (MKDAKernel, FastMKDAKernel, {"r": 6}),
    (MKDAKernel, FastMKDAKernel, {"r": 10, "value": 3}),
    (KDAKernel, FastKDAKernel, {"r": 10, "value": 2.5}),
    (KDAKernel, FastKDAKernel, {"r": 1}),
    (ALEKernel, FastALEKernel, {"fwhm": 6}),
    (ALEKernel, FastALEKernel, {"fwhm": 25.0}),
    (ALEKernel, FastALEKernel, {"sample_size": 20}),
    (ALEKernel, FastALEKernel, {}),
]
every_pair = pytest.mark.parametrize(
    ("theirs", "ours", "options"), PAIRS, ids=lambda x: getattr(x, "__name__", str(x))
)


@pytest.fixture(autouse=True)
def _no_fallback() -> Any:
    """Fail where NiMARE's own code ran although nobody asked for it."""
    fallback._warned.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="atlas_kernels.nimare")
        yield


def assert_same_csr(got: sparse.csr_matrix, want: sparse.csr_matrix) -> None:
    assert type(got) is type(want) and got.shape == want.shape
    for part in ("indptr", "indices", "data"):
        mine, theirs = getattr(got, part), getattr(want, part)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), part
    assert got.has_sorted_indices and got.has_canonical_format


def assert_same(got: Any, want: Any) -> None:
    if isinstance(want, list):
        assert len(got) == len(want)
        for mine, theirs in zip(got, want, strict=True):
            assert_same(np.asanyarray(mine.dataobj), np.asanyarray(theirs.dataobj))
    elif sparse.issparse(want):
        assert_same_csr(got, want)
    else:
        assert got.dtype == want.dtype and np.array_equal(got, want)


@native
@every_pair
@pytest.mark.parametrize("name", ["bundled", "awkward"])
def test_maps_of_a_studyset(name: str, theirs: Any, ours: Any, options: dict[str, Any]) -> None:
    given = getattr(studysets, name)()
    for kind in ("sparse", "array"):
        want = theirs(**options).transform(given, return_type=kind)
        assert want.sum() > 0
        assert_same(ours(**options).transform(given, return_type=kind), want)


@native
@every_pair
def test_images_and_summaries(theirs: Any, ours: Any, options: dict[str, Any]) -> None:
    given = studysets.awkward()
    assert_same(ours(**options).transform(given), theirs(**options).transform(given))
    try:
        want = theirs(**options).transform(given, return_type="summary_array")
    except NotImplementedError as error:  # KDA's sums are not summed across studies
        with pytest.raises(NotImplementedError, match=str(error)):
            ours(**options).transform(given, return_type="summary_array")
    else:
        assert_same(ours(**options).transform(given, return_type="summary_array"), want)


@native
@pytest.mark.parametrize(
    ("theirs", "ours", "options"), [PAIRS[0], PAIRS[2], PAIRS[4], PAIRS[7]], ids=str
)
def test_maps_of_a_legacy_dataset_and_another_masker(
    theirs: Any, ours: Any, options: dict[str, Any]
) -> None:
    given = studysets.awkward_dataset()
    for masker in (None, studysets.brain()):
        want = theirs(**options).transform(given, masker, return_type="sparse")
        assert_same(ours(**options).transform(given, masker, return_type="sparse"), want)


@native
@pytest.mark.parametrize(
    ("theirs", "ours", "options"), [PAIRS[1], PAIRS[2], PAIRS[4], PAIRS[7]], ids=str
)
def test_maps_of_neurosynth(theirs: Any, ours: Any, options: dict[str, Any]) -> None:
    given = studysets.neurosynth(require_neurosynth(), 200)
    want = theirs(**options).transform(given, return_type="sparse")
    assert_same(ours(**options).transform(given, return_type="sparse"), want)


GRIDS: dict[str, tuple[tuple[int, int, int], list[float]]] = {
    "1mm": ((31, 20, 40), [1, 1, 1, 1]),
    "4mm": ((23, 27, 22), [4, 4, 4, 1]),
    "flipped and uneven": ((20, 33, 17), [-2, 3, 1.5, 1]),
    "64 along z": ((12, 9, 64), [2, 2, 2, 1]),
    "long": ((5, 70, 200), [2, 2, 2, 1]),
    "one voxel thick": ((30, 1, 1), [2, 2, 2, 1]),
}


@native
@pytest.mark.parametrize(
    ("theirs", "ours", "options"), [PAIRS[0], PAIRS[2], PAIRS[5], PAIRS[7]], ids=str
)
@pytest.mark.parametrize("grid", GRIDS)
def test_other_grids_reproduce_theirs(
    grid: str, theirs: Any, ours: Any, options: dict[str, Any]
) -> None:
    shape, steps = GRIDS[grid]
    masker, table = studysets.masker(shape, np.diag(steps)), studysets.foci(shape)
    want = theirs(**options).transform(table, masker, return_type="sparse")
    assert_same(ours(**options).transform(table, masker, return_type="sparse"), want)


@native
def test_a_mask_that_changes_in_place_is_seen() -> None:
    shape = (12, 13, 14)
    table, kernel = studysets.foci(shape), FastMKDAKernel(r=6)
    masker = studysets.masker(shape, np.diag([2, 2, 2, 1]))
    before = kernel.transform(table, masker, return_type="sparse").nnz
    np.asanyarray(masker.mask_img.dataobj)[:6] = 0
    want = MKDAKernel(r=6).transform(table, masker, return_type="sparse")
    assert_same(kernel.transform(table, masker, return_type="sparse"), want)
    assert want.nnz < before


@pytest.mark.parametrize("sizes", [{"a": 20}, {}, {"a": -3, "b": 20}], ids=str)
def test_missing_sample_sizes_end_as_in_nimare(sizes: dict[str, int | None]) -> None:
    given = studysets.studyset({"a": np.zeros((2, 3)), "b": np.ones((1, 3))}, sizes)

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            return type(error), str(error)

    fits = [outcome(lambda k=k: ALE(kernel_transformer=k()).fit(given))
            for k in (ALEKernel, FastALEKernel)]  # fmt: skip
    if "b" not in sizes:
        assert fits[0] == fits[1] and issubclass(fits[0][0], ValueError), fits
    with np.errstate(all="ignore"):
        maps = [outcome(lambda k=k: k().transform(given, return_type="array"))
                for k in (ALEKernel, FastALEKernel)]  # fmt: skip
    if isinstance(maps[0], tuple):
        assert maps[0] == maps[1]
    else:
        assert np.array_equal(maps[0], maps[1], equal_nan=True)


@pytest.mark.parametrize("options", [{"fwhm": 6, "sample_size": 20}, {"sample_size": 20.0}])
def test_bad_options_are_nimares_error(options: dict[str, Any]) -> None:
    messages = []
    for kernel in (ALEKernel, FastALEKernel):
        with pytest.raises(ValueError) as caught:
            kernel(**options).transform(studysets.awkward(), return_type="sparse")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


ESTIMATORS: dict[str, tuple[Any, Any, Any, int]] = {
    "ALE": (ALE, ALEKernel, FastALEKernel, 1),
    "MKDADensity": (MKDADensity, MKDAKernel, FastMKDAKernel, 1),
    "KDA": (KDA, KDAKernel, FastKDAKernel, 1),
    "MKDAChi2": (MKDAChi2, MKDAKernel, FastMKDAKernel, 2),
    "ALESubtraction": (
        lambda **kw: ALESubtraction(n_iters=3, random_state=1, **kw), ALEKernel, FastALEKernel, 2
    ),
    "SCALE": (
        lambda **kw: SCALE(xyz=np.mgrid[-40:41:8, -80:41:8, -20:41:8].reshape(3, -1).T,
                           n_iters=3, random_state=1, **kw), ALEKernel, FastALEKernel, 1
    ),
}  # fmt: skip


@native
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_takes_them(name: str) -> None:
    make, theirs, ours, n_sets = ESTIMATORS[name]
    whole = studysets.bundled()
    sets = [whole.slice(list(whole.ids[:12])), whole.slice(list(whole.ids[12:24]))][:n_sets]
    want = make(kernel_transformer=theirs()).fit(*sets).maps
    got = make(kernel_transformer=ours()).fit(*sets).maps
    assert want and got.keys() == want.keys()
    for key, value in want.items():
        if value is not None:
            assert np.array_equal(got[key], value, equal_nan=True), key


# ---- without the fast code -----------------------------------------------------------------------


def assert_falls_back_once(reason: str, options: dict[str, Any]) -> None:
    given = studysets.awkward()
    want = MKDAKernel(**options).transform(given, return_type="sparse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            got = FastMKDAKernel(**options).transform(given, return_type="sparse")
    told = [str(w.message) for w in caught if "atlas_kernels.nimare" in str(w.message)]
    assert len(told) == 1 and reason in told[0]
    assert_same(got, want)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "why_missing", lambda: "it is not built here")
    assert_falls_back_once("it is not built here", {"r": 6})


@pytest.mark.parametrize("place", ["nimare.meta.no_such_module", "nimare.meta.kernel:KDAKernel"])
def test_where_nimare_lacks_a_hook(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "why_missing", lambda: None)
    monkeypatch.setitem(fallback.HOOKS, place, ("_gone",))
    fallback.missing_hook.cache_clear()
    try:
        assert_falls_back_once("has no nimare.meta", {"r": 6})
    finally:
        monkeypatch.undo()
        fallback.missing_hook.cache_clear()


@native
def test_a_kernel_too_long_for_a_word() -> None:
    assert_falls_back_once("65 voxels long", {"r": 65})


def in_a_process(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_loads_without_torch() -> None:
    in_a_process(
        "import sys, atlas_kernels.nimare, atlas_kernels.ma_maps\n"
        "assert 'torch' not in sys.modules and 'nimare' not in sys.modules\n"
    )


@native
def test_it_works_without_torch() -> None:
    in_a_process(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from atlas_kernels.nimare import FastALE, FastMKDAKernel\n"
        "from tests.kernels.studysets import awkward\n"
        "assert FastMKDAKernel().transform(awkward(), return_type='sparse').nnz > 1000\n"
        "FastALE().fit(awkward())\n"
        "assert 'torch' not in sys.modules\n"
    )


def test_without_nimare_it_says_what_to_install() -> None:
    in_a_process(
        "import sys; sys.modules['nimare'] = None\n"
        "import atlas_kernels.nimare as fast\n"
        "try: fast.FastALE\n"
        "except ImportError as error: assert 'pip install' in str(error), error\n"
        "else: sys.exit('no error')\n"
    )


# ---- all of Neurosynth ---------------------------------------------------------------------------


@native
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ATLAS_SOAK") != "1", reason="whole Neurosynth: make soak")
@pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [PAIRS[0], (MKDAKernel, FastMKDAKernel, {"r": 10}), PAIRS[2], PAIRS[4], PAIRS[7],
     (ALEKernel, FastALEKernel, {"fwhm": 12})],
    ids=lambda x: getattr(x, "__name__", str(x)),
)  # fmt: skip
def test_all_of_neurosynth(theirs: Callable, ours: Callable, options: dict[str, Any]) -> None:
    table, masker = studysets.neurosynth_table(require_neurosynth()), studysets.brain()
    sizes = studysets.drawn_sizes(table["id"].unique())
    table["sample_size"] = table["id"].map(sizes).astype(float)
    ids = table["id"].unique()
    for begin in range(0, len(ids), 500):
        part = table[table["id"].isin(ids[begin : begin + 500])]
        want = theirs(**options).transform(part, masker, return_type="sparse")
        assert_same(ours(**options).transform(part, masker, return_type="sparse"), want)
