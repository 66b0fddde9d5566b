"""How often the decoder's standard deviation covers held-out maps.

For each held-out study, whose whole map the encoder is given: the share of the mask's cells where
its smoothed map, in units of the uniform density, lies within mean +- q sd, the central interval
of a normal law at a nominal level. A calibrated sd covers as many cells as the level says.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist

import torch

from atlas import metrics
from atlas.contracts import Batch
from atlas.models.model import Model
from atlas.objectives import relative_density, relative_map

LEVELS = (0.5, 0.8, 0.9, 0.95)


@torch.inference_mode()
def coverage(model: Model, batches: Iterable[Batch], mask: torch.Tensor) -> dict[str, list[float]]:
    """Return the covered share of cells at each level, [mean, low, high] over studies.

    Parameters
    ----------
    model : Model
    batches : iterable of Batch
        Held-out studies, all of their peaks given.
    mask : (X, Y, Z) bool tensor

    Returns
    -------
    dict
        "50", "80", "90", "95": the share with its 95 % bootstrap interval.
    """
    shares = torch.cat([_shares(model, batch, mask) for batch in batches]).numpy()
    return {f"{100 * level:.0f}": metrics.interval(shares[:, k]) for k, level in enumerate(LEVELS)}


def _shares(model: Model, batch: Batch, mask: torch.Tensor) -> torch.Tensor:
    decoded = model(batch, batch.observed_BM).decoded
    error_BV = relative_map(batch.target_B1XYZ, mask) - relative_density(decoded)
    return covered(error_BV, torch.exp(0.5 * decoded.log_variance_BV))


def covered(error_BV: torch.Tensor, sd_BV: torch.Tensor) -> torch.Tensor:
    """Return the share of cells whose error lies in each central interval, (B, levels)."""
    scaled_BV = error_BV.abs() / sd_BV
    halves = [NormalDist().inv_cdf(0.5 + level / 2) for level in LEVELS]
    return torch.stack([(scaled_BV <= half).float().mean(1) for half in halves], dim=1)
