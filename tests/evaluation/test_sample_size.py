"""The sample-size task: ridge and the head on planted data, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.optimize import check_grad

from atlas.cli.bench import impute
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.evaluation import sample_size as task


def planted(studies: int = 600) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Effects in 2 of 3 groups of features; noise that grows with the first feature."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(studies, k)) for k in (2, 20, 40)]
    line = 0.5 * groups[0][:, 0] + groups[1] @ rng.normal(0, 0.1, 20)
    y = 3 + line + np.exp(0.6 * groups[0][:, 0] - 1) * rng.normal(size=studies)
    return groups, y, rng.permutation(studies) % 10


def test_the_evidence_has_its_gradient() -> None:
    groups, y, _ = planted(80)
    x, group = np.concatenate(groups, axis=1), np.repeat([0, 1, 2], [2, 20, 40])
    arguments = (x.T @ x, x.T @ y, y @ y, group, len(y))
    at = np.array([-2.0, -3.0, -5.0, -0.5])
    error = check_grad(
        lambda t: task._evidence(t, *arguments)[0], lambda t: task._evidence(t, *arguments)[1], at
    )
    assert error < 1e-3 * np.abs(task._evidence(at, *arguments)[1]).max()


def test_left_out_residuals_are_those_of_fits_without() -> None:
    groups, y, _ = planted(60)
    x = np.concatenate(groups, axis=1)
    fit = task.fit_mean(groups, y)
    prior = np.linalg.inv(fit.covariance) - (x - x.mean(0)).T @ (x - x.mean(0)) / fit.noise
    quick = fit.leave_one_out(x, y)
    for k in (0, 17, 59):
        rest = np.arange(60) != k
        d = x[rest] - x[rest].mean(0)
        w = np.linalg.solve(d.T @ d / fit.noise + prior, d.T @ (y[rest] - y[rest].mean()))
        slow = y[k] - y[rest].mean() - (x[k] - x[rest].mean(0)) @ (w / fit.noise)
        assert quick[k] == pytest.approx(slow, rel=1e-6)


def test_the_head_beats_ridge_where_noise_varies() -> None:
    groups, y, folds = planted()
    head = task.scores(y, task.head_folds(groups, y, folds))
    ridge = task.scores(y, task.ridge_folds(np.concatenate(groups, axis=1), y, folds))
    assert head["r2"][0] > ridge["r2"][0] > 0.2
    assert head["nll"][0] < ridge["nll"][0] - 0.1
    assert 0.86 < head["coverage_90"][0] < 0.94


def test_folds_do_not_leak() -> None:
    groups, _, folds = planted(300)
    noise = np.random.default_rng(1).normal(size=300)
    found = task.scores(noise, task.head_folds(groups, noise, folds))
    assert found["r2"][0] < 0.03


@pytest.fixture
def labelled(tmp_path: Path, bundled: Dataset) -> Path:
    path = tmp_path / "folds.csv"
    lines = [f"{study},{20 + k % 30},hand,{k % 4}" for k, study in enumerate(bundled.ids[:150])]
    path.write_text("\n".join(["pmid,n,source,fold", *lines, "nowhere,9,hand,0"]))
    return path


def test_a_dataset_without_year_and_topics_is_refused(
    tiny_run: Path, bundled: Dataset, labelled: Path
) -> None:
    with pytest.raises(AtlasError, match="only 0 of its studies"):
        task.of_run(tiny_run, labelled, bundled)


def test_the_command_scores_a_run(
    tiny_run: Path, bundled: Dataset, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    names = bundled.fields["topics"].categories
    for row, metadata in enumerate(bundled.metadata[:150]):
        weights = rng.dirichlet(np.ones(len(names)))
        monkeypatch.setitem(metadata, "year", 2000.0 + row % 15)
        monkeypatch.setitem(metadata, "topics", dict(zip(names, map(float, weights))))
    monkeypatch.setattr("atlas.evaluation.evaluate.find_dataset", lambda run: bundled)
    options = [str(tiny_run), "--folds", str(labelled)]
    done = CliRunner().invoke(impute, [*options, "--json"], catch_exceptions=False)
    results = json.loads(done.output)
    assert results["studies"] == 150 and results["absent"] == 1 and results["folds"] == 4
    assert len(results["methods"]) == 3
    table = CliRunner().invoke(impute, options, catch_exceptions=False).output
    assert "150 labelled studies in 4 folds, 1 not in the dataset" in table


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "no table of pmid, n, fold"),
        ("pmid,n,fold\n1,20,0\n1,20,1\n", "a pmid occurs twice"),
        ("pmid,n,fold\n1,0,0\n", "n must be a number above 0"),
        ("pmid,n,fold\n1,many,0\n", "no table of pmid, n, fold"),
    ],
)
def test_bad_label_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(AtlasError, match=said):
        task._read_labels(path)
