"""The Lightning data module: a dataset folder as training and validation batches."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from atlas.config import Config
from atlas.contracts import Batch
from atlas.data import cache
from atlas.data.batches import EpochSampler, StudyBatches, View, loader
from atlas.data.dataset import Dataset
from atlas.data.years import year_edges
from atlas.metadata import YEAR_BINS


class AtlasDataModule(pl.LightningDataModule):
    """Batches of the training split (parts of studies) and of the validation split (halves)."""

    def __init__(self, dataset: Dataset, config: Config) -> None:
        super().__init__()
        self.dataset, self.config = dataset, config
        years = [dataset.metadata[row].get("year") for row in dataset.rows("train")]
        known = [float(year) for year in years if year is not None]  # type: ignore[arg-type]
        self.year_edges: np.ndarray = year_edges(known, YEAR_BINS)

    def train_dataloader(self, batch: int | None = None) -> DataLoader[Batch]:
        """Parts of studies, shuffled, another part every epoch; `batch` overrides train.batch."""
        return self._loader("train", "part", batch)

    def val_dataloader(self) -> DataLoader[Batch]:
        """One half of each study given, the other scored; the same halves every epoch."""
        return self._loader("val", "half")

    def _loader(self, split: str, view: View, batch: int | None = None) -> DataLoader[Batch]:
        config = self.config
        batches = StudyBatches(
            self.dataset,
            config.data,
            self.year_edges,
            view=view,
            seed=config.seed,
            volumes=cache.choose(self.dataset, config.data),
        )
        trainer = self.trainer
        sampler = EpochSampler(
            self.dataset.rows(split),
            batch or config.train.batch,
            seed=config.seed,
            shuffle=split == "train",
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
        return loader(batches, sampler, config.data.workers)
