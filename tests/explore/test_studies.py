"""Studies at hand: what is found, and that it is what the dataset says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from atlas.contracts import Study
from atlas.data import records
from atlas.errors import AtlasError
from atlas.explore import studies as studies_module
from atlas.explore.studies import main_category, plain, read
from atlas.inference import Atlas


def make(k: str, title: str, authors: str = "", **metadata) -> Study:
    peaks = np.array([[0.0, 0, 0]])
    return Study(k, title, peaks, ("MNI",), {"n_peaks": 1.0, **metadata}, authors=authors)


@pytest.fixture(scope="module")
def few() -> studies_module.Studies:
    return studies_module.of(
        [
            make("101", "Working memory in the Brain", "Müller A, Fox P", year=1998.0),
            make("102", "Memory for faces", "Fox P", year=2010.0, task={"memory": 3, "social": 1}),
            make("103", "Naïve pain", "O'Brien", task={"pain_somatosensory": 1.0}),
        ],
        "three",
    )


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({}, ["102", "101", "103"]),  # the newest first
        ({"q": "memory"}, ["102", "101"]),
        ({"q": "MEMORY working"}, ["101"]),
        ({"q": "muller"}, ["101"]),
        ({"q": "Müller fox"}, ["101"]),
        ({"q": "naive"}, ["103"]),
        ({"q": "103"}, ["103"]),
        ({"q": "memory pain"}, []),
        ({"category": "memory"}, ["102"]),
        ({"category": "language"}, []),
        ({"first": 2000}, ["102"]),
        ({"last": 2000}, ["101"]),
        ({"first": 1998, "last": 2010}, ["102", "101"]),
        ({"first": 2011}, []),
    ],
)
def test_search(few, query: dict, ids: list[str]) -> None:
    assert [row.id for row in few.search(**query)] == ids


def test_rows_say_what_a_list_shows(few) -> None:
    row = few.rows[1]
    assert row == ("102", "Memory for faces", "Fox P", 2010, "memory", 1)
    assert few.rows[2].year is None
    assert few.rows[0].category is None


def test_a_dataset_is_opened_as_it_was_written(bundled) -> None:
    found = read(bundled.path)
    stored = records.read(bundled.path, bundled.fields)
    assert [r.id for r in found.rows] == list(bundled.ids)
    assert [r.authors for r in found.rows] == [s.authors for s in stored]
    assert found.splits == bundled.splits
    for k in range(0, len(bundled), 17):
        np.testing.assert_array_equal(found.peaks(k), bundled.peaks(k))
    for name in ("n", "task", "year"):
        field = bundled.fields[name]
        values, known = found.values(field)
        for row, one, there in zip(bundled.metadata, values, known):
            assert there == (row.get(name) is not None)
            if there:
                np.testing.assert_allclose(one, field.encode(row[name]), rtol=1e-5)


def test_codes_and_metadata_are_the_models(bundled, tiny_run) -> None:
    atlas, found = Atlas.load(tiny_run), read(bundled.path)
    metadata = atlas.usable(bundled.metadata[3])
    assert found.metadata(3, atlas) == metadata
    expected = atlas.encode(bundled.peaks(3), metadata)
    np.testing.assert_array_equal(found.code(3, atlas).mean, expected.mean)
    cell = found.cells(4)
    np.testing.assert_array_equal(cell, atlas.space.cells(bundled.peaks_mm)[0])


def test_held_out_are_those_of_the_models_own_split(bundled, tiny_run) -> None:
    atlas, found = Atlas.load(tiny_run), read(bundled.path)
    rows, known = found.held_out(atlas)
    assert known
    assert {bundled.ids[r] for r in rows} == set(bundled.splits["test"])
    assert {bundled.ids[r] for r in found.training(atlas)} == set(bundled.splits["train"])
    other = dataclasses.replace(found, source="elsewhere", fingerprint="other")
    rows, known = other.held_out(atlas)
    assert not known
    assert len(rows) == len(bundled)


def test_a_damaged_dataset_is_refused(tmp_path) -> None:
    with pytest.raises(AtlasError, match="no such dataset folder"):
        read(tmp_path / "nothing")


def test_a_study_is_of_its_heaviest_category() -> None:
    assert main_category({"memory": 0.4, "pain": 0.6}) == "pain"
    assert main_category(None) is None
    assert main_category({}) is None


def test_plain_folds_case_and_accents() -> None:
    assert plain("MÜLLER Straße") == plain("muller strasse")
