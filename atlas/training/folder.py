"""The run folder: config.yaml and environment.json, and whether a run may be written there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from atlas import __version__, model_file
from atlas.config import Config
from atlas.config import load as load_config
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.files import write_text

CHECKPOINTS, LAST, BEST = "checkpoints", "last.ckpt", "best.ckpt"


def check(config: Config, dataset: Dataset, run: Path, *, resume: bool, force: bool) -> None:
    """Refuse what cannot go on in this folder; writes nothing."""
    holds_run = _last(run).exists() or (run / model_file.CARD).exists()
    if not resume:
        if holds_run and not force:
            raise AtlasError(f"{run}: holds a run already; --resume it, or --force to replace it")
        return
    if not _last(run).is_file():
        raise AtlasError(f"{run}: holds no checkpoint to resume from; train without --resume")
    checkpoint = _read_last(run)
    old, new = (c.model_dump(mode="json") for c in (_stored_config(run), config))
    changes = model_file.differences(old, new)
    if _stored_dataset(run) != dataset.fingerprint:
        changes.append("dataset was another one")
    fixed = [c for c in changes if c.startswith(("model.", "data.resolution", "dataset"))]
    if fixed or (changes and not force):
        hint = "" if fixed else ", or --force to go on with the new one"
        raise AtlasError(
            f"{run}: cannot resume with another configuration: {'; '.join(changes)}. Use the same"
            + hint
        )
    origin = model_file.origin(config.model, dataset.fields)
    changes = model_file.belonging(checkpoint.get("atlas", origin), origin)
    if changes:  # the configurations agree, but the tables of fields or the code's keys do not
        raise AtlasError(f"{_last(run)}: belongs to another model: {'; '.join(changes)}")


def write(config: Config, dataset: Dataset, run: Path, *, resume: bool) -> None:
    """Write config.yaml and environment.json; a new run first clears what an old one left."""
    (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in (model_file.WEIGHTS, model_file.CARD, "metrics.csv", "test_results.json"):
            (run / name).unlink(missing_ok=True)
        for checkpoint in (run / CHECKPOINTS).glob("*.ckpt"):
            checkpoint.unlink()
        for name in ("report", "counterfactual"):
            shutil.rmtree(run / name, ignore_errors=True)
    write_text(run / "config.yaml", config.to_yaml())
    write_text(run / "environment.json", json.dumps(_environment(dataset), indent=1))


def last_epoch(run: Path) -> int:
    """Return how many epochs the last checkpoint has behind it; 0 without a checkpoint."""
    return int(_read_last(run)["epoch"]) + 1 if _last(run).is_file() else 0


def _read_last(run: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(_last(run), map_location="cpu", weights_only=True)
        int(checkpoint["epoch"])
    except Exception:  # whatever torch makes of a damaged archive
        raise AtlasError(f"{_last(run)}: damaged; train again with --force") from None
    return dict(checkpoint)


def _last(run: Path) -> Path:
    return run / CHECKPOINTS / LAST


def _stored_config(run: Path) -> Config:
    if not (run / "config.yaml").is_file():
        raise AtlasError(f"{run}: config.yaml is missing; train again with --force")
    return load_config(run / "config.yaml")


def _stored_dataset(run: Path) -> str:
    try:
        return str(json.loads((run / "environment.json").read_text())["dataset"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        path = run / "environment.json"
        raise AtlasError(f"{path}: missing or damaged; train again with --force") from None


def _environment(dataset: Dataset) -> dict[str, Any]:
    packages = ("torch", "numpy", "pytorch-lightning", "nimare", "nilearn", "tensorstore")
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {
        "atlas": __version__,
        "python": platform.python_version(),
        "packages": {name: installed.get(name) for name in packages},
        "git": _git_commit(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "dataset": {
            "path": str(dataset.path),
            "fingerprint": dataset.fingerprint,
            "inputs": dataset.info["source"]["inputs"],
        },
        "command": sys.argv,
    }


def _git_commit() -> str | None:
    """Return the commit of the git tree that this file lies in, if any."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
