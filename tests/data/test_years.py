"""Year bins."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

from atlas.data.years import year_bin, year_edges
from tests.support import require_neurosynth


def test_the_cut_is_the_best_of_all_cuts() -> None:
    rng = np.random.default_rng(0)
    years = rng.choice(np.arange(2000, 2009), 60, p=rng.dirichlet(np.ones(9)))
    values, counts = np.unique(years, return_counts=True)

    def cost(cut: tuple[int, ...]) -> int:
        return sum(int(part.sum()) ** 2 for part in np.split(counts, cut))

    best = min(itertools.combinations(range(1, len(values)), 3), key=cost)
    edges = year_edges(years, 4)
    assert cost(tuple(np.searchsorted(values, edges, side="right"))) == cost(best)


def test_bins_of_years_and_of_nothing() -> None:
    edges = year_edges([1998, 2000, 2002], 10)
    assert [year_bin(y, edges) for y in (1990, 1998, 1999, 2002, 2030, None)] == [0, 0, 1, 2, 2, -1]
    assert year_edges([], 10).size == year_edges([2000, 2000], 10).size == 0


def test_neurosynth_bins_are_those_of_the_benchmark() -> None:
    folder = require_neurosynth() / "neurosynth"
    import pandas as pd

    splits = os.environ.get("ATLAS_SPLITS")
    if not splits:
        pytest.skip("ATLAS_SPLITS is not set")
    [path] = folder.glob("*metadata.tsv.gz")
    table = pd.read_csv(path, sep="\t").set_index("id")
    named = pd.read_csv(splits)["id"]
    edges = year_edges(table.loc[named, "year"].to_numpy(), 10)
    assert edges.tolist() == [2005, 2007, 2009, 2010, 2011, 2012, 2013, 2014, 2016]
