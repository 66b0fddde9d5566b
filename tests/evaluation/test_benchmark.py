"""The benchmark: its rules, its peers, and any predictor beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from atlas import metrics, space
from atlas.data.dataset import Dataset
from atlas.data.prepare import Settings
from atlas.errors import AtlasError
from atlas.evaluation import benchmark, peers, reconstruction
from atlas.evaluation.protocol import Benchmark, Given, halve, region_draws, smooth
from atlas.evaluation.reconstruction import RatePCA
from atlas.evaluation.run_predictor import RunPredictor
from tests.support import (
    go_on_after,
    one_line_error,
    require_neurosynth,
    require_splits,
    run_atlas,
)

V = space.load(4).n_cells
RNG = np.random.default_rng(0)


class Knowing:
    """Knows every study's peaks; shown the metadata alone, it looks them up."""

    name = "knowing"

    def __init__(self, bench: Benchmark) -> None:
        rows = np.arange(len(bench.dataset))
        self._row, self._counts = bench.dataset.row, bench.counts(rows, "all")

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        counts = self._counts[[self._row[s.id] for s in studies]].toarray() + 1e-6
        return np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32)


class Flat:
    """The uniform density."""

    name = "flat"

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        return np.full((len(studies), V), -np.log(V), np.float32)


@pytest.fixture(scope="module")
def bench(bundled: Dataset) -> Benchmark:
    return Benchmark(bundled)


@pytest.fixture(scope="module")
def results(bundled: Dataset, bench: Benchmark) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "_SSIM_STUDIES", 6)  # most of the time
        return benchmark.run(bundled, [Knowing(bench), Flat()], split="val")


# ---------------------------------------------------------------------- the rules


def test_halves_are_the_generators_and_any_id_has_them() -> None:
    order = np.random.default_rng([77, 9065511]).permutation(5)
    assert np.flatnonzero(halve("9065511", 5)).tolist() == sorted(order[:3].tolist())
    for name in ("pain-17", "①", ""):
        assert halve(name, 9).sum() == 5
        assert np.array_equal(halve(name, 9), halve(name, 9))
    assert not np.array_equal(halve("pain-17", 40), halve("pain-18", 40))


def test_a_model_is_shown_what_its_task_allows(bench: Benchmark) -> None:
    rows = bench.rows("val")
    for row, a, b, c in zip(rows, *(bench.show(rows, task) for task in ("a", "b", "c"))):
        assert a.id == bench.dataset.ids[row] and len(a.peaks_mm) == 0
        assert len(b.peaks_mm) == (bench.sizes[row] + 1) // 2
        assert len(c.peaks_mm) == bench.sizes[row] == c.metadata.pop("n_peaks") >= 5
        assert a.metadata == b.metadata == c.metadata
        assert set(a.metadata) <= {"task", "topics", "year"}


def test_the_halves_are_the_whole(bench: Benchmark) -> None:
    rows = bench.rows("train")
    given, hidden = bench.counts(rows, "given"), bench.counts(rows, "hidden")
    assert abs(given + hidden - bench.counts(rows, "all")).max() == 0
    shown = peers.cells_of(bench.show(rows, "b"))
    assert abs(shown - given).max() == 0


@pytest.mark.parametrize("fwhm", [6.0, 10.0, 16.0])
def test_smoothing_keeps_mass_and_is_the_gaussian(fwhm: float) -> None:
    here = space.load(4)
    cells = [0, 15000, V - 1]
    one = sparse.csr_matrix((np.ones(3), ([0, 1, 2], cells)), shape=(3, V))
    maps = smooth(one, fwhm)
    for cell, got in zip(cells, maps):
        d2 = np.square(here.centres_mm - here.centres_mm[cell]).sum(1)
        sigma = fwhm / np.sqrt(8 * np.log(2))
        kernel = np.exp(-d2 / (2 * sigma**2)) * (d2 <= (3.5 * sigma) ** 2)
        assert np.allclose(got, kernel / kernel.sum(), atol=1e-6)
    dense = smooth(one.toarray(), fwhm)
    assert np.allclose(dense.sum(1), 1, atol=1e-4)
    assert np.abs(dense - maps).max() < 0.02 * maps.max()


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    density, counts = RNG.integers(0, 9, (3, 50)) / 9.0, RNG.poisson(0.3, (3, 50))
    counts[2] = 0
    for d, c, got in zip(density[:2], counts, metrics.peak_auc(density, counts)):
        own = np.repeat(d, c)[:, None]
        assert got == pytest.approx(((d < own) + 0.5 * (d == own)).mean())
    assert np.isnan(metrics.peak_auc(density, counts)[2])


# ---------------------------------------------------------------------- peers and predictors


def test_every_peer_runs_and_the_ranking_makes_sense(results: dict) -> None:
    bits = {t: {n: row["bits"][0] for n, row in results["tasks"][t]["peers"].items()} for t in "ab"}
    assert list(bits["a"]) == [
        "uniform", "mean map", "category mean", "kNN on topics", "ridge on topics",
        "topic mixture", "stack",
    ]  # fmt: skip
    assert bits["a"]["uniform"] == 0
    assert 0.3 < bits["a"]["mean map"] < 0.9
    # Chosen on the split that is scored here, so a richer row cannot lose.
    assert bits["a"]["stack"] >= max(bits["a"].values()) - 0.01
    assert len(bits["b"]) == 7
    assert bits["b"]["own kernel density + topics"] > bits["b"]["topics only"]
    assert bits["b"]["stack"] >= max(bits["b"].values()) - 0.01


def test_knowing_the_peaks_beats_all_and_knowing_nothing_is_worth_nothing(results: dict) -> None:
    for task in "ab":
        found = results["tasks"][task]
        best = max(row["bits"][0] for row in found["peers"].values())
        assert found["runs"]["knowing"]["bits"][0] > best + 3
        assert found["runs"]["flat"]["bits"] == [0, 0, 0]
        assert found["runs"]["flat"]["auc"] == [0.5, 0.5, 0.5]
        for peer, gain in found["runs"]["knowing"]["gain"].items():
            difference = found["runs"]["knowing"]["bits"][0] - found["peers"][peer]["bits"][0]
            assert gain[0] == pytest.approx(difference, abs=1e-3)


def test_reconstruction_improves_with_components_and_rate(results: dict) -> None:
    found = results["tasks"]["c"]
    for fwhm in ("10", "16"):
        r = {name: row[f"r {fwhm}"][0] for name, row in found["peers"].items()}
        assert r["mean map"] < r["PCA-16"] < r["PCA-32"] < r["PCA-64"]
        assert r["mean map"] < r["PCA at 8 nats"] < r["PCA at 40 nats"] < r["PCA-64"]
        for rate in (8, 20, 40):  # the split that the quantiser was fitted to is the one scored
            assert found["peers"][f"PCA at {rate} nats"][f"nats {fwhm}"] == pytest.approx(rate, 0.2)
        knowing = found["runs"]["knowing"]
        assert knowing[f"r {fwhm}"][0] > 0.97 and knowing[f"smoothed {fwhm}"] == float(fwhm)
        assert knowing[f"ssim {fwhm}"][0] > 0.9


def test_a_finer_quantiser_costs_more_and_errs_less() -> None:
    codes = RNG.normal(size=(3000, 4)) * [8, 4, 1, 0.01]
    errors = []
    for rate in (0.5, 2.0, 6.0):
        channel = RatePCA(codes[:2000], rate)
        assert channel.rate(codes[:2000]).mean() == pytest.approx(rate, abs=0.02)
        assert channel.rate(codes[2000:]).mean() == pytest.approx(rate, abs=0.2)
        errors.append(np.square(channel.receive(codes[2000:]) - codes[2000:]).sum(1).mean())
    assert errors == sorted(errors, reverse=True)
    # No code beats the Gaussian's rate-distortion function (Cover & Thomas, 10.3).
    water = 0.5 * np.log(np.maximum(np.array([64, 16, 1]) / (errors[-1] / 3.0), 1)).sum()
    assert water < 6.0


def test_a_run_takes_part(tiny_run: Path, bundled: Dataset, bench: Benchmark) -> None:
    run = RunPredictor(tiny_run, samples=2)
    rows = bench.rows("val")[:40]
    unseen, half = (run.predict(bench.show(rows, task)) for task in ("a", "b"))
    for log_density in (unseen, half):
        assert log_density.shape == (40, V) and log_density.dtype == np.float32
        assert np.allclose(np.exp(log_density).sum(1), 1, atol=1e-3)
    assert not np.allclose(unseen, half)
    assert np.array_equal(half, run.predict(bench.show(rows, "b")))
    mixed = run.predict([bench.show(rows[:1], "b")[0], bench.show(rows[:1], "a")[0]])
    assert np.array_equal(mixed[1], run.predict(bench.show(rows[:1], "a"))[0])
    assert run.rate(bench.show(rows, "c")).shape == (40,) and run.latent == 8


def test_a_studys_figure_does_not_depend_on_its_neighbours(
    tiny_run: Path, bench: Benchmark
) -> None:
    run, rows = RunPredictor(tiny_run, samples=8), bench.rows("val")[:33]  # two batches
    for task in ("a", "b"):
        shown = bench.show(rows, task)
        together = run.predict(shown)
        assert np.allclose(together[[32]], run.predict([shown[32]]), atol=1e-4)
        assert np.allclose(together[::-1], run.predict(shown[::-1]), atol=1e-4)
    region = np.arange(V) % 7
    drawn = run.samples(shown, region, 3)
    assert drawn.shape == (33, 3, 7) and np.allclose(drawn.sum(2), 1, atol=1e-4)
    assert np.allclose(drawn[[32]], run.samples([shown[32]], region, 3), atol=1e-5)
    assert np.abs(drawn[:, 0] - drawn[:, 1]).max() > 1e-5


def test_counts_in_regions(results: dict, bench: Benchmark) -> None:
    found = results["tasks"]["d"]
    assert found["studies"] + found["recalibrated_on"] == len(bench.rows("val"))
    assert len(found["regions"]["mass"]) == 100
    rows = {**found["peers"], **found["runs"]}
    assert list(rows) == [
        "mean map", "topic mixture", "ridge half to half", "knowing", "flat",
    ]  # fmt: skip
    for row in rows.values():
        assert np.allclose(sum(row["pit"]), 1, atol=1e-3)
        assert sum(group["pairs"] for group in row["lobe"].values()) == 100 * found["studies"]
    # It looks up all peaks: better than what is merely right on average.
    assert rows["knowing"]["log_score"][0] < 0.8 * rows["mean map"]["log_score"][0]
    assert rows["knowing"]["gain"]["crps"][1] > 0 and rows["mean map"]["gain"]["crps"] == [0, 0, 0]


def test_samples_are_checked(bench: Benchmark) -> None:
    class Vague(Flat):
        def samples(self, studies: Sequence[Given], region: np.ndarray, count: int) -> np.ndarray:
            return np.full((len(studies), count, 5), 0.3)

    shown, region = bench.show(bench.rows("val")[:2], "d"), np.arange(V) % 5
    assert np.allclose(region_draws(Flat(), shown, region, 9), 0.2, atol=1e-3)
    assert region_draws(Flat(), shown, region, 9).shape == (2, 1, 5)
    with pytest.raises(AtlasError, match="flat: samples"):
        region_draws(Vague(), shown, region, 9)


# ---------------------------------------------------------------------- the command


def test_the_command_prints_runs_under_peers(
    tiny_run: Path, bundled: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    done = run_atlas(
        "bench", "predict", tiny_run, "--data", bundled.path, "--tasks", "a", "--split", "val",
        "--samples", 1, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    where = {n: k for k, line in enumerate(lines) for n in ("topic mixture", "tiny ") if n in line}
    assert where["tiny "] > where["topic mixture"]
    assert list(json.loads(out.read_text())["tasks"]["a"]["runs"]) == ["tiny"]


def test_mistakes_are_one_line(tiny_run: Path, bundled: Dataset, tmp_path: Path) -> None:
    data = ("--data", bundled.path)
    assert "'e'" in one_line_error(run_atlas("bench", "predict", *data, "--tasks", "a,e"))
    missing = run_atlas("bench", "predict", tmp_path / "no", *data)
    assert "model.json" in one_line_error(missing)
    twice = run_atlas("bench", "predict", tiny_run, tiny_run, *data)
    assert "two runs are called tiny" in one_line_error(twice)
    named = Path(shutil.copytree(tiny_run, tmp_path / "mean map"))
    assert "rename" in one_line_error(run_atlas("bench", "predict", named, *data, "--tasks", "a"))
    assert "no such dataset" in one_line_error(
        run_atlas("bench", "predict", "--data", tmp_path / "none")
    )


def test_what_is_no_density_is_refused(bundled: Dataset) -> None:
    class Wrong(Flat):
        name = "wrong"

        def predict(self, studies: Sequence[Given]) -> np.ndarray:
            return super().predict(studies) + 1

    with pytest.raises(AtlasError, match="wrong: a density sums to 2.718"):
        benchmark.run(bundled, [Wrong()], tasks=["a"], split="val")


# ---------------------------------------------------------------------- the published figures


@pytest.mark.slow
def test_neurosynths_counts_halves_and_mean_map(neurosynth_stages: Path, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    folder, settings = require_neurosynth(), Settings(splits=require_splits())
    bench = Benchmark(go_on_after("validate", neurosynth_stages, settings, tmp_path / "data"))
    rows = {split: bench.rows(split) for split in ("train", "val", "test")}
    assert [len(r) for r in rows.values()] == [9197, 1962, 1966]
    # The protocol counts 440,855: one more, out of the 2 mm grid, which preparation removes.
    assert sum(bench.sizes[r].sum() for r in rows.values()) == 440_855 - 1

    prefix = folder / "neurosynth" / "data-neurosynth_version-7_"
    raw = pd.read_csv(f"{prefix}coordinates.tsv.gz", sep="\t")
    labels = pd.read_csv(f"{prefix}metadata.tsv.gz", sep="\t").set_index("id")["space"]
    for row in [r for r in rows["test"] if labels[int(bench.dataset.ids[r])] == "MNI"][::60]:
        number = int(bench.dataset.ids[row])
        xyz = np.unique(raw.loc[raw.id == number, ["x", "y", "z"]].to_numpy(), axis=0)
        if not np.array_equal(xyz, xyz.round()):
            continue  # repeats are found after rounding: unique rows would not do
        xyz = xyz[space.load(4).cells(xyz)[1] <= 8]
        order = np.random.default_rng([77, number]).permutation(len(xyz))
        expected = xyz[np.sort(order[: (len(xyz) + 1) // 2])]
        assert np.array_equal(bench.show(np.array([row]), "b")[0].peaks_mm, expected)

    weights = bench.sizes[rows["train"]] ** -0.5
    total = sparse.csr_matrix(weights[None] @ bench.counts(rows["train"], "all"))
    density = metrics.normalise(smooth(total, 6.0), 0.02)
    log_ratio = np.log2(density[0] * V)
    test = bench.counts(rows["test"], "all")
    bits = (test @ log_ratio) / np.asarray(test.sum(1)).ravel()
    assert bits.mean() == pytest.approx(0.4042, abs=1e-4)
