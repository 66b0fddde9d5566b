"""Splits by study: 70/15/15, seeded, inside strata of the number of peaks. Ids only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "val", "test")
_SHARES = (0.70, 0.15, 0.15)
_STRATA = 5


def draw(ids: Sequence[str], n_peaks: Sequence[int], seed: int = 0) -> dict[str, list[str]]:
    """Assign every study to train, val or test.

    Parameters
    ----------
    ids : sequence of str
        One a study: everything of one publication lands on one side.
    n_peaks : sequence of int
        Number of peaks; each fifth of the studies by this number is split alike.
    seed : int
        Same ids, numbers and seed give the same split, whatever the order of the ids.

    Returns
    -------
    dict
        Sorted ids by split.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((np.asarray(ids, dtype=str), np.asarray(n_peaks)))
    out: dict[str, list[str]] = {split: [] for split in SPLITS}
    for stratum in np.array_split(order, _STRATA):
        shuffled = rng.permutation(stratum)
        # A random phase, so that rounding favours no split over many strata.
        position = (np.arange(len(shuffled)) + rng.random()) / max(len(shuffled), 1)
        which = np.searchsorted(np.cumsum(_SHARES)[:-1], position % 1.0, side="right")
        for k, split in enumerate(SPLITS):
            out[split] += [ids[i] for i in shuffled[which == k]]
    return {split: sorted(members) for split, members in out.items()}
