"""Callbacks: the KL controller, the lambda ramp, metrics.csv, progress.

`module` is an `AtlasModule` throughout; Lightning's signatures say less.
"""

from __future__ import annotations

import csv
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from atlas import progress, schedules
from atlas.config import KLConfig, YearConfig
from atlas.files import replacing


class KLController(pl.Callback):
    """Sets beta before every step by the configured schedule; its state is in the checkpoint."""

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.beta = config.beta
        self.shares: tuple[float, ...] = ()

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
        """Steer the rate to its target."""
        if self.config.schedule == "target":
            rate = float(trainer.callback_metrics["kl_step"])
            self.beta = schedules.steer(self.beta, rate, self.config.target)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Raise beta if the KL term stayed idle, and log beta."""
        if self.config.schedule == "ratio":
            metrics = trainer.callback_metrics
            share = module.beta * float(metrics["train/kl"]) / float(metrics["train/total"])
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


class MetricsFile(pl.Callback):
    """Writes metrics.csv, one row an epoch; a resumed run drops the rows that it does again."""

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

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write every epoch's metrics, the new one last, and rename into place."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k != "kl_step"}
        row = {"epoch": str(trainer.current_epoch), "step": str(trainer.global_step)}
        self.rows.append(row | {key: f"{values[key]:.6g}" for key in sorted(values)})
        with replacing(self.path) as work, work.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]), restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)


class Checkpoint(ModelCheckpoint):
    """A ModelCheckpoint whose folder may have been moved or copied since it was saved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of an interrupted run, its paths in this run's folder."""
        here = Path(str(self.dirpath))

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        state = dict(state_dict, dirpath=str(here))
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = moved(state[key])
        state["best_k_models"] = {moved(p): v for p, v in state["best_k_models"].items()}
        super().load_state_dict(state)


class Progress(pl.Callback):
    """Shows the whole run's steps, the time left, and the last validation."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._ticker: progress.Ticker | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the bar at the step where a resumed run goes on."""
        total = int(trainer.estimated_stepping_batches)
        self._ticker = self._stack.enter_context(
            progress.track("training", total - trainer.global_step)
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance, with the latest figures beside the bar."""
        metrics = trainer.callback_metrics
        note = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if "val/bits" in metrics:
            note += f", held-out {float(metrics['val/bits']):.3f} bits a peak"
        note += f", KL {float(metrics['kl_step']):.1f} nats"
        assert self._ticker is not None
        self._ticker.advance(note=note)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after Ctrl-C."""
        self._stack.close()
