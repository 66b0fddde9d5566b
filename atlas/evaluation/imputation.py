"""How well the model fills in metadata that it is not shown.

Each field that held-out studies have is hidden in turn, from the encoder and from the imputer; the
other fields and the code of the whole map remain. Errors are in units of the encoded metadata
(`atlas.metadata.Field.encode`: a number over its spread, log where the field is; weights as they
are). The kernel's width is left out: it is always known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from atlas import metrics, model_file
from atlas.contracts import Batch
from atlas.models.model import Model

Z90 = 1.6448536  # half width of the central 90 % interval of a normal law


def impute_hidden(model: Model, card: model_file.Card, batches: Iterable[Batch]) -> dict[str, Any]:
    """Score the imputed value of every field that the model knows and held-out studies have.

    Returns
    -------
    dict
        By field: ``studies``; ``r2`` (1 - squared error / variance over these studies, elements
        pooled), ``nll`` (Gaussian, nats an element), ``coverage_90`` (share of elements within
        the central 90 % interval), each [mean, low, high] with a bootstrap interval over studies.
        ``r2`` is None where the value does not vary.
    """
    observed = torch.cat([batch.observed_BM for batch in batches]).numpy()
    out: dict[str, Any] = {}
    for field in card.table():
        part = card.table().slices[field.name]
        rows = observed[:, part.start] > 0
        if field.name == "fwhm" or card.used[field.name].studies == 0 or not rows.any():
            continue
        true, mean, log_variance = _hide(model, batches, part)
        out[field.name] = gaussian_scores(true[rows], mean[rows], np.exp(log_variance[rows]))
    return out


@torch.inference_mode()
def _hide(
    model: Model, batches: Iterable[Batch], part: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return true value, imputed mean and log variance of one field's elements, (S, E) each."""
    found = []
    for batch in batches:
        kept_BM = batch.observed_BM.clone()
        kept_BM[:, part] = 0
        z_BD, _ = model.encode(batch.volume_B1XYZ, batch.metadata_BM, kept_BM)
        imputed = model.impute(z_BD, batch.metadata_BM, kept_BM)
        found.append([x[:, part] for x in (batch.metadata_BM, *imputed)])
    true, mean, log_variance = (torch.cat(x).double().numpy() for x in zip(*found))
    return true, mean, log_variance


def gaussian_scores(true: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> dict[str, Any]:
    """Score Gaussian predictions, (S, E) each, as `impute_hidden` describes."""
    error = true - mean
    nll = 0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)
    covered = np.abs(error) <= Z90 * np.sqrt(variance)
    return {
        "studies": len(true),
        "r2": r_squared((error**2).sum(1), ((true - true.mean(0)) ** 2).sum(1)),
        "nll": metrics.interval(nll.mean(1)),
        "coverage_90": metrics.interval(covered.mean(1)),
    }


def r_squared(
    error: np.ndarray, deviation: np.ndarray, draws: int = 2000, seed: int = 0
) -> list[float] | None:
    """Return 1 - sum(error) / sum(deviation), squares by study, with its bootstrap interval."""
    if deviation.sum() <= 1e-12 * len(deviation):
        return None
    drawn = np.random.default_rng(seed).integers(0, len(error), (draws, len(error)))
    sums = error[drawn].sum(1), np.maximum(deviation[drawn].sum(1), 1e-12)
    low, high = np.quantile(1 - sums[0] / sums[1], [0.025, 0.975])
    return [round(float(x), 5) for x in (1 - error.sum() / deviation.sum(), low, high)]
