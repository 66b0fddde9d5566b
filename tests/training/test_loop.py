"""The loop's options: averaged weights, accumulation, minutes, validations, patience, --force."""

from __future__ import annotations

import csv
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas import config
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.models import build
from atlas.training.module import AtlasModule, parameter_groups
from atlas.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
Rows = list[dict[str, str]]


def load(options: list[str]) -> config.Config:
    return config.load("smoke", [*options])


def rows(run: Path) -> Rows:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def stop_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Make training fail in the midst of an epoch, as a killed process does."""

    def step(self: AtlasModule, batch: Any, index: int) -> torch.Tensor:
        if self.current_epoch == epoch and index == 2:
            raise AtlasError("stopped")
        return original(self, batch, index)

    original = AtlasModule.training_step
    monkeypatch.setattr(AtlasModule, "training_step", step)


def test_validation_and_the_kept_model_use_the_averaged_weights(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average is recomputed here from the weights after every step."""
    weights: list[dict[str, torch.Tensor]] = []
    seen: list[torch.Tensor] = []

    def batch_start(self: AtlasModule, batch: Any, index: int) -> None:
        if self.global_step:
            weights.append({n: p.detach().clone() for n, p in self.named_parameters()})
        start(self, batch, index)

    def validation_step(self: AtlasModule, batch: Any, index: int) -> torch.Tensor:
        seen.append(self.model.encoder.head.weight.detach().clone())
        return validate(self, batch, index)

    start, validate = AtlasModule.on_train_batch_start, AtlasModule.validation_step
    monkeypatch.setattr(AtlasModule, "on_train_batch_start", batch_start)
    monkeypatch.setattr(AtlasModule, "validation_step", validation_step)
    decay = 0.5
    settings = load([f"train.ema={decay}", "train.epochs=1", "train.batch=4"])
    run = train(settings, small, tmp_path / "run")

    saved = checkpoint(run)
    weights.append({n: saved["current_model_state"][n] for n in weights[0]})
    average = weights[0]
    for n, new in enumerate(weights[1:], start=1):
        share = max(1 - decay, 9 / (10 + n))
        average = {name: torch.lerp(average[name], new[name], share) for name in average}
    head = "model.encoder.head.weight"
    assert not torch.allclose(average[head], weights[-1][head])
    for name, value in average.items():
        torch.testing.assert_close(checkpoint(run, "best")["state_dict"][name], value)
    torch.testing.assert_close(seen[-1], average[head])


def test_a_run_with_every_option_resumes_to_the_same_weights(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["train.ema=0.9", "train.accumulate=3", "train.validate_every=0.5",
               "train.patience=9", "train.epochs=3", "train.batch=2"]  # fmt: skip
    settings = load(options)
    whole = train(settings, small, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_in_epoch(patched, 2)
        with pytest.raises(AtlasError, match="stopped"):
            train(settings, small, tmp_path / "run")
    train(settings, small, tmp_path / "run", resume=True)
    ours, theirs = checkpoint(tmp_path / "run"), checkpoint(whole)
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(ours[part][n], theirs[part][n]) for n in theirs[part])
    assert (tmp_path / "run" / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_accumulated_batches_are_one_step(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 batches, three a step: the schedules count five steps, and no two batches draw alike."""
    drawn: list[float] = []
    reached: list[tuple[float, float]] = []

    def batch_start(self: AtlasModule, batch: Any, index: int) -> None:
        start(self, batch, index)
        drawn.append(torch.random.get_rng_state().double().sum().item())
        reached.append((self.progress, self.beta))

    start = AtlasModule.on_train_batch_start
    monkeypatch.setattr(AtlasModule, "on_train_batch_start", batch_start)
    settings = load(["train.accumulate=3", "train.epochs=1", "train.batch=2"])
    run = train(settings, small, tmp_path / "run")
    assert [row["step"] for row in rows(run)] == ["5"]
    assert len(set(drawn)) == 14
    steps = [k // 3 for k in range(14)]
    assert [p for p, _ in reached] == pytest.approx([k / 5 for k in steps])
    betas = [b for _, b in reached]
    changes = [math.log(b / a) for a, b in itertools.pairwise(betas)]
    assert [k for k, change in enumerate(changes) if change] == [2, 5, 8, 11]
    assert all(abs(change) <= 0.02 + 1e-9 for change in changes)


def test_training_ends_when_its_minutes_are_over(small: Dataset, tmp_path: Path) -> None:
    """Within an epoch, after a validation; a resumed run has what time is left, here none."""
    options = ["train.minutes=0.05", "train.epochs=1000", "train.batch=4"]
    started = time.monotonic()
    run = train(load(options), small, tmp_path / "run")
    assert time.monotonic() - started < 30
    before = rows(run)
    assert 0 < int(before[-1]["step"]) < 7 * 1000 and before[-1]["val/bits"]
    assert float(before[-1]["lambda"]) == 1  # the ramps follow the time
    rate = checkpoint(run)["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rate < 0.1 * 2e-3  # so does the learning rate
    train(load(options), small, run, resume=True)
    assert rows(run) == before

    longer = load(["train.minutes=0.08", *options[1:]])
    with pytest.raises(AtlasError, match=r"train.minutes was 0.05, is 0.08"):
        train(longer, small, run, resume=True)
    train(longer, small, run, resume=True, force=True)
    assert int(rows(run)[-1]["step"]) > int(before[-1]["step"])
    assert rows(run)[: len(before)] == before


def script(
    monkeypatch: pytest.MonkeyPatch, scores: Iterator[float], scored: str = "val/bits"
) -> None:
    """Make each validation's bits, or another figure, the next of `scores`."""

    def log(self: AtlasModule, name: str, value: Any, **options: Any) -> None:
        original(self, name, torch.tensor(score[0]) if name == scored else value, **options)

    def epoch_start(self: AtlasModule) -> None:
        score[0] = next(scores)

    score, original = [0.0], AtlasModule.log
    monkeypatch.setattr(AtlasModule, "log", log)
    monkeypatch.setattr(AtlasModule, "on_validation_epoch_start", epoch_start)


def test_the_best_model_is_picked_at_any_validation(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of four validations in the epoch is made the best."""
    script(monkeypatch, iter([1.0, 3.0, 2.0, 0.5]))
    options = ["train.validate_every=0.25", "train.epochs=1", "train.batch=7"]  # 4 batches
    run = train(load(options), small, tmp_path / "run")
    found = rows(run)
    assert [row["step"] for row in found] == ["1", "2", "3", "4"]
    assert [float(row["val/bits"]) for row in found] == [1, 3, 2, 0.5]
    assert [bool(row["train/total"]) for row in found] == [False, False, False, True]
    assert checkpoint(run, "best")["global_step"] == 2
    assert checkpoint(run)["global_step"] == 4


def test_a_model_of_maps_is_picked_by_its_maps(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, iter([3.0, 1.0, 2.0, 2.5]), "val/reconstruction")
    options = ["train.validate_every=0.25", "train.epochs=1", "train.batch=7"]
    run = train(load([*options, "objective.reconstruction=correlation"]), small, tmp_path / "run")
    assert [float(row["val/reconstruction"]) for row in rows(run)] == [3, 1, 2, 2.5]
    assert checkpoint(run, "best")["global_step"] == 2


def test_training_ends_without_improvement_and_stays_ended(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([3.0, 2.0, 1.0, 2.5, 2.0])
    script(monkeypatch, scores)
    options = ["train.patience=3", "train.epochs=9", "train.batch=4"]
    settings = load(options)
    with monkeypatch.context() as patched:
        stop_in_epoch(patched, 2)
        with pytest.raises(AtlasError, match="stopped"):
            train(settings, small, tmp_path / "run")
    run = train(settings, small, tmp_path / "run", resume=True)  # with one epoch waited already
    assert [float(row["val/bits"]) for row in rows(run)] == [3, 2, 1, 2.5]
    train(settings, small, run, resume=True)
    assert len(rows(run)) == 4 and next(scores) == 2.0


def test_the_imputer_is_taught_within_a_run() -> None:
    """Categories that follow from many small weights, both hidden now and then, in 576 steps."""
    topics, tasks, steps = 50, 12, 576
    torch.manual_seed(0)
    settings = load(["model.latent=64", "train.lr=0.001", "train.weight_decay=1"])
    model = build(settings.model, topics + tasks, 4)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.train))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    belongs = torch.nn.functional.one_hot(torch.arange(topics) % tasks, tasks).float()
    law = torch.distributions.Dirichlet(torch.full((topics,), 0.1))

    def studies(number: int) -> Tensor:
        weights = law.sample((number,))
        return torch.cat([weights, weights @ belongs], dim=1)

    for _ in range(steps):
        m, kept = studies(64), (torch.rand(64, 2) > 0.15).float()
        kept = kept.repeat_interleave(torch.tensor([topics, tasks]), dim=1)
        mean, log_variance = model.impute(torch.randn(64, 64), m, kept)
        nll = log_variance + (m - mean).square() * torch.exp(-log_variance)
        optimizer.zero_grad()
        ((nll * (1 - kept)).sum() / (1 - kept).sum()).backward()
        optimizer.step()
        schedule.step()
    m, shown = studies(512), torch.ones(512, topics + tasks)
    shown[:, topics:] = 0
    found = model.impute(torch.randn(512, 64), m, shown)[0][:, topics:].detach()
    truth = m[:, topics:]
    assert 1 - (truth - found).square().sum() / (truth - truth.mean(0)).square().sum() > 0.7
