"""Callbacks: the KL controller, the lambda ramp, active units, metrics.csv, progress.

`module` is an `AtlasModule` throughout; Lightning's signatures say less.
"""

from __future__ import annotations

import csv
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from atlas import metrics, progress, schedules
from atlas.config import KLConfig, YearConfig
from atlas.files import replacing


class KLController(pl.Callback):
    """Sets beta before every step by the configured schedule; its state is in the checkpoint."""

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.beta = config.beta
        self.shares: tuple[float, ...] = ()
        self._rates: list[float] = []  # of the batches in this optimiser step
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Count steps from where a resumed run goes on."""
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand beta to the module."""
        if self.config.schedule in ("target", "ratio"):
            module.beta = self.beta
        else:
            module.beta = schedules.scheduled_beta(self.config, module.progress)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Steer the rate to its target, once a step of the optimiser."""
        if self.config.schedule != "target":
            return
        self._rates.append(float(trainer.callback_metrics["kl_step"]))
        if trainer.global_step > self._step:
            rate = sum(self._rates) / len(self._rates)
            self.beta = schedules.steer(self.beta, rate, self.config.target)
            self._step, self._rates = trainer.global_step, []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Raise beta if the KL term stayed idle, and log beta."""
        if self.config.schedule == "ratio":
            found = trainer.callback_metrics
            share = module.beta * float(found["train/kl"]) / float(found["train/total"])
            self.beta, self.shares = schedules.raise_if_idle(
                self.beta, (*self.shares, share), self.config.threshold, self.config.patience
            )
        module.log("beta", module.beta)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"beta": self.beta, "shares": list(self.shares)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of an interrupted run."""
        self.beta, self.shares = state_dict["beta"], tuple(state_dict["shares"])


class LambdaRamp(pl.Callback):
    """Sets lambda, the weight of the year head's reversed gradient, before every step."""

    def __init__(self, config: YearConfig) -> None:
        self.config = config

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand lambda to the module."""
        module.reversal = schedules.ramp(module.progress, *self.config.ramp)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Log lambda."""
        module.log("lambda", module.reversal)


class ActiveUnits(pl.Callback):
    """Logs val/active: how many directions' posterior means vary over the validation studies."""

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Start over."""
        self._sums: Tensor | None = None  # (3, D): of 1, the means, their squares

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the posterior means, (B, D), that the validation step returned."""
        sums = torch.stack([torch.ones_like(outputs), outputs, outputs.square()]).sum(1)
        self._sums = sums if self._sums is None else self._sums + sums

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Log the count, over all processes."""
        sums: Any = trainer.strategy.reduce(self._sums, reduce_op="sum")
        variance_D = sums[2] / sums[0] - (sums[1] / sums[0]).square()
        module.log("val/active", (variance_D > metrics.ACTIVE_VARIANCE).sum().float())


class MetricsFile(pl.Callback):
    """Writes metrics.csv: a row at each epoch's end, with val/ columns alone at other validations.

    A resumed run drops the rows that it does again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Read back the epochs that a resumed run has behind it."""
        self.rows = []
        if trainer.current_epoch and self.path.is_file():
            with self.path.open(newline="") as file:
                rows = csv.DictReader(file)
                self.rows = [r for r in rows if int(r["epoch"]) < trainer.current_epoch]

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write a validation's metrics."""
        self._write(trainer, "val/")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write every metric; this row takes the place of the epoch's last validation."""
        self._write(trainer, "")

    def _write(self, trainer: pl.Trainer, prefix: str) -> None:
        values = {  # read by every process: it is here that they exchange their sums
            name: f"{float(value):.6g}"
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith(prefix) and name != "kl_step"
        }
        step = str(trainer.global_step)
        self.rows = [row for row in self.rows if row["step"] != step]
        self.rows.append({"epoch": str(trainer.current_epoch), "step": step} | values)
        if not trainer.is_global_zero:
            return
        columns = sorted(dict.fromkeys(key for row in self.rows for key in row), key=_column)
        with replacing(self.path) as work, work.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def _column(name: str) -> tuple[bool, str]:
    """Sort key: epoch and step first."""
    return name not in ("epoch", "step"), name


class Progress(pl.Callback):
    """Shows the whole run's steps, the time left, and the last validation."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._ticker: progress.Ticker | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the bar at the step where a resumed run goes on."""
        epochs = int(trainer.max_epochs or 0) - trainer.current_epoch
        total = epochs * int(trainer.num_training_batches)
        if trainer.is_global_zero:
            self._ticker = self._stack.enter_context(progress.track("training", total))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance, with the latest figures beside the bar."""
        if self._ticker is None:
            return
        found = trainer.callback_metrics
        note = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if module.time_share:
            note += f", {module.time_share:.0%} of the minutes"
        if "val/bits" in found:
            note += f", held-out {float(found['val/bits']):.3f} bits a peak"
        note += f", KL {float(found['kl_step']):.1f} nats"
        self._ticker.advance(note=note)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after Ctrl-C."""
        self._stack.close()
