"""Near-duplicate studies."""

from __future__ import annotations

import numpy as np

from atlas.data import twins


def test_pairs_against_sets() -> None:
    rng = np.random.default_rng(0)
    pool = rng.integers(-60, 60, (60, 3)).astype(float)
    studies = [pool[rng.choice(60, rng.integers(1, 25), replace=False)] for _ in range(40)]
    studies.append(studies[3][::-1] + 0.2)  # the same after rounding, in another order
    studies.append(np.concatenate([studies[5], studies[5]]))
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in studies])])
    sets = [set(map(tuple, np.round(s).tolist())) for s in studies]
    expected = [
        [a, b]
        for a in range(len(sets))
        for b in range(a + 1, len(sets))
        if (shared := len(sets[a] & sets[b])) >= 5 and shared >= min(len(sets[a]), len(sets[b])) / 2
    ]
    found = twins.pairs(np.concatenate(studies), offsets)
    assert found.tolist() == expected and len(expected) > 3


def test_groups_join_pairs_and_name_their_first_study() -> None:
    assert twins.groups(np.array([[1, 4], [4, 6], [2, 3]]), 7).tolist() == [0, 1, 2, 2, 1, 5, 1]
    assert twins.groups(np.zeros((0, 2), np.int64), 3).tolist() == [0, 1, 2]
    assert twins.names(np.array([[0, 2]]), ["a", "b", "c"]) == [["a", "c"]]


def test_studies_without_peaks_have_no_twins() -> None:
    assert len(twins.pairs(np.zeros((0, 3)), np.zeros(4, np.int64))) == 0
