"""Exports of Neurosynth Compose, NiMARE and GingerALE, read back as the bundled reader has them."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas.contracts import Study
from atlas.data.sources import bundled, nimads
from atlas.errors import AtlasError
from tests.support import skip

SOAK = os.environ.get("ATLAS_SOAK") == "1"
HEADER = "//Reference=Talairach\n"


@pytest.fixture(scope="module")
def expected() -> dict[str, Study]:
    return {study.id: study for study in bundled.read()[0][::32]}


@pytest.fixture(scope="module")
def exported(expected: dict[str, Study]):
    """Ten of the bundled studies, as NiMARE holds them."""
    from nimare.nimads import Studyset
    from nimare.utils import get_resource_path

    folder = Path(get_resource_path()) / "nback_vs_flanker_studyset_2026-07"
    return Studyset.from_parquet(str(folder), target=None).filter_study_ids(list(expected))


@pytest.fixture(scope="module")
def document(exported, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("nimads") / "studyset.json"
    exported.to_nimads(str(path))
    return json.loads(path.read_text())


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def nested(*studies: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {"id": "S1", "name": "mine", "studies": list(studies), **top}


def study(id: str = "a", points: object = ((1, 2, 3),), **more: Any) -> dict[str, Any]:
    points = [{"coordinates": list(p), "space": "MNI"} for p in points]  # type: ignore[attr-defined]
    return {"id": id, "name": "T", "analyses": [{"id": "1", "points": points}], **more}


def assert_equal(studies: list[Study], expected: dict[str, Study]) -> None:
    assert [s.id for s in studies] == list(expected)
    for found, wanted in zip(studies, expected.values()):
        assert np.array_equal(found.peaks_mm, wanted.peaks_mm)
        assert found.peak_space == wanted.peak_space
        assert found.title == wanted.title
        assert found.metadata.get("n") == wanted.metadata.get("n")


def assert_valid(studies: list[Study]) -> None:
    assert len({s.id for s in studies}) == len(studies) > 0
    for s in studies:
        assert s.peaks_mm.dtype == np.float64 and s.peaks_mm.shape == (len(s.peak_space), 3)
        assert len(s.peak_table) == len(s.peak_space)
        words = (s.id, s.title, s.authors, s.journal, s.doi, *s.peak_space, *s.peak_table)
        assert s.id and "\n" not in "".join(words) and "".join(words).encode() is not None
        assert all(isinstance(v, float | int) for v in s.metadata.values())


def refused(path: Path, match: str) -> None:
    with pytest.raises(AtlasError, match=match) as caught:
        nimads.read(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


# Round trips


def test_json_is_what_the_bundled_reader_has(document, expected, tmp_path: Path) -> None:
    studies, provenance = nimads.read(write(tmp_path / "nback.json", document))
    assert_equal(studies, expected)
    assert {"TAL", "MNI"} <= {label for s in studies for label in s.peak_space}
    assert sum("n" in s.metadata for s in studies) >= 9
    assert provenance.name == "nimads: n-back vs flanker task analysis examples"
    assert provenance.version == "nback-vs-flanker-2026-07"
    assert provenance.licence == "as stated by its authors"
    assert list(provenance.inputs) == ["nback.json"]


def test_parquet_is_what_the_bundled_reader_has(exported, expected, tmp_path: Path) -> None:
    exported.to_parquet(str(tmp_path / "set"))
    for named in (tmp_path / "set", tmp_path / "set" / "studyset.json"):
        studies, provenance = nimads.read(named)
        assert_equal(studies, expected)
        assert {"studyset.json", "coordinates.parquet"} <= set(provenance.inputs)


def test_compose_zip_and_folder(document, expected, tmp_path: Path) -> None:
    """Compose keeps the annotation in a file of its own."""
    (annotation,) = document["annotations"]
    bare = {**document, "annotations": [annotation["id"]]}
    write(tmp_path / "studyset.json", bare)
    write(tmp_path / "annotation.json", annotation)
    write(tmp_path / "notes.txt", "not Sleuth, not read")
    studies, provenance = nimads.read(tmp_path)
    assert_equal(studies, expected)
    assert sorted(provenance.inputs) == ["annotation.json", "studyset.json"]

    packed = tmp_path / "compose.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "studyset.json", "export/studyset.json")
        archive.write(tmp_path / "annotation.json", "export/annotation.json")
        archive.writestr("__MACOSX/export/._studyset.json", b"\x00\x05")
    studies, provenance = nimads.read(packed)
    assert_equal(studies, expected)
    assert list(provenance.inputs) == ["compose.zip"]
    os.remove(tmp_path / "annotation.json")
    assert all("n" not in s.metadata for s in nimads.read(tmp_path)[0])


def test_order_is_that_of_the_file(document, expected, tmp_path: Path) -> None:
    """NiMARE sorts by id."""
    backwards = {**document, "studies": document["studies"][::-1]}
    studies, _ = nimads.read(write(tmp_path / "s.json", backwards))
    assert_equal(studies, dict(reversed(expected.items())))


def test_sleuth_that_nimare_writes(document, expected, tmp_path: Path) -> None:
    from nimare.io import convert_nimads_to_sleuth

    records = [
        {**s, "doi": f"10.1/{s['id']}", "pmid": f"{i}", "metadata": {"sample_size": i}}
        for i, s in enumerate(document["studies"], 1)
    ]
    convert_nimads_to_sleuth({**document, "studies": records, "annotations": []}, tmp_path)
    (path,) = tmp_path.glob("*.txt")
    studies, _ = nimads.read(path)
    found = {s.doi.removeprefix("10.1/"): s for s in studies}
    assert sorted(found) == sorted(expected)
    for i, (own, wanted) in enumerate(expected.items(), 1):
        assert (found[own].id, found[own].metadata["n"]) == (str(i), i)
        assert set(found[own].peak_space) <= {"MNI"}
        if set(wanted.peak_space) <= {"MNI"}:  # NiMARE converted the others
            order = np.lexsort(found[own].peaks_mm.T), np.lexsort(wanted.peaks_mm.T)
            assert np.allclose(
                found[own].peaks_mm[order[0]], wanted.peaks_mm[order[1]], atol=0.00501
            )

    anonymous = [{**s, "doi": None, "pmid": None} for s in records]
    convert_nimads_to_sleuth({**document, "studies": anonymous, "annotations": []}, tmp_path)
    assert len(nimads.read(path)[0]) == len(expected)


def test_nimares_own_test_files() -> None:
    import nimare

    folder = Path(nimare.__file__).parent / "tests" / "data"
    if not (folder / "test_sleuth_file.txt").is_file():
        skip("this nimare carries no test files")
    studies, _ = nimads.read(folder / "test_sleuth_file.txt")
    assert [(s.id, len(s.peaks_mm), s.metadata["n"]) for s in studies] == [
        ("StudyName", 4, 50),
        ("StudyName2", 2, 46),
        ("StudyName3", 1, 20),
    ]
    assert nimads.read(folder / "test_sleuth_file2.txt")[0][0].peak_space == ("TAL",)
    refused(folder / "test_sleuth_file3.txt", "line 5: expected three numbers x y z, got '10 20 d")
    refused(folder / "test_sleuth_file4.txt", "line 5: expected three numbers")
    refused(folder / "test_sleuth_file5.txt", "line 1: //Reference must be MNI or Talairach")
    studies, _ = nimads.read(folder / "sample_size_nimads_studyset.json")
    by_id = {s.id: s for s in studies}
    assert by_id["26425699"].metadata == {"n": 59, "year": 2015}  # its PMID
    assert by_id["26425699"].doi == "10.1016/j.ebiom.2015.06.027"
    assert "np2TjKL92Exq" in by_id  # without one
    assert sum(len(s.peaks_mm) for s in studies) == 69


# NIMADS


def test_one_study_a_publication(tmp_path: Path) -> None:
    """Two records with one PMID are two versions of one publication."""
    first = study("a", [(1, 2, 3)], pmid="12345678", year=2010, authors="Fox", publication="J")
    second = study("b", [(4, 5, 6)], metadata={"pmid": 12345678.0, "doi": "10.1/x"})
    other = study("c", [(7, 8, 9)], pmid="None")
    studies, _ = nimads.read(write(tmp_path / "s.json", nested(first, second, other)))
    assert [s.id for s in studies] == ["12345678", "c"]
    assert studies[0].peaks_mm.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert studies[0].metadata == {"year": 2010}
    pooled = studies[0]
    assert (pooled.authors, pooled.journal, pooled.doi) == ("Fox", "J", "10.1/x")


@pytest.mark.parametrize(
    ("study_says", "analyses_say", "n"),
    [
        ({"sample_size": 59, "sample_sizes": None}, [{}, {}], 59),
        ({"Sample_size": "58"}, [None], 58),
        ({"sample_size": 59}, [{"sample_sizes": [12, 14]}, {"sample_size": 20}], 26),
        ({"sample_sizes": [12, None]}, [{}], None),  # the total is not known
        ({"sample_size": "about 20"}, [{"sample_sizes": []}], None),
        ({"sample_size": True}, [{"sample_size": 0}], None),
        ({"sample_size": float("nan")}, [{"sample_size": -3}], None),
        ({"ParticipantDemographicsExtractor.groups[0].count": 10,
          "ParticipantDemographicsExtractor.groups[1].count": 12.0,
          "ParticipantDemographicsExtractor.groups[2].count": 99,
          "ParticipantDemographicsExtractor.groups[2].imaging_sample": "no"}, [{}], 22),
    ],
)  # fmt: skip
def test_sample_sizes(study_says, analyses_say, n, tmp_path: Path) -> None:
    record = study(metadata=study_says)
    (analysis,) = record["analyses"]
    record["analyses"] = [{**analysis, "metadata": said} for said in analyses_say]
    (found,), _ = nimads.read(write(tmp_path / "s.json", nested(record)))
    assert found.metadata.get("n") == n


def test_labels_are_upper_case_and_known(tmp_path: Path) -> None:
    record = study(points=[(1, 2, 3)] * 5)
    labels = ["mni", "Talairach", None, "Other ", "TAL"]
    for point, label in zip(record["analyses"][0]["points"], labels):
        point["space"] = label
    (found,), _ = nimads.read(write(tmp_path / "s.json", nested(record)))
    assert found.peak_space == ("MNI", "TAL", "UNKNOWN", "OTHER", "TAL")


def test_nan_is_left_to_the_cleaning(tmp_path: Path) -> None:
    path = write(tmp_path / "s.json", nested(study(points=[(1, float("nan"), 3)])))
    (found,), _ = nimads.read(path)
    assert np.isnan(found.peaks_mm[0, 1])
    path = write(tmp_path / "s.txt", f"{HEADER}//Fox, 2000: a\n1 nan 3\n")
    assert np.isnan(nimads.read(path)[0][0].peaks_mm[0, 1])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "expected an object"),
        ('{"studies": {}}', "no list of studies"),
        ('{"slopes": []}', "no list of studies"),
        (nested(), "no study with peaks"),
        (nested(study(points=[])), "no study with peaks"),
        (nested("a", "b"), r"studies, entry 1: expected an object, got 'a'; .* nested"),
        (nested({"id": "a", "analyses": ["x"]}), "study a: analyses, entry 1: .*nested"),
        (nested({"id": "a", "analyses": 3}), "study a: analyses must be a list"),
        (nested(study(), study()), "study a stands twice"),
        (nested(study(points=[(1, 2)])), r"study a, analysis 1, point 1: .*got \[1, 2\]"),
        (nested(study(points=[(1, 2, 3), (1, 2, 3, 4)])), "point 2: expected coordinates"),
        (nested(study(points=[(1, None, 3)])), "are not numbers"),
        (nested(study(points=[("1", 2, 3)])), "are not numbers"),
        (nested(study(points=[(True, 2, 3)])), "are not numbers"),
        (nested(study(points=[(10**400, 2, 3)])), "are not numbers"),
        (nested({"id": "a", "analyses": [{"points": [{}]}]}), "expected coordinates"),
        (nested(study("a\nb", points=[(1, 2)])), "study a b, analysis"),
    ],
)
def test_a_studyset_of_another_shape_is_refused(content, match, tmp_path: Path) -> None:
    refused(write(tmp_path / "s.json", content), match)


# Sleuth


def test_contrasts_of_a_publication_are_pooled(tmp_path: Path) -> None:
    """Also those of one name, of which NiMARE keeps the last."""
    text = (
        "\ufeff//Reference=Talairach\r\n//Fox; Raichle, 1986a: faces (happy): sad\r\n"
        "//Subjects=12\r\n1\t2\t3\r\n\r\n//Roe (2001): x\r\n//Subjects=9\r\n4 5 6\r\n"
        "//Fox; Raichle, 1986a: places\r\n//Subjects=14\r\n7 8 9\r\n10 11 12\r\n"
        "//Fox; Raichle, 1986a: places\r\n13 14 15\r\n"
    )
    path = tmp_path / "ale.txt"
    path.write_bytes(text.encode())
    (fox, roe), provenance = nimads.read(path)
    assert fox.id == fox.title == "Fox; Raichle, 1986a"
    assert fox.peaks_mm.tolist() == [[1, 2, 3], [7, 8, 9], [10, 11, 12], [13, 14, 15]]
    assert fox.peak_space == ("TAL",) * 4
    assert fox.peak_table == ("faces (happy): sad", "places", "places", "places")
    assert fox.metadata == {"n": 14} and fox.authors == "Fox; Raichle"
    assert (roe.id, roe.authors, roe.metadata) == ("Roe (2001)", "Roe", {"n": 9, "year": 2001})
    assert (provenance.name, provenance.version) == ("nimads: ale", "")


def test_what_a_header_may_say(tmp_path: Path) -> None:
    text = (
        "// Reference = MNI\n// Empty, 1999: no peaks\n// Subjects = 8\n\n"
        "// Someone: a\n// and b\n// Subjects = 20\n//DOI=10.1/x\n//PubMedId=123\n//Authors=Doe J\n"
        "//Publication=Brain\n//Year=2004\n//\n1 2 3\n"
    )
    (empty, found), _ = nimads.read(write(tmp_path / "s.txt", text))
    assert len(empty.peaks_mm) == 0 and empty.metadata == {"n": 8, "year": 1999}
    assert (found.id, found.title, found.doi) == ("123", "Someone", "10.1/x")
    assert (found.authors, found.journal, found.peak_table) == ("Doe J", "Brain", ("a / and b",))
    assert found.metadata == {"n": 20, "year": 2004}


def test_a_folder_of_sleuth_files_keeps_each_reference(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "//Reference=MNI\n//Fox, 2000: b\n//Subjects=5\n4 5 6\n")
    write(tmp_path / "a.txt", f"{HEADER}//Fox, 2000: a\n//Subjects=7\n1 2 3\n")
    write(tmp_path / ".hidden.txt", "?")
    (fox,), provenance = nimads.read(tmp_path)
    assert fox.peak_space == ("TAL", "MNI") and fox.metadata["n"] == 7
    assert sorted(provenance.inputs) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no study with peaks"),
        (HEADER, "no study with peaks"),
        ("//Fox, 2000: a\n//Subjects=3\n1 2 3", "line 3: //Reference=MNI or .* must stand above"),
        ("//Reference=Narnia\n", "line 1: //Reference must be MNI or Talairach, got 'Narnia'"),
        (f"{HEADER}1 2 3", "line 2: no //Author, year: contrast line"),
        (f"{HEADER}//Fox, 2000: a\n1 2", "line 3: expected three numbers x y z, got '1 2'"),
        (f"{HEADER}//Fox, 2000: a\n1 2 3 4", "line 3"),
        (f"{HEADER}//Fox, 2000: a\n1, 2, 3", "line 3"),
        (f"{HEADER}//Fox, 2000: a\n1 2 3_0", "line 3"),
        (f"{HEADER}//Fox, 2000: a\n1 2 \u22123", "line 3"),  # a minus sign out of a PDF
        (f"{HEADER}//Fox, 2000: a\n//Subjects=dog\n1 2 3", "line 3: //Subjects must be a number"),
        (f"{HEADER}//Fox, 2000: a\n//Subjects=-1\n1 2 3", "line 3: //Subjects must be a number"),
    ],
)
def test_bad_sleuth_text_is_refused_by_line(text, match, tmp_path: Path) -> None:
    refused(write(tmp_path / "s.txt", text), match)


# Files


def test_a_file_must_be_named() -> None:
    with pytest.raises(AtlasError, match="--data-dir must name the file"):
        nimads.read(None)


def test_files_that_are_none_of_these(document, tmp_path: Path) -> None:
    refused(tmp_path / "absent.json", "no such file or folder")
    refused(write(tmp_path / "s.pkl", ""), r"expected \.json, \.zip, \.txt")
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(folder, r"holds no studyset\.json and no Sleuth text")
    (folder / "studyset.json").write_bytes("Müller".encode("latin-1"))
    refused(folder / "studyset.json", "not UTF-8 at byte 1")
    write(folder / "studyset.json", document)
    write(folder / "other_studyset.json", document)
    refused(folder, "holds 2 studysets; name one of them")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "s.json", "{}")
    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(path, "cannot be read: Permission denied")


def test_a_damaged_parquet_folder(exported, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    exported.to_parquet(str(folder))
    whole = (folder / "analyses.parquet").read_bytes()
    for damaged in (whole[:-100], b"", (folder / "images.parquet").read_bytes()):
        (folder / "analyses.parquet").write_bytes(damaged)
        refused(folder, "cannot be read as a NiMARE studyset")
    os.remove(folder / "studies.parquet")
    refused(folder, "parquet tables are missing")
    shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    refused(tmp_path / "set.zip", "parquet tables are missing")


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zips_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps(nested(study())).encode()
    path = tmp_path / "s.zip"
    for name in ("../studyset.json", "/tmp/studyset.json", "a\\..\\..\\studyset.json"):
        refused(pack(path, {name: content}), "points out of the archive")
    refused(pack(path, {"studyset.json": content}, zipfile.ZIP_LZMA), "otherwise than by deflate")
    refused(pack(path, {"readme.md": b""}), r"holds no studyset\.json")
    refused(pack(path, {"a/studyset.json": content, "b/studyset.json": content}), "2 studysets")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("studyset.json", content)
        archive.writestr("studyset.json", content)
    refused(path, "a member stands twice")
    path.write_bytes(pack(path, {"studyset.json": content}).read_bytes()[:-40])
    refused(path, "not a readable zip")
    monkeypatch.setattr(nimads, "MAX_BYTES", 1000)
    refused(pack(path, {"studyset.json": b"\0" * 1001}), "unpacked")
    path = pack(path, {"studyset.json": b"\0" * 100_000})
    # The central directory and the member both lie about the size.
    path.write_bytes(path.read_bytes().replace((100_000).to_bytes(4, "little"), b"\x0a\0\0\0"))
    refused(path, "not a readable zip: Bad CRC-32")
    refused(write(tmp_path / "big.json", "1" * 1001), "larger than")


# Fuzz

FUZZ = settings(
    max_examples=10_000 if SOAK else 200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["None", "MNI", "tal", "2010", "12345678", "\ud800", "a\nb"])
)  # fmt: skip
KEYS = st.sampled_from([
    "studies", "analyses", "points", "coordinates", "space", "id", "name", "pmid", "year",
    "metadata", "sample_sizes", "sample_size", "annotations", "notes", "note", "study", "tables",
    "ParticipantDemographicsExtractor.groups[0].count",
])  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)
NUMBERS = st.integers(-90, 90) | st.floats()
WORDS = {"id": SCALARS, "name": SCALARS, "metadata": ANYTHING}
POINTS = st.fixed_dictionaries(
    {"coordinates": st.lists(NUMBERS, min_size=3, max_size=3)}, optional={"space": SCALARS}
)
ANALYSES = st.fixed_dictionaries({"points": st.lists(POINTS, max_size=3)}, optional=WORDS)
STUDIES = st.fixed_dictionaries(
    {"analyses": st.lists(ANALYSES, max_size=3)},
    optional={**WORDS, "pmid": SCALARS, "year": SCALARS, "doi": ANYTHING},
)
DOCUMENTS = st.fixed_dictionaries(
    {"studies": st.lists(STUDIES, min_size=1, max_size=3)},
    optional={**WORDS, "annotations": ANYTHING},
)


@st.composite
def mostly_right(draw: st.DrawFn) -> object:
    """Draw a studyset and replace at most one part of it by anything."""
    document = draw(DOCUMENTS)
    parents: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            parents.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(document)
    if draw(st.booleans()):
        node, key = draw(st.sampled_from(parents))
        node[key] = draw(ANYTHING)
    return document


LINES = st.text(max_size=20) | st.sampled_from([
    "//Reference=MNI", "// Reference = Talairach", "//Reference=", "//Fox, 2000: a",
    "//Roe; (x): y", "//Subjects=0",
    "//Subjects=12", "//Subjects=", "//PubMedId=1", "//Year=x", "//", "1 2 3", "1\t-2.5\t3e1",
    "nan inf 3", "1 2", "",
])  # fmt: skip


def survives(path: Path) -> bool:
    """Read a file to a valid result, or refuse it on one line."""
    try:
        studies, _ = nimads.read(path)
    except AtlasError as error:
        assert "\n" not in str(error)
        return False
    assert_valid(studies)
    return True


@FUZZ
@given(mostly_right() | ANYTHING)
def test_json_of_any_shape(tmp_path: Path, document: object) -> None:
    survives(write(tmp_path / "s.json", json.dumps(document)))


@FUZZ
@given(st.binary(max_size=200) | st.lists(LINES, max_size=12).map(lambda x: "\n".join(x).encode()))
def test_text_of_any_kind(tmp_path: Path, content: bytes) -> None:
    content = content.replace(b"\xed\xa0\x80", b"")
    for name in ("s.txt", "s.json"):
        (tmp_path / name).write_bytes(content)
        survives(tmp_path / name)


@FUZZ
@given(st.lists(LINES, max_size=12))
def test_sleuth_after_a_good_header(tmp_path: Path, lines: list[str]) -> None:
    good = [HEADER.strip(), "//Fox, 2000: a", "1 2 3"]
    text = "\n".join([*good, *lines]).encode("utf-8", "replace")
    (tmp_path / "s.txt").write_bytes(text)
    survives(tmp_path / "s.txt")


def test_mutated_bytes_of_a_zip(document, tmp_path: Path) -> None:
    (annotation,) = document["annotations"]
    few = {**document, "studies": document["studies"][:2], "annotations": []}
    members = {"studyset.json": few, "annotation.json": {**annotation, "notes": []}}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = {name: json.dumps(content).encode() for name, content in members.items()}
        whole = np.frombuffer(pack(tmp_path / "s.zip", packed, method).read_bytes(), np.uint8)
        generator = np.random.default_rng(0)
        for _ in range(5_000 if SOAK else 100):
            broken = whole.copy()
            # Half of them in the directory at the end, where the lies are.
            start = generator.choice([0, len(whole) - 250])
            where = generator.integers(start, len(whole), generator.integers(1, 4))
            broken[where] = generator.integers(0, 256, len(where))
            (tmp_path / "s.zip").write_bytes(broken.tobytes())
            survives(tmp_path / "s.zip")
