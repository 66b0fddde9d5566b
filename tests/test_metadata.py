"""FIELDS: encoding, parsing, ranges, snapshots."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atlas.errors import AtlasError
from atlas.metadata import FIELDS, Field, FieldTable

TABLE = FieldTable()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_encoding_is_undone_by_decoding(field: Field) -> None:
    if field.kind == "category":
        value = {field.categories[0]: 0.75, field.categories[2]: 0.25}
        decoded = field.decode(field.encode(value))
        assert {k: v for k, v in decoded.items() if v} == value
        return
    for number in (field.low, field.centre, field.high):
        assert field.decode(field.encode(number)) == pytest.approx(number, rel=1e-5)


def test_the_vector_says_what_is_missing() -> None:
    vector, observed = TABLE.encode({"n": 20, "task": "language", "year": None})
    assert vector.shape == observed.shape == (TABLE.width,)
    assert observed[TABLE.slices["n"]] == 1 and not observed[TABLE.slices["year"]].any()
    assert observed[TABLE.slices["task"]].all() and vector[TABLE.slices["task"]].sum() == 1
    assert not vector[observed == 0].any()
    assert vector[TABLE.slices["n"]] == 0  # the centre


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("year", "1800", r"year: 1800 is outside its range 1990 to 2030"),
        ("n", "many", r"n: expected a number, got 'many'"),
        ("n", "nan", r"n: nan is outside its range"),
        ("task", "chess", r"task: unknown category 'chess'; there are working_memory, "),
        ("task", "language:x", r"task: expected category or category:weight"),
        ("task", "language:-1", r"weight of language must be at least 0"),
        ("task", "language:0", r"weights sum to 0"),
        ("colour", "red", r"unknown metadata field 'colour'; there are task, "),
    ],
)
def test_a_wrong_value_is_one_clear_line(name: str, text: str, message: str) -> None:
    with pytest.raises(AtlasError, match=message):
        TABLE[name].parse(text)


def test_weights_are_normalised() -> None:
    assert TABLE["task"].parse("language:2,memory:2") == {"language": 0.5, "memory": 0.5}
    assert TABLE["task"].parse("motor") == {"motor": 1.0}


def test_a_snapshot_survives_json() -> None:
    again = FieldTable.from_snapshot(json.loads(json.dumps(TABLE.snapshot())))
    assert list(again) == list(TABLE) and again.slices == TABLE.slices


def test_a_new_row_is_all_that_a_new_field_needs() -> None:
    extended = FieldTable((*FIELDS, Field("hunger", "Hunger", "number", "asked", low=0, high=10)))
    vector, observed = extended.encode({"hunger": 5})
    assert extended.width == TABLE.width + 1
    assert vector[-1] == 5 and np.array_equal(observed.nonzero()[0], [TABLE.width])
