"""Baselines and the results of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from atlas.data.dataset import Dataset
from atlas.data.prepare import Settings, prepare
from atlas.errors import AtlasError
from atlas.evaluation import report
from atlas.evaluation.baselines import PCA, MeanMap, Ridge
from atlas.evaluation.evaluate import below_baselines, evaluate, find_dataset
from atlas.evaluation.example import example_counterfactual
from atlas.evaluation.table import print_table
from atlas.inference import Atlas

RNG = np.random.default_rng(0)


def test_pca_is_numpys() -> None:
    train, test = (
        RNG.normal(size=(60, 40)) @ np.diag(0.8 ** np.arange(40)),
        RNG.normal(size=(5, 40)),
    )
    centred = train - train.mean(0)
    _, _, vt = np.linalg.svd(centred, full_matrices=False)
    expected = train.mean(0) + (test - train.mean(0)) @ vt[:6].T @ vt[:6]
    assert np.allclose(PCA(train, 6).reconstruct(test), expected, atol=1e-3)


def test_ridge_finds_a_linear_effect_and_fills_gaps() -> None:
    m, weights = RNG.normal(size=(400, 3)), RNG.normal(size=(3, 10))
    observed = np.ones_like(m)
    fit = Ridge(m, observed, m @ weights + 1, alpha=1e-6)
    assert np.allclose(fit.predict(m[:4], observed[:4]), m[:4] @ weights + 1, atol=1e-3)
    nothing = fit.predict(m[:1], 0 * observed[:1])
    assert np.allclose(nothing, (m @ weights + 1).mean(0), atol=1e-3)


def test_the_mean_map_is_the_mean() -> None:
    train = RNG.normal(size=(5, 7))
    assert np.allclose(MeanMap(train).predict(3), np.stack([train.mean(0)] * 3))


def test_lost_comparisons_are_named() -> None:
    methods = {
        "atlas": {"r": [0.3, 0, 1], "mse": [0.2, 0, 1]},
        "PCA": {"r": [0.4, 0, 1], "mse": [0.1, 0, 1]},
        "mean map": {"r": [0.1, 0, 1], "mse": [0.3, 0, 1]},
    }
    assert below_baselines(methods) == {"PCA": ["r", "mse"]}


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, bundled: Dataset, tmp_path_factory: pytest.TempPathFactory):
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluated") / "run"))
    return run, evaluate(run, bundled, "val", samples=4)


def test_results_hold_every_measure(evaluated) -> None:
    run, results = evaluated
    assert json.loads((run / "val_results.json").read_text()) == results
    assert results["studies"] == 48 and results["year"] is None
    assert list(results["methods"]) == ["atlas", "mean map", "PCA-8", "ridge"]
    for name, scores in results["methods"].items():
        measures = {"r", "ssim", "mse", "rmse", "psnr", "bits_half"}
        assert measures <= set(scores) <= measures | {"bits_unseen"}, name
        for mean, low, high in scores.values():
            assert low <= mean <= high
    latent = results["latent"]
    assert 0 <= latent["active_units"] <= 8 and latent["kl_nats"] >= 0
    assert sum(latent["kl_by_direction"]) == pytest.approx(latent["kl_nats"], abs=0.01)
    assert 0.3 < results["methods"]["mean map"]["bits_half"][0] < 0.9


def test_the_table_says_what_is_below_a_baseline(evaluated, capsys) -> None:
    _, results = evaluated
    print_table(results)
    said = capsys.readouterr().out
    assert "no year in this data set" in said and "below " in said
    for method in results["methods"]:
        assert method in said


def test_the_report_is_one_page_with_pictures(evaluated, bundled: Dataset) -> None:
    run, results = evaluated
    page = report.write(run, results, bundled).read_text()
    assert page.count("<img") >= 3 and "data:image/png;base64" in page
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_the_example_counterfactual_moves_the_task(tiny_run: Path, bundled: Dataset) -> None:
    result, study, changes = example_counterfactual(Atlas.load(tiny_run), bundled, "test")
    assert study in bundled.splits["test"]
    assert changes == {"task": {"attention_control": 1.0}}
    assert result.difference.shape == (46, 55, 46)


def test_another_dataset_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    other = prepare(Settings(seed=3), tmp_path / "other")
    with pytest.raises(AtlasError, match="was trained on another dataset"):
        evaluate(tiny_run, other)


def test_a_run_leads_to_its_dataset(tiny_run: Path, bundled: Dataset, tmp_path: Path) -> None:
    assert find_dataset(tiny_run).fingerprint == bundled.fingerprint
    with pytest.raises(AtlasError, match="does not say which dataset it used; give --data"):
        find_dataset(tmp_path)
