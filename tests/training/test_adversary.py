"""The year adversary on the bundled studies with a planted year."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas import config, model_file
from atlas.contracts import Study
from atlas.data import dataset as folder
from atlas.data.dataset import Dataset
from atlas.data.sources import Provenance
from atlas.evaluation.evaluate import Split, evaluate, year_accuracy
from atlas.training.run import train

PLACES = np.random.default_rng(7).uniform([-50, -90, -30], [50, 50, 60], (10, 3))
SETTINGS = [
    "train.epochs=4", "train.batch=8", "train.lr=4e-3", "model.latent=16",
    "kl.beta=0.01", "kl.target=15", "objective.hide=0", "year.weight=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def planted(bundled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Give every study a year, and every year's studies five peaks at a place of their own."""
    rng = np.random.default_rng(0)
    studies = []
    for row, study_id in enumerate(bundled.ids):
        decade = int(rng.integers(10))
        extra = PLACES[decade] + rng.normal(0, 4, (5, 3))
        peaks = np.concatenate([bundled.peaks(row).astype(float), extra])
        metadata = {**bundled.metadata[row], "year": 1998.0 + 2 * decade}
        studies.append(Study(study_id, "", peaks, ("MNI",) * len(peaks), metadata))
    path = tmp_path_factory.mktemp("planted") / "data"
    provenance = Provenance("planted", "1", "none", {})
    return folder.write(path, studies, bundled.splits, provenance, funnel={})


@pytest.mark.slow
def test_the_adversary_reads_a_planted_year_until_its_gradient_is_reversed(
    planted: Dataset, tmp_path: Path
) -> None:
    accuracy = {}
    for name, ramp in (("plain", "[1, 1]"), ("reversed", "[0, 0.2]")):
        settings = [*SETTINGS, f"year.ramp={ramp}"]
        run = train(config.load("smoke", settings), planted, tmp_path / name)
        model, card = model_file.read(run)
        year = year_accuracy(model, card, *(Split(planted, s, card) for s in ("train", "test")))
        assert year is not None and year["chance"] == pytest.approx(0.1, abs=0.02)
        accuracy[name] = year["balanced_accuracy"]
    assert accuracy["plain"] > 0.3, accuracy
    assert accuracy["reversed"] < 0.5 * accuracy["plain"], accuracy


def test_bins_follow_the_planted_years(planted: Dataset) -> None:
    from atlas.training.datamodule import AtlasDataModule

    data = AtlasDataModule(planted, config.load("smoke"))
    assert len(data.year_edges) == 9
    batch = next(iter(data.val_dataloader()))
    assert set(batch.year_bin_B.tolist()) <= set(range(10))
    observed = batch.observed_BM[:, planted.fields.slices["year"]]
    assert observed.all()


@pytest.mark.slow
def test_an_ordinal_head_trains_is_kept_in_the_card_and_is_scored(
    planted: Dataset, tmp_path: Path
) -> None:
    settings = ["train.epochs=1", "year.head=ordinal"]
    run = train(config.load("smoke", settings), planted, tmp_path / "ordinal")
    model, card = model_file.read(run)
    assert card.year_head == "ordinal"
    assert model.year is not None and model.year[-1].out_features == 9
    results = evaluate(run, planted, samples=1, baseline=run, unreversed=run)
    year = results["year"]
    assert year is not None and 0 <= year["balanced_accuracy"] <= 1
    beside = year.pop("without_reversal")
    assert beside == year and set(year["probes"]) == set(year["probes_drawn"])
    against = [c for c in results["criteria"] if c["name"].endswith("against the baseline VAE")]
    assert [c["pass"] for c in against] == [False, False]  # no better than itself
