"""The bundled studyset as the reader returns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas.data.sources import SOURCES
from atlas.data.sources.bundled import task_weights
from atlas.errors import AtlasError


@pytest.fixture(scope="module")
def studies():
    return SOURCES["bundled"](None)[0]


def test_counts_are_those_of_the_files(studies) -> None:
    assert len(studies) == len({s.id for s in studies}) == 320
    assert sum(len(s.peaks_mm) for s in studies) == 9492
    labels = [label for s in studies for label in s.peak_space]
    assert {x: labels.count(x) for x in set(labels)} == {
        "MNI": 7819,
        "TAL": 1159,
        "OTHER": 347,
        "UNKNOWN": 167,
    }


def test_coordinates_are_as_printed(studies) -> None:
    import pandas as pd
    from nimare.utils import get_resource_path

    folder = Path(get_resource_path()) / "nback_vs_flanker_studyset_2026-07"
    printed = pd.read_parquet(folder / "coordinates.parquet")
    for study in studies[:40]:
        rows = printed[printed["study_id"] == study.id]
        assert np.array_equal(study.peaks_mm, rows[["x", "y", "z"]].to_numpy())


def test_metadata_coverage(studies) -> None:
    known = {
        name: sum(s.metadata[name] is not None for s in studies) for name in ("task", "n", "age")
    }
    assert known["task"] > 300 and known["n"] >= 314 and known["age"] > 240
    assert all("year" not in s.metadata for s in studies)
    n = [s.metadata["n"] for s in studies if s.metadata["n"] is not None]
    assert 10 < np.median(n) < 60 and min(n) >= 1


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["N-back task"], {"working_memory": 1}),
        (["Modified Eriksen Flanker Task"], {"attention_control": 1}),
        (["2-back task with emotional stimuli", "Go/No-Go Task"],
         {"attention_control": 0.5, "working_memory": 0.5}),
        (["fear conditioning task"], {"emotion": 1}),
        (["Diffusion tensor imaging (DTI)"], None),
        ([], None),
    ],
)  # fmt: skip
def test_task_names_map_to_categories(names, weights) -> None:
    assert task_weights(names) == weights


def test_a_folder_that_is_no_studyset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match="holds no studyset.json"):
        SOURCES["bundled"](tmp_path)
    (tmp_path / "studyset.json").write_text("{")
    with pytest.raises(AtlasError, match="cannot be read as a NiMARE studyset"):
        SOURCES["bundled"](tmp_path)
