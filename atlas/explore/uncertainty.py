"""Where a map's uncertainty comes from: three parts whose variances add up.

The law of total variance, taken apart in this order. Let z be a study's code, known as N(z, sd^2)
of its posterior, and m its metadata, the missing ones known as N(mean, variance) of the imputer.

decoder     the mean over codes of the variance with which the decoder itself says that a study's
            smoothed map scatters around the mean
posterior   the variance over codes of the mean map, missing metadata at their imputed means
imputation  the variance over imputed metadata of the mean map, the code at z
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from atlas.errors import AtlasError
from atlas.inference import Atlas, Metadata, Point

PARTS = ("decoder", "posterior", "imputation")
SAMPLES = 24
_CHUNK = 8


class Uncertainty(NamedTuple):
    """The mean map at a point, and standard deviations in its units, (V,) float32 each.

    Attributes
    ----------
    mean, decoder, posterior, imputation : (V,) arrays
        Cells of the mask (`Space.volume` puts them into a volume).
    point : Point
        Where they were taken.
    """

    mean: np.ndarray
    decoder: np.ndarray
    posterior: np.ndarray
    imputation: np.ndarray
    point: Point

    def total(self, parts: Sequence[str] = PARTS) -> np.ndarray:
        """Return the standard deviation of the chosen parts together, (V,)."""
        chosen = [np.square(getattr(self, part)) for part in parts]
        return np.sqrt(np.sum(chosen, axis=0)) if chosen else np.zeros_like(self.mean)


def uncertainty(
    atlas: Atlas,
    z: Any = None,
    sd: Any = None,
    m: Metadata | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Uncertainty:
    """Take the uncertainty of one map apart.

    Parameters
    ----------
    z : (D,) array-like or Code, optional
        The code; a `Code` brings its own sd.
    sd : (D,) array-like, optional
        Standard deviation of the code's posterior; None: the code is exactly z.
    m : mapping, optional
        What is known of the study.
    samples : int
        Draws of the codes, and of the metadata; at least 2.
    seed : int
        Of the draws.

    Raises
    ------
    AtlasError
        Fewer than 2 samples; an sd that is negative or of another length; see `Atlas.decode`.
    """
    if samples < 2:
        raise AtlasError(f"samples: a variance takes at least 2, got {samples}")
    sd_D = _sd(atlas, getattr(z, "sd", None) if sd is None else sd)
    generator = torch.Generator().manual_seed(seed)
    here = atlas.point(z, m)
    mean, own_sd = (x[0] for x in atlas.cells(here.z_BD, here.m_BM))
    codes = here.z_BD + torch.randn(samples, atlas.latent, generator=generator) * sd_D
    decoder, posterior = np.square(own_sd), np.zeros_like(mean)
    if sd_D.any():
        drawn = (atlas.point(part.numpy(), m) for part in codes.split(_CHUNK))
        decoder, posterior = _moments(atlas.cells(p.z_BD, p.m_BM) for p in drawn)
    imputation = np.zeros_like(mean)
    m_SM = _draw_metadata(atlas, here, m, samples, generator)
    if (m_SM != here.m_BM).any():
        parts = m_SM.split(_CHUNK)
        imputation = _moments(atlas.cells(here.z_BD.expand(len(part), -1), part) for part in parts)[
            1
        ]
    return Uncertainty(mean, np.sqrt(decoder), np.sqrt(posterior), np.sqrt(imputation), here)


def _sd(atlas: Atlas, sd: Any) -> torch.Tensor:
    """Check a posterior's sd, (D,); zeros where there is none."""
    if sd is None:
        return torch.zeros(atlas.latent)
    values = np.asarray(sd, dtype=np.float32)
    if values.shape != (atlas.latent,) or not np.isfinite(values).all() or (values < 0).any():
        raise AtlasError(f"sd: expected {atlas.latent} numbers of at least 0")
    return torch.from_numpy(values)


def _draw_metadata(
    atlas: Atlas, here: Point, m: Metadata | None, samples: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw what m lacks from the imputer's law at the code, (S, M); weights stay weights."""
    mean_BM, log_variance_BM, free_M = atlas.imputation(here.z_BD, m)
    noise = torch.randn(samples, mean_BM.shape[1], generator=generator)
    drawn = mean_BM + noise * torch.exp(0.5 * log_variance_BM)
    for field in atlas.fields:
        if field.kind == "category":
            part = atlas.fields.slices[field.name]
            weights = drawn[:, part].clamp(min=0)
            drawn[:, part] = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    return torch.where(free_M, drawn, here.m_BM)


def _moments(maps: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the variances and the variance of the means over all draws, (V,) each.

    One chunk in memory at a time; Chan's update (Chan et al. 1979) keeps the precision.
    """
    count, variance = 0, 0.0
    centre, squares = 0.0, 0.0
    for mean_BV, sd_BV in maps:
        size, middle = len(mean_BV), mean_BV.mean(0, dtype=np.float64)
        variance = variance + np.square(sd_BV, dtype=np.float64).sum(0)
        gap = middle - centre
        squares = squares + np.square(mean_BV - middle).sum(0)
        squares = squares + np.square(gap) * (count * size / (count + size))
        centre, count = centre + gap * (size / (count + size)), count + size
    return tuple(np.asarray(x, np.float32) for x in (variance / count, squares / (count - 1)))  # type: ignore[return-value]
