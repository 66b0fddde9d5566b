"""The stages at once and one by one; the counts on the whole of Neurosynth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlas.data import dataset as folder
from atlas.data import prepare as stages
from atlas.data import records
from atlas.data.dataset import Dataset
from atlas.data.joins import Join
from atlas.data.prepare import STAGES, Settings, prepare, run_stage, stage_folder
from atlas.errors import AtlasError
from tests.support import go_on_after, one_line_error, require_splits, run_atlas


@pytest.fixture(scope="module")
def neurosynth(neurosynth_stages: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """All of Neurosynth v7."""
    out = tmp_path_factory.mktemp("neurosynth") / "all"
    return go_on_after("validate", neurosynth_stages, Settings(), out)


def steps(data: Dataset) -> dict[str, tuple[int, int, int]]:
    rows = data.info["funnel"]
    return {row["step"]: (row["studies"], row["peaks"], row["changed"]) for row in rows}


def test_stage_by_stage_gives_the_same_bytes(bundled: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "data"
    for stage in STAGES:
        run_stage(stage, Settings(), out)
    for path in sorted(bundled.path.iterdir()):
        if path.is_file() and path.name != "report.html":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_stage_without_the_one_before_says_so(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"stages/fetch: not there; run --stage fetch first"):
        run_stage("clean", Settings(), tmp_path / "data")
    run_stage("fetch", Settings(), tmp_path / "data")
    state = stage_folder(tmp_path / "data", "fetch") / "state.json"
    state.write_text(state.read_text()[:-9])
    with pytest.raises(AtlasError, match=r"fetch: damaged .* run --stage fetch again"):
        run_stage("clean", Settings(), tmp_path / "data")


def test_what_was_removed_is_written_down(bundled: Dataset) -> None:
    removed = records.read_findings(bundled.path / folder.REMOVED)
    rules = [finding.rule for finding in removed]
    assert {rule: rules.count(rule) for rule in set(rules)} == {"repeat": 273, "out of volume": 16}
    mismatches = json.loads((bundled.path / "mismatches.json").read_text())
    assert all({"rule", "study", "peak", "why"} <= set(row) for row in mismatches)
    # What is kept and what is removed are the printed peaks, each once.
    kept = records.read(bundled.path, bundled.fields)
    numbers = {(s.id, int(k)) for s in kept for k in s.peak_number}
    gone = {(f.study, f.peak) for f in removed}
    assert not numbers & gone and len(numbers) + len(gone) == 9492


def test_a_subset_a_join_and_an_inherited_split(bundled: Dataset, tmp_path: Path) -> None:
    table = tmp_path / "years.csv"
    table.write_text(
        "id,year\n" + "\n".join(f"{i},{2000 + k % 9}" for k, i in enumerate(bundled.ids))
    )
    join = Join.parse(f"{table}:id:year")
    small = prepare(Settings(joins=(join,), subset=100), tmp_path / "small")
    assert {k: len(v) for k, v in small.splits.items()} == {"train": 70, "val": 15, "test": 15}
    assert small.coverage()["year"] == 100
    assert small.info["summary"]["everything"]["studies"] == 320
    assert small.info["summary"]["subset"]["studies"] == 100
    assert "years.csv" in small.info["source"]["inputs"]
    given = Settings(splits=small.path / "splits.json")
    inherited = prepare(given, tmp_path / "inherited")
    assert inherited.splits["train"] == small.splits["train"]
    assert len(inherited.splits["unassigned"]) == 220


def test_a_split_that_leaves_nothing_to_train_on(bundled: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(f"id,split\n{bundled.ids[0]},test\n")
    with pytest.raises(AtlasError, match="the train split would be empty"):
        prepare(Settings(splits=path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rules_are_settings(tmp_path: Path) -> None:
    strict = prepare(
        Settings(duplicates="none", max_distance_mm=8, min_peaks=5, space_policy="none"),
        tmp_path / "strict",
    )
    rows = steps(strict)
    assert rows["repeated peaks removed"][2] == rows["Talairach converted to MNI"][2] == 0
    assert rows["studies with fewer than 5 peaks dropped"][2] > 0
    assert min(np.diff(strict.offsets)) >= 5
    assert strict.info["settings"]["space_policy"] == "none"
    assert strict.info["settings"]["max_distance_mm"] == 8


def test_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "data"
    for stage in STAGES:
        done = run_atlas("data", "prepare", "--source", "bundled", "--stage", stage, "--out", out)
        assert done.returncode == 0, done.stderr
    done = run_atlas("data", "prepare", "--source", "bundled", "--subset", "60", "--out", out)
    assert "60 studies" in done.stdout and "train 42, val 9, test 9" in done.stdout
    wrong = ("data", "prepare", "--source", "bundled", "--out", tmp_path / "x")
    assert "expected FILE:KEY:FIELD" in one_line_error(run_atlas(*wrong, "--join", "n.csv"), 2)
    assert "cannot be read" in one_line_error(run_atlas(*wrong, "--splits", tmp_path / "no.csv"))
    assert "a subset of 400 studies" in one_line_error(run_atlas(*wrong, "--subset", "400"))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_neurosynth_gives_the_published_counts(neurosynth: Dataset) -> None:
    rows = steps(neurosynth)
    assert rows["as printed"] == (14371, 507891, 0)
    assert rows["repeated peaks removed"] == (14371, 507891 - 60393, 60393)
    assert rows["studies without peaks dropped"][0] == len(neurosynth) == 14367
    readings = {row["reading"]: row for row in neurosynth.info["repeats"]}
    percent = {name: round(row["percent"], 2) for name, row in readings.items()}
    assert percent["same table, exact"] == 10.2 and readings["same table, exact"]["studies"] == 3507
    assert percent["same study, exact"] == 11.74 and percent["same study, rounded to 1 mm"] == 11.89
    assert readings["same study, rounded to 1 mm"]["studies"] == 4640
    assert percent["the same coordinate anywhere, any study"] == 40.15
    draws = readings["same table, exact"]
    assert draws["low"] < 8.4 < draws["mean"] < draws["high"]
    assert neurosynth.coverage()["year"] == neurosynth.coverage()["topics"] == 14367
    sizes = {name: len(ids) for name, ids in neurosynth.splits.items()}
    assert sizes == {"train": 10057, "val": 2155, "test": 2155}


@pytest.mark.slow
def test_twins_share_a_side(neurosynth: Dataset) -> None:
    side = {i: name for name, ids in neurosynth.splits.items() for i in ids}
    pairs = json.loads((neurosynth.path / "twins.json").read_text())
    assert len(pairs) == neurosynth.info["twins"] == 139  # one more than under the rules below
    assert all(side[a] == side[b] for a, b in pairs)


@pytest.mark.slow
def test_the_benchmarks_rules_give_the_benchmarks_studies(
    neurosynth_stages: Path, tmp_path: Path
) -> None:
    """At most 8 mm from the mask, at least five peaks: the studies of the published baselines."""
    splits = require_splits()
    settings = Settings(max_distance_mm=8, min_peaks=5, splits=splits)
    data = go_on_after("clean", neurosynth_stages, settings, tmp_path / "bench")
    given = pd.read_csv(splits, dtype={"id": str})
    assert sorted(data.ids) == sorted(given["id"])
    assert {k: len(v) for k, v in data.splits.items()} == {
        "train": 9197, "val": 1962, "test": 1966, "unassigned": 0,
    }  # fmt: skip
    assert data.info["twins"] == 138
    # The benchmark keeps one peak more: out of the 2 mm volume, yet within 8 mm of the mask.
    assert int(given["peaks"].sum()) - len(data.peaks_mm) == 1
    assert data.info["joins"][0]["studies_filled"] == 1


@pytest.mark.slow
def test_a_subset_of_neurosynth(neurosynth_stages: Path, tmp_path: Path) -> None:
    data = go_on_after("validate", neurosynth_stages, Settings(subset=1000), tmp_path / "sub")
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 700, "val": 150, "test": 150}
    whole, drawn = data.info["summary"]["everything"], data.info["summary"]["subset"]
    assert drawn["studies"] == 1000
    assert abs(drawn["peaks_quantiles"]["50"] - whole["peaks_quantiles"]["50"]) <= 2
    late = [
        sum(n for y, n in s["years"].items() if int(y) > 2012) / s["studies"]
        for s in (whole, drawn)
    ]
    assert abs(late[0] - late[1]) < 0.01


def test_a_file_that_is_too_large_for_the_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk that fills up in the middle."""
    import subprocess
    import sys

    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from atlas.cli import main; main()"
    )
    out = tmp_path / "data"
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "prepare", "--source", "bundled", "--out", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "File too large" in one_line_error(done)
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_later_stage_do_not_reach_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "data"
    run_stage("fetch", Settings(), out)
    run_stage("clean", Settings(duplicates="table"), out)
    run_stage("validate", Settings(), out)
    run_stage("split", Settings(seed=3), out)
    made = folder.read(out).info["settings"]
    assert made["duplicates"] == "table" and made["seed"] == 3
    shutil.rmtree(out)
    assert stages.stage_folder(out, "fetch").is_dir()
