"""atlas_kernels.nimare beside NiMARE: `transform` to sparse, and one Monte Carlo iteration.

200 studies: Neurosynth's first where ATLAS_NEUROSYNTH names it, else the 320 bundled ones. The
ratios are ours to NiMARE's, as everywhere here: 0.1 is ten times faster. An iteration is measured
alone, on one core, so that neither a run's fixed costs nor its number of iterations count; the cost
of a long run is that times their number, and what a run of one iteration takes.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nimare.correct import FWECorrector
from nimare.meta.cbma import ALE, MKDADensity
from nimare.meta.kernel import ALEKernel, KDAKernel, MKDAKernel
from nimare.utils import _mask_coverage_to_null_ijk

from atlas_kernels.nimare import (
    FastALE,
    FastALEKernel,
    FastKDAKernel,
    FastMKDADensity,
    FastMKDAKernel,
)
from tests.kernels import studysets

os.environ["TQDM_DISABLE"] = "1"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MAPS = {
    "mkda_r6": (MKDAKernel(r=6), FastMKDAKernel(r=6)),
    "mkda_r10": (MKDAKernel(r=10), FastMKDAKernel(r=10)),
    "kda_r10": (KDAKernel(r=10), FastKDAKernel(r=10)),
    "ale_fwhm6": (ALEKernel(fwhm=6), FastALEKernel(fwhm=6)),
    "ale_fwhm12": (ALEKernel(fwhm=12), FastALEKernel(fwhm=12)),
    "ale_by_sample_size": (ALEKernel(), FastALEKernel()),
}


@cache
def studies(n: int) -> Any:
    folder = os.environ.get("ATLAS_NEUROSYNTH")
    return studysets.neurosynth(Path(folder), n) if folder else studysets.bundled(n)


@pytest.mark.parametrize("name", MAPS)
def test_nimare_transform(measure: Any, name: str) -> None:
    given, (theirs, ours) = studies(200), MAPS[name]
    want, got = (kernel.transform(given, return_type="sparse") for kernel in (theirs, ours))
    for part in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(got, part), getattr(want, part))
    del want, got
    measure(
        lambda: ours.transform(given, return_type="sparse"),
        nimare=lambda: theirs.transform(given, return_type="sparse"),
    )


class Iteration:
    """One permutation of a fitted estimator, as `correct_fwe_montecarlo` calls it."""

    def __init__(self, estimator: Any, vfwe_only: bool) -> None:
        estimator.fit(studies(200))
        table = estimator.inputs_["coordinates"]
        null = _mask_coverage_to_null_ijk(estimator.masker)
        rng = np.random.default_rng(0)
        self.estimator, self.table, self.count = estimator, table, 0
        self.draws = [null[rng.integers(len(null), size=len(table))] for _ in range(16)]
        inside = np.asanyarray(estimator.masker.mask_img.dataobj).astype(bool)
        from scipy import ndimage

        self.rest = (ndimage.generate_binary_structure(3, 1),
                     estimator._p_to_summarystat(0.001), vfwe_only, inside)  # fmt: skip

    def __call__(self) -> Any:
        self.count += 1
        ijk = self.draws[self.count % len(self.draws)]
        return self.estimator._correct_fwe_montecarlo_permutation(ijk, self.table, *self.rest)


@pytest.mark.parametrize("what", ["voxels", "clusters"])
@pytest.mark.parametrize("method", ["ale", "mkda"])
def test_nimare_iteration(measure: Any, method: str, what: str) -> None:
    makers = {"ale": (ALE, FastALE), "mkda": (MKDADensity, FastMKDADensity)}[method]
    theirs, ours = (Iteration(make(), what == "voxels") for make in makers)
    want, got = theirs(), ours()
    assert [None if v is None else np.float32(v) for v in got] == [
        None if v is None else np.float32(v) for v in want
    ]
    measure(ours, nimare=theirs)


def test_nimare_ale_of_300_studies(benchmark: Any, request: pytest.FixtureRequest) -> None:
    """5,000 iterations with clusters, from runs of 4 and 24: fixed cost + 5,000 x slope."""
    seconds = {}

    def run() -> None:
        for name, make in (("ours", FastALE), ("nimare", ALE)):
            start = time.perf_counter()
            result = make(random_state=1).fit(studies(300))
            fixed, taken = time.perf_counter() - start, {}
            for n_iters in (4, 24):
                start = time.perf_counter()
                FWECorrector(method="montecarlo", n_iters=n_iters).transform(result)
                taken[n_iters] = time.perf_counter() - start
            slope = (taken[24] - taken[4]) / 20
            seconds[name] = fixed + taken[4] - 4 * slope + 5_000 * slope

    benchmark.pedantic(run, rounds=1)
    if not benchmark.disabled:
        from bench.conftest import ROWS

        ratio = seconds["ours"] / seconds["nimare"]
        benchmark.extra_info["ratio"] = {"nimare": float(f"{ratio:.3g}")}
        text = f"{ratio:.3g} x nimare ({seconds['nimare']:.0f} s)"
        request.config.stash[ROWS].append((benchmark.name, f"{seconds['ours']:.0f} s", text))
