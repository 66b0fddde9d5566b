"""The Lightning trainer of a run: its callbacks, devices and loggers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from atlas.config import Config, TrainConfig
from atlas.errors import AtlasError, require

from . import folder
from .callbacks import ActiveUnits, KLController, LambdaRamp, MetricsFile, Progress
from .keeping import Averaging, Checkpoint, Clock, Patience


def make_trainer(config: Config, run: Path) -> pl.Trainer:
    """Return the trainer that `config` describes, writing to the folder `run`.

    Raises
    ------
    AtlasError
        Devices or strategy that this machine does not offer, or that do not go together.
    """
    train = config.train
    _check_strategy(train)
    try:
        return pl.Trainer(
            default_root_dir=run,
            max_epochs=train.epochs,
            accelerator=train.accelerator,
            devices=train.devices,
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),  # torchrun's count of machines
            strategy=train.strategy,
            precision=train.precision,
            gradient_clip_val=train.clip,
            accumulate_grad_batches=train.accumulate,
            val_check_interval=train.validate_every,
            callbacks=_callbacks(config, run),
            logger=_loggers(config, run),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # EpochSampler does it, and stays seeded
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        asked = ("accelerator", "devices", "strategy")
        settings = ", ".join(f"train.{name}={getattr(train, name)}" for name in asked)
        raise AtlasError(f"{settings}: {error}") from None


def _check_strategy(train: TrainConfig) -> None:
    if train.strategy != "fsdp":
        return
    if train.accelerator == "cpu" or not torch.cuda.is_available():
        raise AtlasError("train.strategy=fsdp: needs GPUs; processes on a CPU use ddp")
    if train.ema:
        raise AtlasError("train.strategy=fsdp: cannot average weights; use ddp, or train.ema=0")


def _callbacks(config: Config, run: Path) -> list[pl.Callback]:
    """In this order: what a callback logs or decides, the next ones write or keep."""
    train = config.train
    place: dict[str, Any] = {"dirpath": run / folder.CHECKPOINTS, "enable_version_counter": False}
    return [
        *([Clock(train.minutes)] if train.minutes else []),
        *([Averaging(train.ema)] if train.ema else []),
        KLController(config.kl),
        LambdaRamp(config.year),
        ActiveUnits(),
        MetricsFile(run / "metrics.csv"),
        Progress(),
        *([Patience(train.patience)] if train.patience else []),
        Checkpoint(
            filename="best",
            monitor="val/bits",
            mode="max",
            save_on_train_epoch_end=False,  # at every validation
            **place,
        ),
        # Its own callback: `save_last` leaves out the epochs that are not the best.
        Checkpoint(filename="last", save_on_train_epoch_end=True, **place),
    ]


def _loggers(config: Config, run: Path) -> Any:
    """W&B where it was asked for; metrics.csv is always written beside it."""
    if config.logging.wandb == "off":
        return False
    require("wandb", "wandb")
    from pytorch_lightning.loggers import WandbLogger

    offline = config.logging.wandb == "offline"
    wandb_logger = WandbLogger(
        project=config.logging.project, name=run.name, save_dir=run, offline=offline
    )
    wandb_logger.log_hyperparams(config.model_dump(mode="json"))
    return wandb_logger
