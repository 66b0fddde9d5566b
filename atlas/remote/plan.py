"""What a remote run will take: its estimate, its ceiling in dollars, and what goes there.

Made before any money is spent; whatever is wrong is one clear line here and nothing was created.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from atlas import config as configuration
from atlas.config import Config
from atlas.errors import AtlasError, OptionError

from . import shell
from .errors import NoBalance, OutOfStock
from .provider import Offer, Provider

DISK_GB = 40  # of a pod's own disk
SYSTEM_GB = 15  # of it, for the environment, code, checkpoints and W&B
SETUP_S = 600.0  # taken to become ready, to install and to send the data; not measured on a pod
VALIDATION = 1.2  # a step's share of validations, checkpoints and evaluation, taken as a fifth
PROBE_STEPS = 50


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    config: str | None
    overrides: tuple[str, ...]
    data: Path
    out: Path
    provider: str
    gpu: tuple[str, ...] = ()  # names in order of preference; (): the cheapest there is
    gpus: int = 1
    max_cost: float | None = None  # USD; needed where something is billed
    max_hours: float | None = None
    region: str | None = None
    volume: str | None = None
    detach: bool = False
    resume: bool = False
    force: bool = False
    transport: str = "rest"
    host: str | None = None


@dataclass(frozen=True)
class Choice:
    """One GPU that may be taken, in order; prices of all its GPUs together.

    Attributes
    ----------
    step_s : seconds of a step, None where no table knows it
    source : "measured", "computed", or "probe" where the first steps there are timed
    hours, dollars : the estimate; None before a probe
    ceiling_hours : when the pod is ended at the latest
    """

    offer: Offer
    price: float
    step_s: float | None
    source: str
    hours: float | None
    dollars: float | None
    ceiling_hours: float | None


@dataclass(frozen=True)
class Plan:
    """What `show` prints and a job carries out."""

    request: Request
    choices: tuple[Choice, ...]
    steps: int
    ceiling: float | None  # USD over all pods of this job
    balance: float | None
    commit: str | None
    changed: int  # tracked files that differ from the commit; they go as a diff
    left_here: tuple[str, ...]  # untracked files; they do not go
    data_bytes: int
    disk: int  # GB


def steps_of(config: Config, studies: int, gpus: int = 1) -> int:
    """Count the optimiser's passes that each process makes, as the sampler deals them."""
    batches = math.ceil(studies / (config.train.batch * gpus))
    return batches * config.train.epochs


def table() -> list[dict[str, Any]]:
    """Return the rows of bench/results/gpu_steps.json, which the package carries."""
    text = resources.files("atlas").joinpath("resources", "gpu_steps.json").read_text()
    return list(json.loads(text)["rows"])


def step_time(config: Config, gpu: str) -> tuple[float, str] | None:
    """Return seconds of one step and their source, where a shipped configuration is as large."""
    for name in configuration.shipped():
        if _size(configuration.load(name)) == _size(config):
            for row in table():
                if row["gpu"] == gpu and row["config"] == name:
                    return float(row["step_s"]), str(row["source"])
    return None


def _size(config: Config) -> tuple[Any, ...]:
    """What a step's time depends on."""
    train = config.train
    model = config.model.model_copy(update={"kernels": "auto", "dropout": 0, "code_dropout": 0})
    return (model, config.data.resolution, train.batch, train.precision,
            config.objective.reconstruction)  # fmt: skip


def hours_of(config: Config, steps: int, step_s: float) -> float:
    """Return the hours of a run: setting up, its steps, a fifth more for validations."""
    training = steps * step_s * VALIDATION
    if config.train.minutes:
        training = min(training, config.train.minutes * 60)
    return (SETUP_S + training) / 3600


def refuse_over(
    ceiling: float | None, dollars: float, hours: float, max_hours: float | None
) -> None:
    """Refuse an estimate above a ceiling; also what a probe on the pod is held against."""
    if ceiling is not None and dollars > ceiling:
        raise AtlasError(
            f"estimated {money(dollars)} ({hours:.1f} h), above the ceiling of {money(ceiling)}; "
            "raise --max-cost, train fewer epochs, or take another --gpu"
        )
    if max_hours is not None and hours > max_hours:
        raise AtlasError(
            f"estimated {hours:.1f} h, above --max-hours {max_hours:g}; raise it, train fewer "
            "epochs, or take another --gpu"
        )


def money(dollars: float) -> str:
    """Write dollars as a bill does; what is not nothing is never written as nothing."""
    return f"${dollars:.2f}" if dollars >= 0.005 or dollars <= 0 else "under $0.01"
