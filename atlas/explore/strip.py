"""One slice of the map for each value of a field: a strip across the years, say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from atlas.errors import AtlasError
from atlas.inference import Atlas, Metadata, Point
from atlas.metadata import Value

CHUNK = 8  # maps decoded at once: more are hardly quicker and hold memory


def strip(
    atlas: Atlas,
    z: Any,
    m: Metadata | None,
    field: str,
    values: Sequence[Value | str],
    axis: int,
    mm: float,
) -> np.ndarray:
    """Decode one code under each value of one field; what m lacks is imputed once, under m.

    Parameters
    ----------
    axis : {0, 1, 2}
        Normal of the slice: x, y or z.
    mm : float
        Where it lies on that axis, MNI mm; between two planes of cells, between their values.

    Returns
    -------
    (N, A, B) float32 ndarray
        A slice each; A and B are the two axes left, in the order x, y, z.

    Raises
    ------
    AtlasError
        A place outside the volume; a field or value that the model refuses.
    """
    return slices(atlas, points(atlas, z, m, field, values), axis, mm)


def points(
    atlas: Atlas, z: Any, m: Metadata | None, field: str, values: Sequence[Value | str]
) -> list[Point]:
    """Return the places of a strip, one a value."""
    return [atlas.pair(z, m, {field: value})[1] for value in values]


def slices(atlas: Atlas, row: Sequence[Point], axis: int, mm: float) -> np.ndarray:
    """Decode points and cut one slice out of each map; see `strip`."""
    here = atlas.space
    place = (mm - here.affine[axis, 3]) / here.affine[axis, axis]
    last = here.mask.shape[axis] - 1
    if not -0.5 <= place <= last + 0.5:
        raise AtlasError(f"mm: {mm:g} on axis {'xyz'[axis]} lies outside the volume")
    place = min(max(place, 0.0), float(last))
    low = min(int(place), last - 1)
    found = []
    for k in range(0, len(row), CHUNK):
        z_BD, m_BM = (torch.cat(part) for part in zip(*(p[:2] for p in row[k : k + CHUNK])))
        volume = here.volume(atlas.cells(z_BD, m_BM)[0])
        below, above = (np.take(volume, plane, axis=axis + 1) for plane in (low, low + 1))
        found.append(below + np.float32(place - low) * (above - below))
    return np.concatenate(found)
