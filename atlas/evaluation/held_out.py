"""What evaluation asks of a model alone, without a baseline beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from atlas import model_file, space
from atlas.inference import Atlas
from atlas.models.model import Model

from . import criteria
from .imputation import impute_hidden
from .uncertainty import coverage

if TYPE_CHECKING:
    from .evaluate import Split


def measure(model: Model, card: model_file.Card, split: Split) -> dict[str, Any]:
    """Return ``imputation``, ``uncertainty_coverage`` and ``task`` of held-out studies."""
    mask = torch.from_numpy(space.load(card.data.resolution).mask.copy())
    atlas = Atlas(model, card)
    return {
        "imputation": impute_hidden(model, card, split.whole),
        "uncertainty_coverage": coverage(model, split.whole, mask),
        "task": criteria.of_split(atlas, split.counts, split.metadata, split.observed),
    }
