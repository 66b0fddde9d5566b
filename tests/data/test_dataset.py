"""The dataset folder: round trip, same bytes, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from atlas.data import dataset as folder
from atlas.data.dataset import Dataset
from atlas.data.prepare import Settings, prepare
from atlas.errors import AtlasError


@pytest.fixture
def copy(bundled: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled.path, tmp_path / "copy", dirs_exist_ok=True))


def test_what_is_written_is_read(bundled: Dataset) -> None:
    assert len(bundled) == 320 and bundled.offsets[-1] == len(bundled.peaks_mm)
    assert bundled.peaks_mm.dtype == np.float32 and np.isfinite(bundled.peaks_mm).all()
    row = bundled.study_row(bundled.ids[7])
    assert row == 7 and len(bundled.peaks(row)) == bundled.metadata[row]["n_peaks"]
    coverage = bundled.coverage()
    assert coverage["year"] == coverage["topics"] == 0
    assert coverage == bundled.info["coverage"]


def test_the_same_bytes_twice(bundled: Dataset, tmp_path: Path) -> None:
    again = prepare(Settings(), tmp_path / "again")
    assert again.fingerprint == bundled.fingerprint
    for name in (*folder.DATA_FILES, "dataset.json"):
        assert (again.path / name).read_bytes() == (bundled.path / name).read_bytes()
    other = prepare(Settings(seed=1), tmp_path / "other")
    assert other.splits != bundled.splits


def test_a_missing_or_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match="no such dataset folder; make one with atlas data prep"):
        folder.read(tmp_path / "none")
    with pytest.raises(AtlasError, match=r"studies.parquet is missing"):
        folder.read(tmp_path)


@pytest.mark.parametrize("name", folder.DATA_FILES)
def test_a_changed_file_is_refused(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(AtlasError, match="do not match the fingerprint"):
        folder.read(copy)


def test_a_damaged_description_is_refused(copy: Path) -> None:
    for text in ("{", "[]", json.dumps({"format": 1})):
        (copy / "dataset.json").write_text(text)
        with pytest.raises(AtlasError, match=r"dataset.json: damaged"):
            folder.read(copy)


def test_a_cache_outlives_the_preparation(copy: Path) -> None:
    (copy / "cache_4mm").mkdir()
    (copy / "cache_4mm" / "key.json").write_text("{}")
    assert prepare(Settings(), copy).path == copy
    assert (copy / "cache_4mm" / "key.json").is_file()


def test_an_older_format_is_refused(copy: Path) -> None:
    info = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**info, "format": 1}))
    with pytest.raises(AtlasError, match="format 1, this atlas reads 2; make it again"):
        folder.read(copy)


def test_an_unknown_study_is_one_line(bundled: Dataset) -> None:
    with pytest.raises(AtlasError, match="has no study 'nobody'; for example"):
        bundled.study_row("nobody")


def test_a_foreign_folder_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(AtlasError, match="exists and is no dataset folder"):
        prepare(Settings(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing_behind(
    bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(folder.records, "_peaks_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        prepare(Settings(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
