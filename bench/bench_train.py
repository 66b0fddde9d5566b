"""One training step of the `quickstart` configuration, beside its network's forward alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from atlas import config
from atlas.data.dataset import Dataset
from atlas.models import build
from atlas.training.datamodule import AtlasDataModule
from atlas.training.module import AtlasModule


class Silent(AtlasModule):
    """The module as it trains, without a trainer to log to."""

    def log(self, *args: Any, **options: Any) -> None: ...

    def log_dict(self, *args: Any, **options: Any) -> None: ...


def test_training_step(benchmark: Any, measure: Any, bundled: Dataset) -> None:
    resolved = config.load("quickstart", ["train.batch=16"])
    batch = next(iter(AtlasDataModule(bundled, resolved).train_dataloader()))
    torch.manual_seed(0)
    model = build(resolved.model, bundled.fields.width, resolved.data.resolution)
    module = Silent(resolved, model, bundled.fields)
    # All that the schedule asks of a trainer; it is never advanced, so the rate stays at its start.
    module.trainer = SimpleNamespace(estimated_stepping_batches=1000)
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), resolved.train.clip)
        optimizer.step()

    @torch.no_grad()
    def forward() -> None:
        module.model(batch, batch.observed_BM)

    median = measure(step, forward=forward)
    benchmark.extra_info["samples_per_second"] = round(len(batch.ids) / median, 1)
