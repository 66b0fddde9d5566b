"""A whole training run: dataset and configuration -> run folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch

from atlas import __version__, model_file
from atlas.config import Config
from atlas.data.batches import EpochSampler, StudyBatches, loader
from atlas.data.dataset import Dataset
from atlas.data.density import mean_density
from atlas.errors import AtlasError
from atlas.models import build
from atlas.models.model import Model
from atlas.objectives import relative_density

from . import folder, memory
from .datamodule import AtlasDataModule
from .module import AtlasModule
from .trainer import make_trainer

BASE_FWHM_MM, BASE_UNIFORM = 12.0, 0.05  # the decoder starts from this kernel density


def train(
    config: Config, dataset: Dataset, run: Path, *, resume: bool = False, force: bool = False
) -> Path:
    """Train a model and write its run folder.

    Parameters
    ----------
    config : Config
    dataset : Dataset
    run : Path
        The run folder: config.yaml, environment.json, checkpoints/, metrics.csv, and in the end
        model.safetensors with model.json.
    resume : bool
        Go on from the last checkpoint in `run`.
    force : bool
        Write over an older run, or resume although the configuration changed.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    AtlasError
        Run folder taken, nothing to resume, changed configuration, a required field missing, loss
        not finite, out of memory, interrupted.
    """
    folder.check(config, dataset, run, resume=resume, force=force)
    for split in ("train", "val"):
        if not dataset.splits.get(split):
            raise AtlasError(f"{dataset.path}: its {split} split is empty; prepare a larger set")
    _check_required(config, dataset)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    pl.seed_everything(config.seed, verbose=False)
    model = build(config.model, dataset.fields.width, config.data.resolution, config.year.head)
    _set_buffers(model, config, dataset)
    module = AtlasModule(config, model, dataset.fields)
    data = AtlasDataModule(dataset, config)
    trainer = make_trainer(config, run)
    if trainer.is_global_zero:
        folder.write(config, dataset, run, resume=resume)
    checkpoints = run / folder.CHECKPOINTS
    start = str(checkpoints / folder.LAST) if resume else None
    end = _fit(trainer, module, data, start)
    if end == "short":  # here the failed step's tensors are freed, in the handler they are not
        raise AtlasError(memory.advice(config.train, trainer, module, data))
    if end == "interrupted":
        raise _interrupted(dataset, run)
    if not trainer.is_global_zero:
        return run
    _load_best(model, checkpoints / folder.BEST)
    model_file.write(run, model, _card(config, dataset, data, model, run))
    return run


def _fit(
    trainer: pl.Trainer, module: AtlasModule, data: AtlasDataModule, start: str | None
) -> Literal["done", "interrupted", "short"]:
    """Train, and say how it ended; "short" is of memory."""
    try:
        trainer.fit(module, data, ckpt_path=start, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C
        return "interrupted"
    except (RuntimeError, MemoryError) as error:
        if not memory.is_shortage(error):
            raise
        return "short"
    finally:
        for logger in trainer.loggers:  # W&B writes its last records when told that it ends
            cast(Any, logger).experiment.finish()
    return "interrupted" if trainer.interrupted else "done"


def _check_required(config: Config, dataset: Dataset) -> None:
    """Refuse a dataset without a field that the run is to condition on."""
    coverage = dataset.coverage("train")
    for name in config.train.requires:
        if name not in coverage:
            there = ", ".join(coverage)
            raise AtlasError(f"train.requires: unknown metadata field {name!r}; there are {there}")
        if not coverage[name] and name != "fwhm":
            raise AtlasError(
                f"{dataset.path}: no training study has {name}, which train.requires names; "
                "prepare a dataset with it (--source, --join), or leave it out of train.requires"
            )


def _set_buffers(model: Model, config: Config, dataset: Dataset) -> None:
    """Tell the model which fields it will see, and where the decoder starts."""
    coverage = dataset.coverage("train") | {"fwhm": 1}
    for field in dataset.fields:
        model.available_M[dataset.fields.slices[field.name]] = float(coverage[field.name] > 0)
    if config.model.base_map:
        resolution = config.data.resolution
        density = mean_density(dataset, dataset.rows("train"), resolution, BASE_FWHM_MM)
        mixed = (1 - BASE_UNIFORM) * density + BASE_UNIFORM / len(density)
        model.decoder.base_V.copy_(torch.from_numpy(np.log(mixed)))


def _interrupted(dataset: Dataset, run: Path) -> AtlasError:
    epoch = folder.last_epoch(run)
    if epoch == 0:
        return AtlasError(f"interrupted in the first epoch; {run} holds no checkpoint yet")
    return AtlasError(
        f"interrupted; epoch {epoch} is kept, go on after it with "
        f"atlas train --resume --data {dataset.path} --out {run}"
    )


def _load_best(model: Model, path: Path) -> None:
    """Put the weights of the best validation epoch into the model."""
    if not path.is_file():
        raise AtlasError(f"{path}: missing; train again with --force")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    model.cpu().eval()


@torch.no_grad()
def _card(
    config: Config, dataset: Dataset, data: AtlasDataModule, model: Model, run: Path
) -> model_file.Card:
    """Describe the trained model: what it saw, which directions it uses, how its maps range."""
    batches = StudyBatches(dataset, config.data, data.year_edges)
    rows = dataset.rows("train")
    means, tops = [], []
    for batch in loader(batches, EpochSampler(rows, config.train.batch, shuffle=False)):
        output = model(batch, batch.observed_BM)
        means.append(output.mean_BD)
        tops.append(relative_density(output.decoded).quantile(0.995, dim=1))
    codes = torch.cat(means)
    return model_file.Card(
        format=1,
        name=run.resolve().name,
        atlas_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=config.seed,
        dataset=dataset.fingerprint,
        source=dataset.info["source"]["name"],
        data=config.data,
        model=config.model,
        fields=dataset.fields.snapshot(),
        used=_fields_used(dataset, config),
        year_edges=data.year_edges.tolist(),
        year_head=config.year.head,
        latent_activity=codes.var(0).tolist(),
        latent_mean=codes.mean(0).tolist(),
        latent_sd=codes.std(0).tolist(),
        display=(1.0, round(float(torch.cat(tops).median()), 2)),
    )


def _fields_used(dataset: Dataset, config: Config) -> dict[str, model_file.FieldUse]:
    used = {}
    for field in dataset.fields:
        values = [dataset.metadata[r].get(field.name) for r in dataset.rows("train")]
        known = [v for v in values if v is not None]
        if field.name == "fwhm":
            known = list(config.data.fwhm) * len(values)
        numbers = [v for v in known if isinstance(v, float | int)]
        used[field.name] = model_file.FieldUse(
            studies=len(known),
            low=min(numbers) if numbers else None,
            high=max(numbers) if numbers else None,
        )
    return used
