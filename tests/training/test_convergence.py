"""The fused kernels train the model that plain PyTorch trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from atlas import config, objectives, schedules, space
from atlas.contracts import Batch
from atlas.data.batches import Request, StudyBatches
from atlas.data.dataset import Dataset
from atlas.models import build
from atlas.models.layers import Kernels

SMOKE = config.load("smoke")
STEPS = 200


@pytest.fixture(scope="module")
def batches(bundled: Dataset) -> list[Batch]:
    made = StudyBatches(bundled, SMOKE.data, np.zeros(0))
    return [made[Request(0, (row,))] for row in range(12)]


def losses(kernels: Kernels, batches: Sequence[Batch]) -> list[float]:
    """Train as `atlas train` does, always with the same draws; return the loss of each step."""
    torch.manual_seed(0)
    settings = config.load("smoke", [f"model.kernels={kernels}"]).model
    model = build(settings, batches[0].metadata_BM.shape[1], SMOKE.data.resolution)
    mask = torch.from_numpy(space.load(SMOKE.data.resolution).mask.copy())
    train = SMOKE.train
    optimizer = torch.optim.AdamW(
        model.parameters(), train.lr, (0.9, train.beta2), weight_decay=train.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedules.learning_rate((step + 1) / STEPS, train.warmup)
    )
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        batch = batches[step % len(batches)]
        output = model(batch, batch.observed_BM, 0.1)
        loss = objectives.losses(output, batch, SMOKE.objective, mask, 1.0, 1.0).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        scheduler.step()
        found.append(loss.item())
    return found


@pytest.mark.slow
def test_training_curves_agree(batches: list[Batch]) -> None:
    ours, reference = (np.array(losses(kernels, batches)) for kernels in ("auto", "reference"))
    assert reference[-12:].mean() < 0.9 * reference[:12].mean()  # it does learn
    assert (np.abs(ours - reference) / np.abs(reference)).max() < 1e-3


@pytest.mark.parametrize("resolution", [2, 4])
def test_weights_are_the_same_either_way(resolution: int) -> None:
    shapes = []
    for kernels in ("auto", "reference"):
        model = build(config.load("smoke", [f"model.kernels={kernels}"]).model, 70, resolution)
        shapes.append({name: tensor.shape for name, tensor in model.state_dict().items()})
    assert shapes[0] == shapes[1]
