"""The peaks of a decoded map, with intervals and the names of their regions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch

from atlas.errors import AtlasError
from atlas.inference import Atlas, Metadata

from .regions import Regions
from .uncertainty import PARTS, SAMPLES, uncertainty

LEVEL = 0.9
_Q = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_REACH_MM = 8.0  # a peak is the largest value this far along each axis
_LEAST = 1.0  # the uniform density: below it, nothing rises


class Peak(NamedTuple):
    """A local maximum: place in MNI mm, value, ends of its 90 % interval, region or None."""

    mm: tuple[float, float, float]
    value: float
    low: float
    high: float
    region: str | None


def peaks(
    atlas: Atlas,
    z: Any = None,
    sd: Any = None,
    m: Metadata | None = None,
    parts: Sequence[str] = PARTS,
    samples: int = SAMPLES,
    seed: int = 0,
    most: int = 20,
    regions: Regions | None = None,
) -> list[Peak]:
    """List the local maxima of the mean map above the uniform density, highest first.

    Parameters
    ----------
    parts : sequence of {"decoder", "posterior", "imputation"}
        What the intervals hold: value +- 1.645 sd of the parts together, not below 0.
    regions : Regions, optional
        Where the names come from.
    z, sd, m, samples, seed
        As of `uncertainty`.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise AtlasError(f"parts: unknown {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    known = uncertainty(atlas, z, sd, m, samples, seed)
    where = _maxima(atlas.space.volume(known.mean), atlas.space.resolution)[:most]
    centres = np.asarray(where) * atlas.space.affine.diagonal()[:3] + atlas.space.affine[:3, 3]
    cells = atlas.space.index[tuple(where.T)]
    names = regions.names_at(centres) if regions else [None] * len(where)
    half = _Q * known.total(parts)[cells]
    return [
        Peak(
            (float(mm[0]), float(mm[1]), float(mm[2])),
            float(value),
            max(float(value - wide), 0.0),
            float(value + wide),
            name,
        )
        for mm, value, wide, name in zip(centres, known.mean[cells], half, names)
    ]


def _maxima(volume: np.ndarray, resolution: int) -> np.ndarray:
    """Cells that are the largest of their neighbourhood, (P, 3), highest first."""
    reach = round(_REACH_MM / resolution)
    field = torch.from_numpy(volume)[None, None]
    largest = torch.nn.functional.max_pool3d(field, 2 * reach + 1, stride=1, padding=reach)
    ijk = np.argwhere((volume == largest[0, 0].numpy()) & (volume > _LEAST))
    return ijk[np.argsort(-volume[tuple(ijk.T)], kind="stable")]
