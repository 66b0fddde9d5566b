"""Splits: shares, strata, groups, seeds, inheritance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from atlas.data import splits
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError

IDS = [f"study{k}" for k in range(1000)]
_RNG = np.random.default_rng(0)
COUNTS = _RNG.integers(1, 200, 1000).tolist()
YEARS = [None if k % 50 == 0 else float(y) for k, y in enumerate(_RNG.integers(1997, 2019, 1000))]


def sides(drawn: dict[str, list[str]]) -> dict[str, str]:
    return {study: split for split, members in drawn.items() for study in members}


def test_a_thousand_studies_are_700_150_150_in_every_stratum_alike() -> None:
    drawn = splits.draw(IDS, YEARS, COUNTS)
    assert {k: len(v) for k, v in drawn.items()} == {"train": 700, "val": 150, "test": 150}
    for values in (COUNTS, [2000 if y is None else y for y in YEARS]):
        of = dict(zip(IDS, values))
        means = [np.mean([of[i] for i in members]) for members in drawn.values()]
        assert max(means) - min(means) < 0.12 * np.std(values)


def test_every_study_on_one_side(bundled: Dataset) -> None:
    everything = [i for ids in bundled.splits.values() for i in ids]
    assert sorted(everything) == sorted(bundled.ids)


def test_same_seed_same_split_whatever_the_order() -> None:
    turned = splits.draw(IDS[::-1], YEARS[::-1], COUNTS[::-1])
    assert turned == splits.draw(IDS, YEARS, COUNTS) != splits.draw(IDS, YEARS, COUNTS, seed=1)


def test_groups_land_on_one_side_and_the_shares_stay() -> None:
    groups = np.arange(1000)
    groups[500:560] = np.arange(60)  # sixty pairs
    groups[[700, 800, 900]] = 100  # and one of four
    drawn = splits.draw(IDS, YEARS, COUNTS, groups)
    side = sides(drawn)
    assert all(side[IDS[k]] == side[IDS[g]] for k, g in enumerate(groups))
    assert {k: len(v) for k, v in drawn.items()} == {"train": 700, "val": 150, "test": 150}


@pytest.mark.parametrize("n", [1, 7, 39])
def test_few_studies(n: int) -> None:
    assert len(sides(splits.draw(IDS[:n], YEARS[:n], COUNTS[:n]))) == n


def test_a_subset_is_stratified() -> None:
    rows = splits.draw_subset(IDS, YEARS, COUNTS, 200, seed=0)
    assert len(np.unique(rows)) == 200 and (np.diff(rows) > 0).all()
    for values in (COUNTS, [y or 2008 for y in YEARS]):
        values = np.array(values, float)
        assert abs(values[rows].mean() - values.mean()) < 0.1 * values.std()
    assert rows.tolist() != splits.draw_subset(IDS, YEARS, COUNTS, 200, seed=1).tolist()
    with pytest.raises(AtlasError, match="a subset of 1001 studies: there are 1000"):
        splits.draw_subset(IDS, YEARS, COUNTS, 1001, seed=0)


def test_a_split_is_inherited_from_either_form(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": []}))
    (tmp_path / "splits.csv").write_text("id,split,year_bin\na,train,3\nb,val,1\n")
    for name in ("splits.json", "splits.csv"):
        given = splits.read(tmp_path / name)
        assert splits.inherit(["a", "b", "c"], given) == {
            "train": ["a"], "val": ["b"], "test": [], "unassigned": ["c"],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", b"study,split\na,train\n", "needs the columns id and split"),
        ("s.csv", b"id,split\na,dev\n", "study a: unknown split 'dev'"),
        ("s.csv", b"id,split\na,train\na,test\n", "study a stands in train and in test"),
        ("s.csv", b"id,split\n", "names no study"),
        ("s.csv", b"id,split\n\xff,train\n", "not UTF-8"),
        ("s.json", b"[1]", "expected an object of lists"),
        ("s.json", b'{"train": 3}', "expected an object of lists"),
        ("s.json", b"{", "is no JSON"),
    ],
)
def test_a_damaged_split_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AtlasError, match=message) as raised:
        splits.read(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_a_missing_split_file() -> None:
    with pytest.raises(AtlasError, match="none.csv: cannot be read"):
        splits.read(Path("none.csv"))
