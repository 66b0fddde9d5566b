"""Planted effects: the simulation is what it says, and a trained model finds what was planted."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from atlas import space
from atlas.data.dataset import Dataset
from atlas.evaluation import planted
from atlas.evaluation.planted import recover
from atlas.evaluation.simulation import (
    EFFECTS,
    RESOLUTION,
    YEAR_EFFECTS,
    Design,
    Truth,
    simulate,
)

HERE = space.load(RESOLUTION)
PLANTED = ("task: language", "field_strength")
NULL = ("task: visual", "task: emotion", "year", "n", "age")
SOAK = os.environ.get("ATLAS_SOAK") == "1"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Truth]:
    return simulate(tmp_path_factory.mktemp("planted") / "data", Design(studies=160, peaks=200))


def test_it_is_an_ordinary_dataset_and_the_same_every_time(small, tmp_path: Path) -> None:
    dataset, _ = small
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 112, "val": 24, "test": 24}
    assert dataset.coverage()["topics"] == 0 and dataset.coverage()["n_peaks"] == 160
    again, _ = simulate(tmp_path / "again", Design(studies=160, peaks=200))
    other, _ = simulate(tmp_path / "other", Design(studies=160, peaks=200, seed=1))
    assert again.fingerprint == dataset.fingerprint != other.fingerprint


def test_peaks_lie_anywhere_in_cells_of_the_mask(small) -> None:
    dataset, _ = small
    cells, lost = HERE.cells(dataset.peaks_mm)
    assert not lost.any()
    within = dataset.peaks_mm - HERE.centres_mm[cells]
    assert np.abs(within).max() <= 2 and np.allclose(within.std(0), 4 / 12**0.5, atol=0.03)


def test_peaks_follow_the_intensity(small) -> None:
    """The likelihood of the drawn peaks is what their own densities promise."""
    dataset, truth = small
    found, expected = [], []
    for row, study_id in enumerate(dataset.ids):
        p = truth.density(study_id, dataset.metadata[row])
        cells, _ = HERE.cells(dataset.peaks(row))
        found += np.log(p[cells]).tolist()
        expected += [float(p @ np.log(p))] * len(cells)
    error = np.array(found) - expected
    assert abs(error.mean()) < 4 * error.std() / len(error) ** 0.5


def test_the_number_of_peaks_grows_with_the_sample_size(small) -> None:
    dataset, _ = small
    n = np.log([m["n"] for m in dataset.metadata])
    peaks = np.log(np.diff(dataset.offsets))
    assert np.polyfit(n, peaks, 1)[0] == pytest.approx(0.5, abs=0.06)


def test_effects_are_where_they_were_planted_and_nowhere_else(small) -> None:
    dataset, truth = small
    m = dataset.metadata[0]
    motor, language = ({**m, "task": {name: 1.0}} for name in ("motor", "language"))
    change = truth.effect(language) - truth.effect(motor)
    for effect in EFFECTS[:2]:
        cell = HERE.cells(np.array([effect.place_mm]))[0][0]
        assert change[cell] == pytest.approx(effect.gain, rel=0.1)
    far = np.min([np.linalg.norm(HERE.centres_mm - e.place_mm, axis=1) for e in EFFECTS[:2]], 0)
    assert np.abs(change[far > 60]).max() < 1e-3
    for name, value in (("year", 2017.0), ("n", 90.0), ("age", 60.0)):
        assert np.array_equal(truth.effect({**m, name: value}), truth.effect(m))
    stronger = truth.effect({**m, "field_strength": 4.0}) - truth.effect(
        {**m, "field_strength": 3.0}
    )
    assert stronger.max() == pytest.approx(EFFECTS[2].gain, rel=0.1)


def test_a_planted_year_has_a_place_of_its_own() -> None:
    truth = Truth(Design(effects=YEAR_EFFECTS, variation=0))
    tops = {int(truth.effect({"year": float(year)}).argmax()) for year in range(1998, 2018)}
    assert len(tops) == 10
    assert not truth.effect({"year": None}).any() and not truth.effect({}).any()


class Oracle:
    """An atlas that knows the truth: the code is the study, and metadata act as planted."""

    def __init__(self, dataset: Dataset, truth: Truth, deaf: bool = False) -> None:
        self._ids = {dataset.peaks(row).tobytes(): study for row, study in enumerate(dataset.ids)}
        self._truth, self._deaf = truth, deaf

    def usable(self, m):
        return {name: value for name, value in m.items() if value is not None}

    def encode(self, peaks: np.ndarray, m: dict) -> str:
        return self._ids[peaks.tobytes()]

    def counterfactual(self, code: str, m: dict, changes: dict):
        densities = [self._truth.density(code, m)] * 2
        if not self._deaf:
            densities[1] = self._truth.density(code, {**m, **changes})
        factual, counterfactual = (
            SimpleNamespace(mean=HERE.image(HERE.volume(p * len(p)))) for p in densities
        )
        return SimpleNamespace(factual=factual, counterfactual=counterfactual)


def test_the_truth_is_recovered_whole(small) -> None:
    found = recover(Oracle(*small), *small, most=3)
    assert set(found) == {*PLANTED, *NULL}
    for name in PLANTED:
        one = found[name]
        assert one.r > 0.9999 and one.r_log > 0.9999 and one.slope == pytest.approx(1, abs=1e-3)
        assert one.size == pytest.approx(one.planted, rel=1e-3) and one.size > one.band
        assert 0.3 < one.r_subtraction < 0.99
    for name in NULL:
        assert found[name].planted == found[name].size == 0 < found[name].band
        assert np.isnan(found[name].r)


def test_a_model_deaf_to_metadata_recovers_nothing(small) -> None:
    found = recover(Oracle(*small, deaf=True), *small, most=2)
    for name in PLANTED:
        assert found[name].r == found[name].slope == found[name].size == 0


def test_subtraction_leaves_the_band_where_an_effect_was_planted_alone(small) -> None:
    """The band is that of chance: of seven contrasts the planted two lie far outside."""
    dataset, _ = small
    smoothed, counts = planted._smoothed(dataset)
    share = {}
    for contrast in planted.contrasts(dataset):
        difference, band = planted._subtract(smoothed, counts, contrast)
        share[contrast.name] = np.sqrt(np.square(difference).mean()) / band
    assert min(share[name] for name in PLANTED) > 1.2, share
    assert max(share[name] for name in NULL) < 1.2, share


def checked(results: dict, weakest: float) -> None:
    """The stronger effect at 0.9, the weaker at `weakest`, right in size; nothing elsewhere."""
    found = results["contrasts"]
    for name, least in (("task: language", 0.9), ("field_strength", weakest)):
        assert found[name]["r"] >= least, (name, found[name])
        assert found[name]["size"] > found[name]["band"], (name, found[name])
        assert 0.5 < found[name]["slope"] < 1.3, (name, found[name])
    assert found["task: language"]["r"] > found["task: language"]["r_subtraction"], found
    for name in NULL:
        assert found[name]["size"] <= found[name]["band"], (name, found[name])


def test_a_small_model_finds_what_was_planted_and_nothing_else(tmp_path: Path) -> None:
    """336 training studies: half a minute of one core."""
    from atlas.training.run import train

    design = Design(studies=480, peaks=400)
    checked(planted.run(tmp_path, train, design, ["train.epochs=5"]), weakest=0.8)


@pytest.mark.slow
@pytest.mark.skipif(not SOAK, reason="1,600 studies: make soak")
def test_a_model_finds_what_was_planted_and_nothing_else(tmp_path: Path) -> None:
    from atlas.training.run import train

    checked(planted.run(tmp_path, train), weakest=0.9)


@pytest.mark.slow
@pytest.mark.skipif(not SOAK, reason="two trainings: make soak")
def test_the_reversal_takes_a_planted_year_out_of_the_codes(tmp_path: Path) -> None:
    from atlas.training.run import train

    found = planted.year_reversal(tmp_path, train)
    read = {
        run: max(p["balanced_accuracy"][0] for p in scores["year"]["probes_drawn"].values())
        for run, scores in found.items()
    }
    assert read["without"] > 0.25, read
    assert read["with"] - 0.1 < 0.5 * (read["without"] - 0.1), read
