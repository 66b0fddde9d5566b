"""One offline W&B run, read back: what it holds, and the curves of beta and lambda."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas import config, schedules
from atlas.data.dataset import Dataset
from atlas.evaluation.report import training_curves
from atlas.objectives import Losses
from atlas.training.run import train

BLOCK, HEADER = 32768, 7
SETTINGS = config.load("smoke", ["logging.wandb=offline", "kl.schedule=ratio",
    "kl.beta=1e-5", "train.epochs=7", "train.batch=4"])  # fmt: skip


def records(log: bytes) -> Iterator[bytes]:
    """Read LevelDB's log format: a header, then records that may span blocks of 32 KiB."""
    at, parts = HEADER, b""
    while at + HEADER <= len(log):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        parts += log[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_back(run: Path) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """Return the configuration, and what was logged by epoch."""
    from wandb.proto import wandb_internal_pb2 as pb

    [log] = (run / "wandb").glob("offline-run-*/run-*.wandb")
    settings: dict[str, Any] = {}
    epochs: dict[int, dict[str, float]] = {}
    for content in records(log.read_bytes()):
        record = pb.Record.FromString(content)
        for items in (record.run.config.update, record.config.update):
            settings |= {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in items}
        row = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
        if "epoch" in row:
            epochs.setdefault(int(row["epoch"]), {}).update(row)
    return settings, epochs


@pytest.fixture(scope="module")
def run(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("wandb")
    return train(SETTINGS, small, tmp_path_factory.mktemp("wandb") / "run")


@pytest.fixture(scope="module")
def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_wandb_holds_what_metrics_csv_holds(run: Path, rows: list[dict[str, float]]) -> None:
    settings, epochs = read_back(run)
    for section, values in json.loads(SETTINGS.model_dump_json()).items():
        assert settings[section] == values
    terms = {f"{stage}/{term}" for stage in ("train", "val") for term in Losses._fields}
    expected = terms | {"beta", "lambda", "val/bits", "val/active"}
    assert set(rows[0]) == expected | {"epoch", "step"}
    assert sorted(epochs) == list(range(7))
    for row in rows:
        logged = epochs[int(row["epoch"])]
        assert {k: logged[k] for k in expected} == pytest.approx(
            {k: row[k] for k in expected}, rel=1e-4, abs=1e-12
        )
        assert 0 <= row["val/active"] <= 8


def test_beta_rises_after_three_idle_epochs_and_lambda_ramps(rows: list[dict[str, float]]) -> None:
    for row in rows:
        assert row["beta"] * row["train/kl"] < SETTINGS.kl.threshold * row["train/total"]
    raised = [1, 1, 1, 1.1, 1.1, 1.1, 1.21]
    assert [row["beta"] / SETTINGS.kl.beta for row in rows] == pytest.approx(raised)
    last = [(row["step"] - 1) / rows[-1]["step"] for row in rows]  # an epoch's last step
    ramp = [schedules.ramp(share, *SETTINGS.year.ramp) for share in last]
    assert [row["lambda"] for row in rows] == pytest.approx(ramp, abs=1e-5)
    assert ramp[0] == 0 and 0 < ramp[3] < 1 and ramp[-1] == 1


def test_the_report_draws_both_curves(run: Path, rows: list[dict[str, float]]) -> None:
    figure = training_curves(run / "metrics.csv")
    drawn = {axis.get_title(): axis.lines[0].get_xydata().T for axis in figure.axes}
    for title, name in (("beta", "beta"), ("lambda of the year's reversal", "lambda"),
                        ("active directions", "val/active")):  # fmt: skip
        steps, values = drawn[title]
        assert steps.tolist() == [row["step"] for row in rows]
        assert values.tolist() == [row[name] for row in rows]
