"""Out of memory: say which batch would fit, by trying."""

from __future__ import annotations

import gc

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device

from atlas.config import TrainConfig

from .datamodule import AtlasDataModule
from .module import AtlasModule

SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")


def is_shortage(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch's of a GPU or the CPU, or Python's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def advice(
    train: TrainConfig, trainer: pl.Trainer, module: AtlasModule, data: AtlasDataModule
) -> str:
    """Return the line for the user: the largest half, quarter, ... of the batch that fits.

    Call it outside of the handler that caught the exception, which holds the failed step's
    tensors.
    """
    said = f"out of memory with train.batch={train.batch}"
    batch = train.batch // 2
    while batch and not _fits(batch, trainer, module, data):
        batch //= 2
    if not batch:
        return f"{said}, and a single study does not fit; lower model.width or model.growth"
    same = -(-train.batch * train.accumulate // batch)
    return f"{said}; {batch} fits: train.batch={batch} train.accumulate={same}"


def _fits(batch: int, trainer: pl.Trainer, module: AtlasModule, data: AtlasDataModule) -> bool:
    """Try the forward and backward pass of one batch where training ran."""
    device = trainer.strategy.root_device
    module.to(device).train()
    module.zero_grad(set_to_none=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        first = next(iter(data.train_dataloader(batch)))
        with trainer.precision_plugin.train_step_context():
            module.training_losses(move_data_to_device(first, device)).total.backward()
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        return False
    finally:
        module.zero_grad(set_to_none=True)
    return True
