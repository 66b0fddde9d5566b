"""MODELS: one row a model, each whole in one file."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from atlas.config import ModelConfig

from .cvae import CVAE

MODELS: dict[str, Callable[[ModelConfig, int, int], nn.Module]] = {"cvae": CVAE}


def build(config: ModelConfig, fields_width: int, resolution: int) -> CVAE:
    """Return the model that a configuration names."""
    return MODELS[config.name](config, fields_width, resolution)  # type: ignore[return-value]
