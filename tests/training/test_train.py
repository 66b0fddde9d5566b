"""Training runs: the folder, exact resume, Ctrl-C, refusals, the adversary, the loggers."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from atlas import config, model_file
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.training import module as module_file
from atlas.training.run import train
from tests.support import heed_ctrl_c, one_line_error, run_atlas, spawn_atlas

SMOKE = config.load("smoke")
OPTIONS = ["train.batch=4"]
SMALL = config.load("smoke", OPTIONS)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different
    ours, theirs = (load_file(run / model_file.WEIGHTS) for run in (a, b))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_run_folder_holds_what_the_design_says(tiny_run: Path) -> None:
    assert config.load(tiny_run / "config.yaml") == SMOKE
    environment = json.loads((tiny_run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert set(environment["dataset"]) == {"path", "fingerprint", "inputs"}
    with (tiny_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for column in ("train/total", "train/kl", "val/bits", "beta", "lambda"):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    names = {p.name for p in tiny_run.iterdir()}
    assert {"model.safetensors", "model.json", "checkpoints"} <= names
    assert not [name for name in names if ".part" in name]


def test_the_card_says_what_was_observed(tiny_run: Path, bundled: Dataset) -> None:
    _, card = model_file.read(tiny_run)
    assert card.used["year"].studies == card.used["topics"].studies == 0
    assert card.used["task"].studies == bundled.coverage("train")["task"]
    assert 1 <= card.used["n"].low < card.used["n"].high <= 10000
    assert len(card.latent_activity) == card.model.latent == 8
    assert card.display[0] < card.display[1]


@pytest.fixture(scope="module")
def small_run(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(SMALL, small, tmp_path_factory.mktemp("runs") / "small")


def test_the_same_seed_gives_the_same_weights(
    small_run: Path, small: Dataset, tmp_path: Path
) -> None:
    assert_same_weights(train(SMALL, small, tmp_path / "again"), small_run)


@pytest.mark.slow
def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_weights(
    small: Dataset, tmp_path: Path
) -> None:
    """A real SIGINT to a real process in its second epoch, then --resume, bit for bit."""
    run = tmp_path / "stopped"
    options = [*OPTIONS, "train.epochs=9"]  # so that the signal comes long before the end
    arguments = ["train", "smoke", *options, "--data", str(small.path), "--out", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "atlas.cli", *arguments],
        stderr=subprocess.PIPE, text=True, env=os.environ, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1 and "Traceback" not in errors
    kept = re.search(
        r"interrupted; epoch (\d) is kept, go on after it with atlas train --resume", errors
    )
    assert kept and 1 <= int(kept[1]) < 9, errors
    assert not (run / model_file.WEIGHTS).exists()

    done = spawn_atlas(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    whole = train(config.load("smoke", options), small, tmp_path / "whole")
    assert_same_weights(run, whole)
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_resume_refuses_a_changed_configuration(
    tiny_run: Path, bundled: Dataset, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    changed = config.load("smoke", ["train.lr=5e-3", "model.latent=9"])
    with pytest.raises(AtlasError, match=r"model.latent was 8, is 9; train.lr was 0.002, is 0.005"):
        train(changed, bundled, run, resume=True)
    with pytest.raises(AtlasError, match="holds a run already"):
        train(SMOKE, bundled, run)
    with pytest.raises(AtlasError, match="no checkpoint to resume from"):
        train(SMOKE, bundled, tmp_path / "empty", resume=True)
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["lr"] == 0.002


def test_a_loss_that_is_not_finite_names_the_studies(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> object:
        real = original(*args)
        return real._replace(total=real.total * float("nan"))

    original = module_file.objectives.losses
    monkeypatch.setattr(module_file.objectives, "losses", broken)
    with pytest.raises(AtlasError, match=r"the loss is nan at step 0 \(studies \w+, "):
        train(SMOKE, small, tmp_path / "nan")
    assert not (tmp_path / "nan" / model_file.WEIGHTS).exists()


def test_training_reads_the_cache(small: Dataset, tmp_path: Path) -> None:
    from atlas.data import cache, dataset

    path = Path(shutil.copytree(small.path, tmp_path / "data"))
    prepared = dataset.read(path)
    settings = [*OPTIONS, "data.cache=always", "train.epochs=1"]
    with pytest.raises(AtlasError, match="no cache there; rebuild it with atlas data cache"):
        train(config.load("smoke", settings), prepared, tmp_path / "early")
    cache.build(prepared, 4, SMOKE.data.fwhm)
    run = train(config.load("smoke", settings), prepared, tmp_path / "run")
    assert (run / model_file.WEIGHTS).exists()


@pytest.mark.parametrize("schedule", ["ratio", "constant", "linear", "cyclical"])
def test_every_kl_schedule_trains(small: Dataset, tmp_path: Path, schedule: str) -> None:
    settings = [f"kl.schedule={schedule}", "train.epochs=1", "objective.reconstruction=mse"]
    run = train(config.load("smoke", [*OPTIONS, *settings]), small, tmp_path / "run")
    with (run / "metrics.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert 0 <= float(row["beta"]) <= SMOKE.kl.beta


def test_a_wrong_option_is_one_line(bundled: Dataset, tmp_path: Path) -> None:
    out = ("--data", bundled.path, "--out", tmp_path / "run")
    said = one_line_error(run_atlas("train", "smoke", "train.lrr=1", *out))
    assert "unknown key 'train.lrr'; did you mean 'train.lr'?" in said
    one_line_error(run_atlas("train", "smoke", "train.lr", *out), code=2)
    missing = run_atlas("train", "smoke", "--data", tmp_path / "none", "--out", tmp_path / "run")
    assert "no such dataset folder; make one with atlas data prepare" in one_line_error(missing)
    assert not (tmp_path / "run").exists()
