"""FastALE and FastMKDADensity against NiMARE: the same seed, the same distributions."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nimare")
from nimare.correct import FWECorrector
from nimare.meta.cbma import ALE, MKDADensity
from nimare.meta.kernel import ALEKernel, KDAKernel
from nimare.nimads import Studyset

from atlas_kernels import _extension
from atlas_kernels.nimare import (
    FastALE,
    FastALEKernel,
    FastKDAKernel,
    FastMKDADensity,
    FastMKDAKernel,
    fallback,
)
from atlas_kernels.nimare.estimators import _FastPlan
from tests.support import require_neurosynth

from . import studysets

pytestmark = [
    pytest.mark.skipif(bool(_extension.why_missing()), reason=str(_extension.why_missing())),
    pytest.mark.filterwarnings("error:atlas_kernels.nimare"),
    pytest.mark.usefixtures("_quiet"),
]


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    fallback._warned.clear()


def corrected(estimator: Any, given: Studyset, n_iters: int, **options: Any) -> Any:
    corrector = FWECorrector(method="montecarlo", n_iters=n_iters, **options)
    return corrector.transform(estimator.fit(given))


def assert_same_inference(ours: Any, theirs: Any) -> None:
    """Every null distribution and every map, bit for bit."""
    nulls, wanted = (result.estimator.null_distributions_ for result in (ours, theirs))
    assert nulls.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.array_equal(nulls[name], values), name
    assert ours.maps.keys() == theirs.maps.keys()
    for name, values in theirs.maps.items():
        if values is not None:
            assert np.array_equal(ours.maps[name], values, equal_nan=True), name


CASES: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "ALE": (ALE, FastALE, {}, {}),
    "ALE two cores": (ALE, FastALE, {}, {"n_cores": 2}),
    "ALE one width": (ALE, FastALE, {"kernel__fwhm": 8}, {}),
    "ALE voxels": (ALE, FastALE, {}, {"vfwe_only": True}),
    "ALE in grey matter": (ALE, FastALE, {"mask_coverage": "gm"}, {}),
    "ALE Monte Carlo null": (ALE, FastALE, {"null_method": "montecarlo", "n_iters": 4}, {}),
    "MKDA": (MKDADensity, FastMKDADensity, {}, {}),
    "MKDA two cores": (MKDADensity, FastMKDADensity, {"kernel__r": 6}, {"n_cores": 2}),
    "MKDA voxels": (MKDADensity, FastMKDADensity, {"kernel__value": 2}, {"vfwe_only": True}),
    "MKDA weighted": (MKDADensity, FastMKDADensity, {"weighting": "sample_size"}, {}),
    "MKDA Monte Carlo null": (
        MKDADensity, FastMKDADensity, {"null_method": "montecarlo", "n_iters": 4}, {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_same_seed_same_distributions(case: str) -> None:
    theirs, ours, options, correction = CASES[case]
    correction = dict(correction)
    given = studysets.bundled()
    results = [corrected(ours(random_state=7, **options), given, 4, **correction)]
    correction["n_cores"] = 1  # of NiMARE's: its processes take long to start
    results.append(corrected(theirs(random_state=7, **options), given, 4, **correction))
    assert_same_inference(*results)
    if not correction.get("vfwe_only"):
        sizes = results[0].estimator.null_distributions_
        assert any(np.ptp(v) > 0 for k, v in sizes.items() if k.startswith("values_desc-size"))


def test_neurosynth() -> None:
    given = studysets.neurosynth(require_neurosynth(), 40)
    for theirs, ours in ((ALE, FastALE), (MKDADensity, FastMKDADensity)):
        results = [corrected(make(random_state=1), given, 3) for make in (ours, theirs)]
        assert_same_inference(*results)


@pytest.mark.parametrize("grid", ["4mm", "with holes"])
def test_permutations_on_other_grids(grid: str) -> None:
    shape = (23, 27, 22)
    masker = studysets.masker(shape, np.diag([4, 4, 4, 1] if grid == "4mm" else [2, -3, 2, 1]))
    table = studysets.foci(shape).sort_values("id", kind="stable", ignore_index=True)
    ijk = np.random.default_rng(0).integers(-5, 30, (len(table), 3))
    for theirs, ours in ((ALE, FastALE), (MKDADensity, FastMKDADensity)):
        maps = []
        for make in (ours, theirs):
            estimator = make(mask=masker)
            assert isinstance(estimator._permutation_plan(table), _FastPlan) == (make is ours)
            maps.append(estimator._compute_permutation_summarystat(ijk, table))
        assert maps[0].dtype == maps[1].dtype and np.array_equal(*maps) and maps[0].any()


def test_counted_spheres_are_summed_in_permutations() -> None:
    given, maps = studysets.bundled(), []
    for make, kernel in ((FastMKDADensity, FastKDAKernel), (MKDADensity, KDAKernel)):
        estimator = make(kernel_transformer=kernel(r=10))
        estimator.fit(given)
        table = estimator.inputs_["coordinates"]
        maps.append(estimator._compute_permutation_summarystat(
            table[["i", "j", "k"]].to_numpy()[::-1], table))  # fmt: skip
    assert np.array_equal(*maps)


def test_a_second_fit_forgets_the_first() -> None:
    """NiMARE keeps the plan of the first fit; the second then runs without one."""
    whole = studysets.bundled()
    first, second = whole.slice(list(whole.ids[:10])), whole.slice(list(whole.ids[10:24]))
    used, fresh = FastALE(random_state=3), FastALE(random_state=3)
    corrected(used, first, 2)
    assert_same_inference(corrected(used, second, 3), corrected(fresh, second, 3))


def test_unusual_thresholds_and_neighbours_are_left_to_nimare() -> None:
    given = studysets.bundled()
    ours, theirs = FastMKDADensity(), MKDADensity()
    for estimator in (ours, theirs):
        estimator.fit(given)
    table = theirs.inputs_["coordinates"]
    ijk = table[["i", "j", "k"]].to_numpy()[::-1]
    inside = np.asanyarray(theirs.masker.mask_img.dataobj).astype(bool)
    threshold = theirs._p_to_summarystat(0.01)
    for connected, limit in (
        (np.ones((3, 3, 3), bool), threshold), (fast_neighbours(), float(threshold)),
        (fast_neighbours(), np.float64(-1.0)),
    ):  # fmt: skip
        found = [
            estimator._correct_fwe_montecarlo_permutation(
                ijk, table, connected, limit, False, inside
            )
            for estimator in (ours, theirs)
        ]
        assert found[0] == found[1] and found[0][1] > 0


def fast_neighbours() -> np.ndarray:
    from atlas_kernels.nimare.estimators import SIX_NEIGHBOURS

    return SIX_NEIGHBOURS.copy()


def test_options_reach_the_kernel_as_in_nimare() -> None:
    estimator = FastALE(kernel__fwhm=7, n_cores=1)
    assert isinstance(estimator.kernel_transformer, FastALEKernel)
    assert estimator.kernel_transformer.fwhm == 7
    assert FastMKDADensity(kernel__r=4).kernel_transformer.r == 4
    assert isinstance(FastMKDADensity().kernel_transformer, FastMKDAKernel)
    given = FastALE(kernel_transformer=ALEKernel(fwhm=5))
    assert type(given.kernel_transformer) is ALEKernel
    assert FastALE(random_state=4).get_params()["random_state"] == 4


# ---- the full run: forty minutes of NiMARE, a few of ours ----------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ATLAS_SOAK") != "1", reason="5,000 iterations: make soak")
def test_five_thousand_iterations_of_300_studies(request: pytest.FixtureRequest) -> None:
    given = studysets.neurosynth(require_neurosynth(), 300)
    seconds, results = {}, {}
    for name, make in (("ours", FastALE), ("nimare", ALE)):
        start = time.perf_counter()
        results[name] = corrected(make(random_state=1), given, 5_000)
        seconds[name] = round(time.perf_counter() - start, 1)
    assert_same_inference(results["ours"], results["nimare"])
    record = {"seconds": seconds, "ratio": round(seconds["nimare"] / seconds["ours"], 1)}
    folder = Path(request.config.rootpath) / "bench" / "results"
    (folder / "nimare_5000.json").write_text(json.dumps(record, indent=1) + "\n")
