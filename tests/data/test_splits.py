"""Splits: shares, strata, seeds."""

from __future__ import annotations

import numpy as np

from atlas.data import splits
from atlas.data.dataset import Dataset

IDS = [f"study{k}" for k in range(1000)]
COUNTS = np.random.default_rng(0).integers(1, 200, 1000).tolist()


def test_shares_and_strata() -> None:
    drawn = splits.draw(IDS, COUNTS)
    assert {k: round(len(v) / 1000, 2) for k, v in drawn.items()} == {
        "train": 0.7,
        "val": 0.15,
        "test": 0.15,
    }
    by_id = dict(zip(IDS, COUNTS))
    medians = [np.median([by_id[i] for i in ids]) for ids in drawn.values()]
    assert max(medians) - min(medians) < 12


def test_every_study_on_one_side(bundled: Dataset) -> None:
    everything = [i for ids in bundled.splits.values() for i in ids]
    assert sorted(everything) == sorted(bundled.ids)


def test_same_seed_same_split_whatever_the_order() -> None:
    turned = splits.draw(IDS[::-1], COUNTS[::-1])
    assert turned == splits.draw(IDS, COUNTS) != splits.draw(IDS, COUNTS, seed=1)
