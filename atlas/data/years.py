"""Publication-year bins: contiguous, of nearly equal size; what the year adversary predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def year_edges(years: Sequence[float] | np.ndarray, bins: int) -> np.ndarray:
    """Cut the years into contiguous bins of nearly equal size.

    The cut with the smallest sum of squared bin sizes, by dynamic programming over the distinct
    years.

    Parameters
    ----------
    years : sequence of float
        One a study.
    bins : int
        At most this many; fewer where there are fewer distinct years.

    Returns
    -------
    (bins - 1,) float64 array
        The last year of every bin but the last.
    """
    values, counts = np.unique(np.asarray(years, dtype=float), return_counts=True)
    bins, below = min(bins, len(values)), np.concatenate([[0], np.cumsum(counts)])
    if bins < 2:
        return np.zeros(0)
    # cost[j]: of cutting the first j distinct years into the bins so far; cut[b][j]: where the
    # last of b + 1 bins begins.
    cost = np.square(below.astype(float))
    cuts = []
    for _ in range(bins - 1):
        with_last = cost[:, None] + np.square(below[None, :] - below[:, None])
        with_last[np.tril_indices(len(below))] = np.inf  # the last bin is not empty
        cuts.append(with_last.argmin(0))
        cost = with_last.min(0)
    edges, end = [], len(values)
    for cut in reversed(cuts):
        end = int(cut[end])
        edges.append(values[end - 1])
    return np.array(edges[::-1])


def year_bin(year: Any, edges: np.ndarray) -> int:
    """Return the bin of a year, -1 where it is missing."""
    return -1 if year is None else int((edges < year).sum())
