"""The Neurosynth reader: on the real files, on files in its format, on damaged ones."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from atlas.data.sources import neurosynth
from atlas.errors import AtlasError
from tests.support import require_neurosynth

NAMES = [neurosynth._PREFIX + name for name in neurosynth.FILES]
COORDINATES = "id\ttable_id\ttable_num\tpeak_id\tx\ty\tz\n"
METADATA = "id\tdoi\tspace\ttitle\tauthors\tyear\tjournal\n"


def write(folder: Path, coordinates: str, metadata: str, topics: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in NAMES]
    paths[0].write_bytes(gzip.compress(coordinates.encode(), mtime=0))
    paths[1].write_bytes(gzip.compress(metadata.encode(), mtime=0))
    sparse.save_npz(paths[2], sparse.csr_matrix(topics))
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    topics = np.zeros((2, 50))
    topics[0, [9, 2]], topics[1, 3] = [0.4, 0.6], 1
    return write(
        tmp_path / "neurosynth",
        COORDINATES + "7\t1\t1.\t3\t1.0\t2.5\t-3.0\n9\t2\t\t5\t0\t0\t0\n7\t4\t\t1\t5\t6\t7\n",
        METADATA + '7\t10.1/x\tTAL\t"Quoted" title\tA, B\t1999\tJ\n9\t\tMNI\tÜber\t\t2010\tK\n',
        topics,
    )


def test_files_in_the_format_are_read(paths: list[Path]) -> None:
    first, second = neurosynth.read_files(*paths)
    assert first.id == "7" and first.title == '"Quoted" title' and first.doi == "10.1/x"
    assert first.peaks_mm.tolist() == [[1, 2.5, -3], [5, 6, 7]]
    assert first.peak_table == ("1", "4") and first.peak_space == ("TAL", "TAL")
    assert first.metadata["year"] == 1999
    assert first.metadata["topics"] == {"topic_02": 0.6, "topic_09": 0.4}
    assert first.metadata["task"] == {"working_memory": 1.0}
    assert second.title == "Über" and second.metadata["task"] is None  # a generic topic alone


@pytest.mark.parametrize(
    ("which", "old", "new", "message"),
    [
        (0, "\tx\t", "\tX\t", "has no column 'x'; expected id, table_id, x, y, z"),
        (0, "9\t2\t", "8\t2\t", "row 3: study 8 is not in"),
        (0, "2.5", "2,5", "row 2: y is '2,5', expected a number"),
        (0, "7\t1\t1.\t3", "7.5\t1\t1.\t3", "row 2: id is '7.5', expected a whole number"),
        (1, "\n9\t", "\n7\t", "study 7 stands twice"),
        (1, "1999", "", "row 2: year is '', expected a whole number"),
        (1, "\tJ\n", "\tJ\tmore\tand\tmore\n", "more cells than the header"),
    ],
)
def test_a_mistake_names_file_row_and_column(
    paths: list[Path], which: int, old: str, new: str, message: str
) -> None:
    text = gzip.decompress(paths[which].read_bytes()).decode()
    assert old in text
    paths[which].write_bytes(gzip.compress(text.replace(old, new, 1).encode()))
    with pytest.raises(AtlasError, match=message) as raised:
        neurosynth.read_files(*paths)
    assert str(paths[which]) in str(raised.value)


def test_coordinates_that_are_not_finite_are_left_to_the_cleaning(paths: list[Path]) -> None:
    text = gzip.decompress(paths[0].read_bytes()).decode().replace("2.5", "nan")
    paths[0].write_bytes(gzip.compress(text.encode()))
    assert np.isnan(neurosynth.read_files(*paths)[0].peaks_mm[0, 1])


def test_bytes_that_are_not_utf8(paths: list[Path]) -> None:
    text = gzip.decompress(paths[1].read_bytes())
    paths[1].write_bytes(gzip.compress(text.replace("Ü".encode(), b"\xfc")))
    with pytest.raises(AtlasError, match="metadata.tsv.gz: not UTF-8 text"):
        neurosynth.read_files(*paths)


@pytest.mark.parametrize("topics", [np.zeros((3, 50)), np.zeros((2, 49)), np.full((2, 50), np.nan)])
def test_topic_weights_that_do_not_fit(paths: list[Path], topics: np.ndarray) -> None:
    sparse.save_npz(paths[2], sparse.csr_matrix(topics))
    with pytest.raises(AtlasError, match=r"rows of topic weights|expected \(studies, 50\)|finite"):
        neurosynth.read_files(*paths)


def test_topic_weights_in_a_pickle_are_not_loaded(paths: list[Path]) -> None:
    np.savez(paths[2], format=np.array(["csr"], dtype=object), data=np.array([print], dtype=object))
    with pytest.raises(AtlasError, match="cannot be read: Object arrays cannot be loaded"):
        neurosynth.read_files(*paths)


def test_a_release_that_was_edited_is_refused(paths: list[Path]) -> None:
    with pytest.raises(AtlasError, match="differs from Neurosynth v7's file .* delete it"):
        neurosynth.read(paths[0].parents[1])


def test_a_folder_without_the_files_says_so_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.error

    def no_network(*args: object) -> None:
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("nimare.extract.extract.urlopen", no_network)
    with pytest.raises(AtlasError, match=r"could not be downloaded .* --data-dir"):
        neurosynth.read(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(AtlasError, match="no such folder; --data-dir names"):
        neurosynth.read(tmp_path / "none")


def test_the_release_has_the_counts_of_the_paper() -> None:
    studies, provenance = neurosynth.read(require_neurosynth())
    assert len(studies) == 14371 and sum(len(s.peaks_mm) for s in studies) == 507891
    assert len({t for s in studies for t in s.peak_table}) == 27072
    spaces = [s.peak_space[0] for s in studies]
    assert {x: spaces.count(x) for x in set(spaces)} == {"MNI": 10204, "TAL": 2335, "UNKNOWN": 1832}
    years = [s.metadata["year"] for s in studies]
    assert min(years) == 1997 and max(years) == 2018  # type: ignore[type-var]
    assert provenance.version == "7" and len(provenance.inputs) == 3


def _mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(raw)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        start = int(rng.integers(len(data)))
        return bytes(data[:start] + data[start + int(rng.integers(1, 50)) :])
    for position in rng.integers(len(data), size=int(rng.integers(1, 8))):
        data[position] = rng.integers(256)
    return bytes(data)


def test_no_damaged_file_is_accepted_or_ends_in_a_traceback(paths: list[Path]) -> None:
    """10,000 mutated files in the soak: an error that names a file, or the same studies."""
    rng = np.random.default_rng(0)
    sound = [p.read_bytes() for p in paths]
    whole = neurosynth.read_files(*paths)
    accepted = 0
    for _ in range(10_000 if os.environ.get("ATLAS_SOAK") == "1" else 300):
        which = int(rng.integers(3))
        damaged = _mutate(sound[which], rng)
        paths[which].write_bytes(damaged)
        try:
            found = neurosynth.read_files(*paths)
        except AtlasError as error:
            assert str(paths[which].parent) in str(error)
        else:  # gzip and zip have checksums of the content, not of their own headers
            accepted += damaged != sound[which]
            assert [s.id for s in found] == [s.id for s in whole]
            assert all(np.array_equal(a.peaks_mm, b.peaks_mm) for a, b in zip(found, whole))
            assert [s.metadata for s in found] == [s.metadata for s in whole]
        with pytest.raises(AtlasError):  # by its sha256 none passes
            neurosynth.read(paths[0].parents[1])
        paths[which].write_bytes(sound[which])


def test_a_truncated_release_is_refused(tmp_path: Path) -> None:
    source = require_neurosynth() / "neurosynth"
    for name in NAMES:
        shutil.copy(source / name, tmp_path)
    folder = tmp_path / "neurosynth"
    folder.mkdir()
    for name in NAMES:
        (tmp_path / name).chmod(0o644)
        (tmp_path / name).rename(folder / name)
    path = folder / NAMES[0]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(AtlasError, match=r"coordinates.tsv.gz: .*; delete it"):
        neurosynth.read(tmp_path)


CELL = st.one_of(st.integers().map(str), st.floats().map(str), st.text(max_size=6))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.lists(CELL, max_size=8), max_size=5))
def test_tables_of_anything(paths: list[Path], rows: list[list[str]]) -> None:
    text = COORDINATES + "\n".join("\t".join(row) for row in rows)
    paths[0].write_bytes(gzip.compress(text.encode("utf-8", "surrogatepass")))
    try:
        neurosynth.read_files(*paths)
    except AtlasError as error:
        assert "\n" not in str(error)
