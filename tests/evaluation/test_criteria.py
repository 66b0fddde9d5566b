"""Imputation, uncertainty and the mission's criteria, on cases with a known answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from atlas import model_file
from atlas.data.dataset import Dataset
from atlas.evaluation import criteria, task_effect
from atlas.evaluation.evaluate import Split, evaluate
from atlas.evaluation.imputation import gaussian_scores, impute_hidden
from atlas.evaluation.uncertainty import LEVELS, covered
from atlas.inference import Atlas

RNG = np.random.default_rng(0)


def test_gaussian_scores_know_a_calibrated_prediction() -> None:
    mean = RNG.normal(size=(4000, 1))
    true = mean + 0.5 * RNG.normal(size=mean.shape)
    good = gaussian_scores(true, mean, np.full_like(mean, 0.25))
    assert good["r2"][0] == pytest.approx(1 - 0.25 / 1.25, abs=0.02)
    assert good["nll"][0] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 0.25), abs=0.03)
    assert good["coverage_90"][0] == pytest.approx(0.9, abs=0.015)
    sure = gaussian_scores(true, mean, np.full_like(mean, 0.01))
    assert sure["nll"][0] > good["nll"][0] and sure["coverage_90"][0] < 0.4
    assert gaussian_scores(0 * true, mean, 1 + 0 * mean)["r2"] is None


def test_coverage_is_that_of_a_normal_error() -> None:
    error = torch.from_numpy(RNG.normal(size=(3, 20000)))
    assert torch.allclose(
        covered(2 * error, torch.full_like(error, 2)).mean(0), torch.tensor(LEVELS), atol=0.01
    )
    assert (covered(2 * error, torch.ones_like(error))[:, 2] < 0.65).all()


def test_permutations_find_an_effect_and_only_one_that_is_there() -> None:
    members = np.arange(300) < 40
    values = RNG.normal(size=300)
    assert task_effect.permutation_p(values + members, members, 500) < 0.01
    assert task_effect.permutation_p(values - members, members, 500) > 0.95
    assert task_effect.permutation_p(np.full(300, 0.1), members, 500) == 1
    null = [task_effect.permutation_p(RNG.normal(size=300), members, 200) for _ in range(60)]
    assert np.mean(np.array(null) < 0.2) == pytest.approx(0.2, abs=0.15)


def test_all_categories_must_move() -> None:
    effects = {"memory": {"moved": 0.1, "p": 0.01}, "language": {"moved": 0.1, "p": 0.2}}
    said, passed = task_effect.summary(effects, 0.02, 0.05)
    assert said == "1 of 2 categories; not language" and not passed
    effects["language"]["p"] = 0.01
    assert task_effect.summary(effects, 0.02, 0.05)[1]
    effects["memory"]["moved"] = 0.001
    assert not task_effect.summary(effects, 0.02, 0.05)[1]


def results_of(mse: float, bits: float, kl: float, year: object = None) -> dict[str, object]:
    methods = {"atlas": {"mse": [mse, 0, 1], "bits_half": [bits, 0, 1]}}
    return {"methods": methods, "latent": {"kl_nats": kl}, "year": year}


def judged(atlas: Atlas, ours: dict, baseline: dict | None = None) -> list[bool | None]:
    return [c["pass"] for c in criteria.judge(atlas, ours, None, baseline)]


def test_criteria_against_a_baseline_and_chance(tiny_run: Path) -> None:
    atlas = Atlas.load(tiny_run)
    year = {"balanced_accuracy": 0.15, "chance": 0.1}
    better = judged(atlas, results_of(0.1, 1.3, 20, year), results_of(0.2, 1.0, 20))
    assert better[:3] == [True, True, True]
    year["balanced_accuracy"] = 0.3
    worse = judged(atlas, results_of(0.3, 0.9, 20, year), results_of(0.2, 1.0, 20))
    assert worse[:3] == [False, False, False]
    alone = criteria.judge(atlas, results_of(0.1, 1.0, 20), None)
    assert [c["pass"] for c in alone[:3]] == [None, None, None]
    rates = criteria.judge(atlas, results_of(0.1, 1.3, 40), None, results_of(0.2, 1.0, 20))
    assert "KL 40.0 and 20.0 nats: not within 10 %" in rates[0]["value"]


def with_year(atlas: Atlas) -> Atlas:
    """Return the model as one that was trained on 1997 to 2018."""
    used = dict(atlas.card.used, year=model_file.FieldUse(studies=9, low=1997, high=2018))
    return Atlas(atlas._model, atlas.card.model_copy(update={"used": used}))


def test_years_outside_of_training_must_be_said(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Atlas.load(tiny_run)
    atlas = with_year(bare)
    assert criteria._years(bare)["pass"] is None
    found = criteria._years(atlas)
    assert found["pass"] and found["value"] == "trained on 1997 to 2018"
    monkeypatch.setattr(Atlas, "extrapolated", lambda self, m: ())
    silent = criteria._years(atlas)
    assert not silent["pass"] and silent["value"].endswith("wrong: 1990, 2030")


def test_missing_metadata_criterion_can_fail(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = Atlas.load(tiny_run)
    assert criteria._missing(atlas)["pass"]
    decode = Atlas.decode_array

    def broken(self, z=None, metadata=None, quantity="mean"):
        array, imputed = decode(self, z, metadata, quantity)
        return (array if metadata else array * np.nan), imputed

    monkeypatch.setattr(Atlas, "decode_array", broken)
    assert not criteria._missing(atlas)["pass"]


def test_hidden_fields_are_hidden(tiny_run: Path, bundled: Dataset) -> None:
    model, card = model_file.read(tiny_run)
    batches = list(Split(bundled, "val", card).whole)
    before = impute_hidden(model, card, batches)
    assert set(before) <= set(card.table().names) and "fwhm" not in before and "task" in before
    part = card.table().slices["task"]
    shifted = [b._replace(metadata_BM=b.metadata_BM.clone()) for b in batches]
    for batch in shifted:  # another truth must change the error, never the prediction
        batch.metadata_BM[:, part] += 100
    after = impute_hidden(model, card, shifted)["task"]
    assert after["r2"][0] < before["task"]["r2"][0] - 10
    others = {name: scores for name, scores in before.items() if name != "task"}
    assert all(scores["studies"] > 0 for scores in others.values())


def test_evaluate_prints_criteria(
    tiny_run: Path, bundled: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from atlas.evaluation.table import print_table

    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    results = evaluate(run, bundled, "val", samples=1, baseline=run)
    assert set(results["uncertainty_coverage"]) == {"50", "80", "90", "95"}
    print_table(results)
    said = capsys.readouterr().out
    # A model is not better than itself, and the bundled studies have no year.
    assert said.count("FAIL  held-out") == 2 and "n/a   year adversary" in said
    assert "PASS  missing metadata" in said and "90 % interval covers" in said
