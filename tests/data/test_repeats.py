"""Directional deduplication and its evidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.contracts import Study
from atlas.data import repeats

PEAK = st.tuples(*[st.integers(-3, 3)] * 3)


def study(peaks: list, tables: list[str] | None = None, name: str = "s1") -> Study:
    array = np.array(peaks, dtype=float).reshape(-1, 3)
    return Study(name, "", array, ("MNI",) * len(array), peak_table=tuple(tables or ()))


def test_the_earlier_one_stays_and_a_mirrored_peak_too() -> None:
    out, removed = repeats.drop_repeats(
        study([[1, 2, 3], [4, 5, 6], [1.4, 2.4, 2.6], [-1, 2, 3], [4, 5, 6]])
    )
    assert out.peaks_mm.tolist() == [[1, 2, 3], [4, 5, 6], [-1, 2, 3]]
    assert out.peak_number.tolist() == [1, 2, 4]
    assert [(f.peak, f.why) for f in removed] == [(3, "repeats peak 1"), (5, "repeats peak 2")]
    assert (removed[0].x, removed[0].y, removed[0].z) == (1.4, 2.4, 2.6)  # as printed


def test_halves_round_to_even() -> None:
    assert repeats.first_of(study([[0.5, 0, 0], [0, 0, 0], [1.5, 0, 0], [2.5, 0, 0]])).tolist() == [
        0, 0, 2, 2,
    ]  # fmt: skip


def test_scope_and_tolerance_are_settings() -> None:
    one = study([[0, 0, 0], [0, 0, 0], [0, 0, 2], [0, 0, 4]], ["a", "b", "b", "b"])
    assert repeats.first_of(one, "none").tolist() == [0, 1, 2, 3]
    assert repeats.first_of(one, "study").tolist() == [0, 0, 2, 3]
    assert repeats.first_of(one, "table").tolist() == [0, 1, 2, 3]
    # Within 2 mm of an earlier one that stays: the fourth is near the third only, which goes.
    assert repeats.first_of(one, "study", 2).tolist() == [0, 0, 0, 3]


@given(st.lists(PEAK, max_size=12), st.sampled_from(["study", "table"]), st.randoms())
def test_against_a_plain_loop(peaks: list, scope: str, random) -> None:
    tables = [random.choice("ab") for _ in peaks]
    seen: dict = {}
    expected = []
    for k, (peak, table) in enumerate(zip(peaks, tables)):
        expected.append(seen.setdefault((peak, table if scope == "table" else ""), k))
    found = repeats.first_of(study(peaks, tables), scope)  # type: ignore[arg-type]
    assert found.tolist() == expected
    once, removed = repeats.drop_repeats(study(peaks, tables), scope)  # type: ignore[arg-type]
    assert len(once.peaks_mm) + len(removed) == len(peaks)
    assert repeats.drop_repeats(once, scope)[1] == []  # type: ignore[arg-type]


@given(st.lists(PEAK, max_size=12), st.sampled_from([1, 2, 2.5]))
def test_a_tolerance_against_a_plain_loop(peaks: list, tolerance_mm: float) -> None:
    kept: list[int] = []
    expected = []
    for k, peak in enumerate(peaks):
        earlier = [j for j in kept if math.dist(peak, peaks[j]) <= tolerance_mm]
        expected.append(earlier[0] if earlier else k)
        kept += [] if earlier else [k]
    assert repeats.first_of(study(peaks), "study", tolerance_mm).tolist() == expected


def test_rates_count_every_reading() -> None:
    one = study([[0, 0, 0], [0, 0, 0], [0.2, 0, 0], [0, 0, 3]], ["a", "b", "a", "b"])
    two = study([[0, 0, 0]], ["a"], "s2")
    rows = {r["reading"]: r for r in repeats.rates([one, two], [np.array([0]), np.array([0, 1])])}
    assert rows["same table, exact"]["peaks"] == 0
    assert rows["same study, exact"]["peaks"] == 1
    assert rows["same study, rounded to 1 mm"]["peaks"] == 2
    assert rows["same study, within 3 mm, first kept"]["peaks"] == 3
    assert rows["the same coordinate anywhere, any study"]["peaks"] == 2
    exact = rows["same study, exact"]
    assert exact["percent"] == 20 and exact["low"] == 20 and exact["high"] == 25


@pytest.mark.parametrize("noise", [0, 0.3])
def test_whole_tables_and_heavy_studies_are_listed(noise: float) -> None:
    table = np.random.default_rng(0).integers(-40, 40, (6, 3)).astype(float)
    again = study([*table, *(table[::-1] + noise)], ["1"] * 6 + ["2"] * 6, "again")
    twice = study([*table, *table], ["1"] * 12, "twice")
    fine = study(table.tolist(), ["1"] * 6, "fine")
    listed = repeats.listing([again, twice, fine])
    assert [(row["study"], row["table"], row["repeats"]) for row in listed["tables"]] == [
        ("again", "2", "1"),
        ("twice", "1", "1"),
    ]
    assert {row["study"] for row in listed["studies"]} == {"again", "twice"}
