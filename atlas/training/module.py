"""The Lightning module: one step of training and of validation, and the optimiser."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from atlas import objectives, schedules, space
from atlas.config import Config
from atlas.contracts import Batch
from atlas.errors import AtlasError
from atlas.metadata import FieldTable
from atlas.models.model import Model


class AtlasModule(pl.LightningModule):
    """A model with its objective.

    Attributes
    ----------
    beta, reversal : float
        Weight of the KL term and lambda of the reversed gradient; callbacks set them.
    """

    mask: Tensor

    def __init__(self, config: Config, model: Model, fields: FieldTable) -> None:
        super().__init__()
        self.config, self.model, self.fields = config, model, fields
        self.beta, self.reversal = config.kl.beta, 0.0
        mask = torch.from_numpy(space.load(config.data.resolution).mask.copy())
        self.register_buffer("mask", mask, persistent=False)

    @property
    def progress(self) -> float:
        """Share of the run's optimiser steps that are done."""
        return self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Reseed by step, so that a resumed run draws what an uninterrupted one would.

        Not by epoch: after a resume Lightning leaves out the first `on_train_epoch_start`.
        """
        torch.manual_seed(self.config.seed * 1_000_000_007 + self.global_step)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Hide some observed fields, pass the batch through, return the loss."""
        kept_BM = batch.observed_BM * self._shown(len(batch.ids), batch.observed_BM)
        output = self.model(batch, kept_BM, self.reversal)
        terms = self._losses(output, batch)
        total = float(terms.total.detach())
        if not math.isfinite(total):
            raise AtlasError(
                f"the loss is {total:g} at step {self.global_step} (studies "
                f"{', '.join(batch.ids)}); lower train.lr; the last checkpoint is kept"
            )
        self._log("train", terms, batch, on_step=False, on_epoch=True)
        self.log("kl_step", terms.kl.detach(), on_step=True, on_epoch=False, logger=False)
        return terms.total

    def validation_step(self, batch: Batch, index: int) -> None:
        """Score the half of each study's peaks that the encoder was not given."""
        output = self.model(batch, batch.observed_BM)
        self._log("val", self._losses(output, batch), batch)
        peaks_B = batch.counts_BV.sum(1)
        log_uniform = math.log(batch.counts_BV.shape[1])
        nats_B = (batch.counts_BV * (output.decoded.log_density_BV + log_uniform)).sum(1)
        bits = (nats_B / peaks_B.clamp_min(1))[peaks_B > 0] / math.log(2)
        self.log("val/bits", bits.mean(), batch_size=len(bits), sync_dist=True)

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
        self.log_dict(values, batch_size=len(batch.ids), sync_dist=stage == "val", **when)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine; norms, biases and FiLM are not decayed."""
        train = self.config.train
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": train.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=train.lr,
            betas=(0.9, train.beta2),
        )
        total = max(int(self.trainer.estimated_stepping_batches), 1)
        factor = lambda step: schedules.learning_rate((step + 1) / total, train.warmup)  # noqa: E731
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
