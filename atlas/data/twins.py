"""Near-duplicate studies: nothing is removed between studies, but twins share a side of the split.

Two studies are twins where they share at least five coordinates (rounded to 1 mm) that make up at
least half of the smaller one: the same data published twice, or a table copied into a review.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

MIN_SHARED, MIN_SHARE = 5, 0.5


def pairs(peaks_mm: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Find the twins.

    Parameters
    ----------
    peaks_mm : (P, 3) array, mm
    offsets : (S + 1,) int array
        Study s has the peaks ``offsets[s]:offsets[s + 1]``.

    Returns
    -------
    (N, 2) int64 array
        Positions of the studies of each pair, the smaller first.
    """
    from scipy import sparse

    study = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    point = np.unique(np.round(peaks_mm), axis=0, return_inverse=True)[1].reshape(-1)
    has = sparse.coo_matrix(
        (np.ones(len(study), np.int32), (study, point)), shape=(len(offsets) - 1, len(peaks_mm))
    ).tocsr()
    has.data[:] = 1  # a coordinate counts once a study
    has = has[:, np.asarray(has.sum(axis=0)).ravel() > 1]
    size = np.array([len(np.unique(point[a:b])) for a, b in pairwise(offsets)])
    shared = sparse.triu(has @ has.T, k=1).tocoo()
    smaller = np.minimum(size[shared.row], size[shared.col])
    twins = (shared.data >= MIN_SHARED) & (shared.data >= MIN_SHARE * smaller)
    found = np.column_stack([shared.row[twins], shared.col[twins]]).astype(np.int64)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def groups(found: np.ndarray, n: int) -> np.ndarray:
    """Join pairs into groups: for each of `n` studies the position of its group's first study."""
    from scipy import sparse

    graph = sparse.coo_matrix((np.ones(len(found)), tuple(found.T)), shape=(n, n))
    label = sparse.csgraph.connected_components(graph, directed=False)[1]
    _, first = np.unique(label, return_index=True)
    return np.asarray(first[label])


def names(found: np.ndarray, ids: Sequence[str]) -> list[list[str]]:
    """Return the pairs by the studies' identifiers."""
    return [[ids[a], ids[b]] for a, b in found.tolist()]
