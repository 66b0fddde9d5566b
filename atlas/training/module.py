"""The Lightning module: one step of training and of validation, and the optimiser."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from atlas import model_file, objectives, schedules, space
from atlas.config import Config, TrainConfig
from atlas.contracts import Batch
from atlas.errors import AtlasError
from atlas.metadata import FieldTable
from atlas.models.model import Model

IMPUTER_RATE = 4.0  # of `train.lr`


class AtlasModule(pl.LightningModule):
    """A model with its objective.

    Attributes
    ----------
    beta, reversal : float
        Weight of the KL term and lambda of the reversed gradient; callbacks set them.
    time_share : float
        Share of the run's minutes that is over, 0 without a limit; a callback sets it.
    """

    mask: Tensor

    def __init__(self, config: Config, model: Model, fields: FieldTable) -> None:
        super().__init__()
        self.config, self.model, self.fields = config, model, fields
        self.beta, self.reversal, self.time_share = config.kl.beta, 0.0, 0.0
        self.ids: tuple[str, ...] = ()  # of the batch in work, for a message
        mask = torch.from_numpy(space.load(config.data.resolution).mask.copy())
        self.register_buffer("mask", mask, persistent=False)

    @property
    def progress(self) -> float:
        """Share of the run that is done: of its optimiser steps or minutes, what is further."""
        return self._share(self.global_step)

    def _share(self, steps: int) -> float:
        return max(steps / max(int(self.trainer.estimated_stepping_batches), 1), self.time_share)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Reseed by batch, so that a resumed run draws what an uninterrupted one would.

        Batches count through all epochs and processes: two processes draw what one does for the
        same batches. Not by epoch: after a resume Lightning leaves out the first
        `on_train_epoch_start`.
        """
        trainer = self.trainer
        batches = self.current_epoch * int(trainer.num_training_batches) + index
        number = batches * trainer.world_size + trainer.global_rank
        torch.manual_seed(self.config.seed * 1_000_000_007 + number)
        self.ids = batch.ids

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch."""
        terms = self.training_losses(batch)
        self._finite("loss", terms.total)
        self._log("train", terms, batch, on_step=False, on_epoch=True)
        rate = terms.kl.detach()
        self.log("kl_step", rate, on_step=True, on_epoch=False, logger=False, sync_dist=True)
        return terms.total

    def training_losses(self, batch: Batch) -> objectives.Losses:
        """Hide some observed fields, pass the batch through, return every term."""
        kept_BM = batch.observed_BM * self._shown(len(batch.ids), batch.observed_BM)
        return self._losses(self.model(batch, kept_BM, self.reversal), batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a gradient that would spoil the weights, and with them the next checkpoint."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self._finite("gradient's norm", torch.nn.utils.get_total_norm(gradients))

    def _finite(self, what: str, value: Tensor) -> None:
        number = float(value.detach())
        if not math.isfinite(number):
            raise AtlasError(
                f"the {what} is {number:g} at step {self.global_step} (studies "
                f"{', '.join(self.ids)}); lower train.lr; the last checkpoint is kept"
            )

    def validation_step(self, batch: Batch, index: int) -> Tensor:
        """Score the half of each study's peaks that the encoder was not given; return the code."""
        output = self.model(batch, batch.observed_BM)
        self._log("val", self._losses(output, batch), batch)
        peaks_B = batch.counts_BV.sum(1)
        log_uniform = math.log(batch.counts_BV.shape[1])
        nats_B = (batch.counts_BV * (output.decoded.log_density_BV + log_uniform)).sum(1)
        bits = (nats_B / peaks_B.clamp_min(1))[peaks_B > 0] / math.log(2)
        self.log("val/bits", bits.mean(), batch_size=len(bits), sync_dist=True)
        return output.mean_BD

    def _losses(self, output: Any, batch: Batch) -> objectives.Losses:
        config = self.config
        return objectives.losses(
            output, batch, config.objective, self.mask, self.beta, config.year.weight
        )

    def _shown(self, size: int, like: Tensor) -> Tensor:
        """Draw a (B, M) mask that hides each field of each study with the configured chance."""
        shown = torch.rand(size, len(self.fields), device=like.device)
        widths = torch.tensor([field.width for field in self.fields], device=like.device)
        return (shown >= self.config.objective.hide).float().repeat_interleave(widths, dim=1)

    def _log(self, stage: str, terms: objectives.Losses, batch: Batch, **when: Any) -> None:
        values = {f"{stage}/{name}": value.detach() for name, value in terms._asdict().items()}
        self.log_dict(values, batch_size=len(batch.ids), sync_dist=True, **when)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the weights belong to, so that another architecture or table is noticed."""
        checkpoint["atlas"] = model_file.origin(self.config.model, self.fields)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the configured rate, betas and decay win: --force resumes with changed ones."""
        train = self.config.train
        groups = checkpoint["optimizer_states"][0]["param_groups"]
        for group in groups:
            peak = train.lr * group["rate"]
            group["lr"] *= peak / group["initial_lr"]
            group["initial_lr"], group["betas"] = peak, (0.9, train.beta2)
            if group["weight_decay"]:
                group["weight_decay"] = train.weight_decay
        checkpoint["lr_schedulers"][0]["base_lrs"] = [group["initial_lr"] for group in groups]

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        train = self.config.train
        groups = parameter_groups(self.model, train)
        optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=(0.9, train.beta2))
        factor = lambda step: schedules.learning_rate(self._share(step + 1), train.warmup)  # noqa: E731
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def parameter_groups(model: Model, train: TrainConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups; norms, biases and FiLM are not decayed.

    The imputer, which learns alone and from the few numbers that a step hides, is not either, and
    has a higher rate: with the others' it ends half taught.
    """
    named = list(model.named_parameters())
    imputer = [p for name, p in named if name.startswith("imputer.")]
    rest = [p for name, p in named if not name.startswith("imputer.")]
    kinds = (
        ([p for p in rest if p.ndim > 1], train.weight_decay, 1.0),
        ([p for p in rest if p.ndim <= 1], 0.0, 1.0),
        (imputer, 0.0, IMPUTER_RATE),
    )
    return [
        {"params": own, "weight_decay": decay, "lr": train.lr * rate, "rate": rate}
        for own, decay, rate in kinds
        if own
    ]
