"""Which weights are kept and when training ends: Lightning's own callbacks, fitted to runs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer, WeightAveraging
from torch import Tensor

from atlas.config import ObjectiveConfig


def judge(objective: ObjectiveConfig) -> tuple[str, Literal["min", "max"]]:
    """Return the validation figure by which the best weights are known, and its good end.

    Held-out bits where peaks are what is learnt; a model of maps loses bits as its maps improve.
    """
    if objective.reconstruction == "peaks":
        return "val/bits", "max"
    return "val/reconstruction", "min"


class Averaging(WeightAveraging):
    """Averages the weights over the steps; validation and the kept model use the average.

    The decay rises with the steps, min(decay, (1 + n) / (10 + n)), so that a short run forgets
    where it started.
    """

    def __init__(self, decay: float) -> None:
        def average(mean: Tensor, weight: Tensor, n: Tensor | int) -> Tensor:
            share = (9 / (10 + torch.as_tensor(n, device=mean.device))).clamp_min(1 - decay)
            return torch.lerp(mean, weight, share.to(mean.dtype))

        super().__init__(use_buffers=False, avg_fn=average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the model to where it will train."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


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


class Patience(EarlyStopping):
    """Ends training after so many validations without a better one, see `judge`."""

    def __init__(self, patience: int, objective: ObjectiveConfig) -> None:
        monitor, mode = judge(objective)
        super().__init__(monitor, patience=patience, mode=mode, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of an interrupted run; the configured patience wins over its own."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not train on where training had ended."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class Clock(Timer):
    """Ends training, after a last validation, when so many minutes of it are over.

    Hands the share of them to the module before each batch. Counts every stretch of a resumed run.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        super().__init__(timedelta(seconds=self.seconds), verbose=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the module how far the time is; the first process's clock holds for all."""
        module.time_share = trainer.strategy.broadcast(self.time_elapsed() / self.seconds)
