"""MODELS: one row a model, each whole in one file."""

from __future__ import annotations

from collections.abc import Callable

from atlas.config import ModelConfig, YearHead

from .baseline_vae import BaselineVAE
from .cvae import CVAE
from .direct_vae import DirectVAE
from .model import Model

# Without metadata there is no year head either: the baseline's row drops its form.
MODELS: dict[str, Callable[[ModelConfig, int, int, YearHead], Model]] = {
    "cvae": CVAE,
    "direct_vae": DirectVAE,
    "baseline_vae": lambda config, width, resolution, _: BaselineVAE(config, width, resolution),
}


def build(
    config: ModelConfig, fields_width: int, resolution: int, year_head: YearHead = "bins"
) -> Model:
    """Return the model that a configuration names."""
    return MODELS[config.name](config, fields_width, resolution, year_head)
