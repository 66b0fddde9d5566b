"""How long a run takes: its steps times the seconds of a step on that GPU, and what comes around.

The seconds come from bench/results/gpu_steps.json, whose rows say whether they were measured or
computed (bench/gpu_steps.py). Where no row fits, the first steps on the pod are timed.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

from atlas import config as configuration
from atlas.config import Config

SETUP_S = 600.0  # taken to become ready, to install and to send the data; not measured on a pod
AROUND = 1.2  # a fifth more than the steps, for validations, checkpoints and the evaluation


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
    """Return what a step's time depends on."""
    train = config.train
    model = config.model.model_copy(update={"kernels": "auto", "dropout": 0, "code_dropout": 0})
    return (model, config.data.resolution, train.batch, train.precision,
            config.objective.reconstruction)  # fmt: skip


def hours_of(config: Config, steps: int, step_s: float) -> float:
    """Return the hours of a run: setting up, its steps, a fifth more for validations."""
    training = steps * step_s * AROUND
    if config.train.minutes:
        training = min(training, config.train.minutes * 60)
    return (SETUP_S + training) / 3600
