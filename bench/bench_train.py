"""One training step of a small network at 4 mm: beside its forward, and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from atlas import config
from atlas.contracts import Batch
from atlas.data.dataset import Dataset
from atlas.models import build
from atlas.training.datamodule import AtlasDataModule
from atlas.training.module import AtlasModule

from .conftest import SMALL

Loader = DataLoader[Batch]


class Silent(AtlasModule):
    """The module as it trains, without a trainer to log to."""

    def log(self, *args: Any, **options: Any) -> None: ...

    def log_dict(self, *args: Any, **options: Any) -> None: ...


@pytest.fixture
def step(bundled: Dataset) -> Iterator[tuple[Callable[[], None], AtlasModule, Batch, Loader]]:
    """Yield one training step, its module and batch, and the loader that the batch came from."""
    resolved = config.load(None, [*SMALL, "train.batch=16"])
    loader = AtlasDataModule(bundled, resolved).train_dataloader()
    batch = next(iter(loader))
    torch.manual_seed(0)
    model = build(resolved.model, bundled.fields.width, resolved.data.resolution)
    module = Silent(resolved, model, bundled.fields)
    # All that the schedule asks of a trainer; it is never advanced, so the rate stays at its start.
    module.trainer = SimpleNamespace(estimated_stepping_batches=1000)
    optimizer = module.configure_optimizers()["optimizer"]

    def one() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), resolved.train.clip)
        optimizer.step()

    yield one, module, batch, loader


def test_training_step(benchmark: Any, measure: Any, step: Any) -> None:
    one, module, batch, _ = step

    @torch.no_grad()
    def forward() -> None:
        module.model(batch, batch.observed_BM)

    median = measure(one, forward=forward)
    benchmark.extra_info["samples_per_second"] = round(len(batch.ids) / median, 1)


def test_waiting_for_data(measure: Any, step: Any) -> None:
    one, _, _, loader = step
    batches = iter(loader)

    def load() -> None:
        nonlocal batches
        try:
            next(batches)
        except StopIteration:
            batches = iter(loader)
            next(batches)

    measure(load, step=one)
