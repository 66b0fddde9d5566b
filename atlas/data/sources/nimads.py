"""Exports: NIMADS studysets (Neurosynth Compose, NeuroStore) and GingerALE's Sleuth text.

Whatever the file, it becomes one NIMADS document, which `_studies` walks. NiMARE reads its own
parquet folders; JSON and Sleuth text are read here, because NiMARE 0.22 sorts studies and analyses
by id, cuts a fourth coordinate off and makes NaN of a missing one, and of Sleuth text

- lets the second of two contrasts of the same name replace the first, peaks and all;
- refuses a file whose header ends with other than //Subjects, as those that it writes do;
- joins the headers of a contrast without peaks to those of the next one.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from struct import error as struct_error
from typing import Any

import numpy as np

from atlas.contracts import Study
from atlas.errors import AtlasError, require
from atlas.metadata import FieldTable, Value

from . import _sleuth as sleuth
from ._provenance import Provenance, sha256
from ._values import SPACES, number, show, text

_YEARS = FieldTable()["year"]
MAX_BYTES = 2 << 30  # uncompressed: a zip may promise petabytes

# Compose and NiMARE both put something before these names ("nimads_studyset.json").
_WANTED = ("studyset.json", "annotation.json", ".txt")
_GROUP = re.compile(r"(ParticipantDemographicsExtractor\.groups\[\d+\])\.count")


def read(data_dir: Path | None = None) -> tuple[list[Study], Provenance]:
    """Read a studyset or Sleuth text; one study a publication, as printed, in file order.

    Parameters
    ----------
    data_dir : Path
        A studyset ``.json``, a ``.zip`` or a folder that holds one (with its ``annotation.json``),
        a folder of NiMARE's parquet tables, a Sleuth ``.txt``, or a folder or zip of them.

    Raises
    ------
    AtlasError
        If nothing is named, or what is named cannot be read.
    """
    if data_dir is None:
        raise AtlasError(
            "source nimads: --data-dir must name the file: a NIMADS studyset (.json, .zip, or the "
            "folder) or Sleuth text (.txt)"
        )
    path = Path(data_dir)
    document, notes, used = _document(path)
    studies = _studies(used[0] if len(used) == 1 else str(path), document, notes)
    provenance = Provenance(
        name=f"nimads: {text(document.get('name')) or path.stem}",
        version=text(document.get("id")),
        licence="as stated by its authors",
        inputs=sha256([p for where in used if (p := Path(where)).is_file()] or [path]),
    )
    return studies, provenance


def read_json(where: str, content: str) -> list[Study]:
    """Read a studyset that is in memory; `where` names it in messages."""
    return _studies(where, _json(where, content.encode()), [])


def read_sleuth(where: str, content: str) -> list[Study]:
    """Read Sleuth text that is in memory; `where` names it in messages."""
    return _studies(where, sleuth.document({where: content}), [])


def _document(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Return one NIMADS document, the annotations beside it, and the names of what was read."""
    files = _load(path)
    texts = [where for where in files if where.lower().endswith(".txt")]
    annotations = [where for where in files if where.lower().endswith("annotation.json")]
    studysets = [where for where in files if where not in {*texts, *annotations}]
    if len(studysets) > 1:
        raise AtlasError(f"{path}: holds {len(studysets)} studysets; name one of them")
    if not studysets and not texts:
        raise AtlasError(f"{path}: holds no studyset.json and no Sleuth text (.txt)")
    if not studysets:
        return sleuth.document({where: _decode(where, files[where]) for where in texts}), [], texts
    document = _json(studysets[0], files[studysets[0]])
    if "tables" in document and "studies" not in document:
        return _parquet(Path(studysets[0]).parent)
    notes = [_json(where, files[where]) for where in annotations]
    return document, notes, [*studysets, *annotations]


# Files -------------------------------------------------------------------------------------------


def _load(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file that may matter, by its path."""
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if _wanted(p.name) and p.is_file())
            files = {str(p): _bytes(p) for p in found}
        elif not path.is_file():
            raise AtlasError(f"{path}: no such file or folder")
        elif suffix == ".zip":
            files = _members(path)
        elif suffix in {".json", ".txt"}:
            files = {str(path): _bytes(path)}
        else:
            raise AtlasError(f"{path}: expected .json, .zip, .txt or a folder of them")
    except OSError as error:
        raise AtlasError(f"{path}: cannot be read: {error.strerror or error}") from None
    return files


def _wanted(name: str) -> bool:
    base = PurePosixPath(name).name
    return base.lower().endswith(_WANTED) and not base.startswith(".")


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise AtlasError(f"{path}: larger than {MAX_BYTES >> 30} GB")
    return path.read_bytes()


def _members(path: Path) -> dict[str, bytes]:
    """Read members of a zip into memory by name; nothing is ever extracted."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                parts = PurePosixPath(name.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts:
                    raise AtlasError(f"{path}: member {text(name)!r} points out of the archive")
            members = [info for info in archive.infolist() if _wanted(info.filename)]
            if sum(info.file_size for info in members) > MAX_BYTES:
                raise AtlasError(f"{path}: larger than {MAX_BYTES >> 30} GB unpacked")
            # Other compressions take what memory the file tells them to.
            if any(
                i.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for i in members
            ):
                raise AtlasError(f"{path}: compressed otherwise than by deflate; zip it again")
            if len({info.filename for info in members}) < len(members):
                raise AtlasError(f"{path}: a member stands twice")
            files = {}
            for info in members:
                with archive.open(info) as member:  # at most what the header says
                    files[f"{path}/{text(info.filename)}"] = member.read(info.file_size)
            return files
    except AtlasError:
        raise
    except (
        zipfile.BadZipFile, zlib.error, struct_error, OSError, EOFError, ValueError, RuntimeError,
        NotImplementedError, OverflowError, KeyError, IndexError,
    ) as error:  # fmt: skip
        raise AtlasError(f"{path}: not a readable zip: {text(str(error)) or 'cut short'}") from None


def _decode(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AtlasError(f"{where}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _json(where: str, raw: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(_decode(where, raw)), where)
    except AtlasError:
        raise
    except (ValueError, RecursionError) as error:
        raise AtlasError(f"{where}: not JSON: {text(str(error))}") from None


def _parquet(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Read a folder of NiMARE's parquet tables, annotations among them."""
    if not (folder / "studies.parquet").is_file():
        raise AtlasError(f"{folder}: the parquet tables are missing (unpack the zip?)")
    nimads, arrow = require("nimare.nimads", "data"), require("pyarrow", "data")
    logging.getLogger("nimare").setLevel(logging.WARNING)
    try:
        document = nimads.Studyset.from_parquet(str(folder), target=None).to_dict()
    except (
        OSError, LookupError, TypeError, ValueError, AttributeError, arrow.ArrowException
    ) as error:  # fmt: skip
        why = text(str(error))
        raise AtlasError(f"{folder}: cannot be read as a NiMARE studyset: {why}") from None
    tables = [folder / "studyset.json", *folder.glob("*.parquet")]
    return document, [], [str(table) for table in tables]


# A NIMADS document -> studies --------------------------------------------------------------------


def _studies(
    where: str, document: dict[str, Any], annotations: list[dict[str, Any]]
) -> list[Study]:
    """Pool the document's study records by publication (their PMID, where they have one)."""
    if not isinstance(document.get("studies"), list):
        raise AtlasError(f"{where}: no NIMADS studyset: it has no list of studies")
    notes: dict[str, list[dict[str, Any]]] = {}
    inside = document.get("annotations")  # NeuroStore may list ids only
    inside = [x for x in inside if isinstance(x, dict)] if isinstance(inside, list) else []
    for annotation in [*annotations, *inside]:
        for note in _objects(annotation, "notes", f"{where}: annotation"):
            notes.setdefault(text(note.get("study")), []).append(_part(note, "note"))
    seen: set[str] = set()
    publications: dict[str, list[dict[str, Any]]] = {}
    said: dict[str, list[dict[str, Any]]] = {}
    for i, record in enumerate(_objects(document, "studies", where), 1):
        own = text(record.get("id")) or f"study-{i}"
        if own in seen:
            raise AtlasError(f"{where}: study {own} stands twice")
        seen.add(own)
        pmid = _first([record], "pmid")
        key = pmid if re.fullmatch("[0-9]{1,9}", pmid) else own
        publications.setdefault(key, []).append(record)
        said.setdefault(key, []).extend(notes.get(own, []))
    studies = [_study(where, key, records, said[key]) for key, records in publications.items()]
    if not any(len(study.peaks_mm) for study in studies):
        raise AtlasError(f"{where}: holds no study with peaks")
    return studies


def _study(
    where: str, key: str, records: list[dict[str, Any]], notes: list[dict[str, Any]]
) -> Study:
    """Make one study of the records of one publication."""
    where = f"{where}: study {key}"
    analyses = [a for record in records for a in _objects(record, "analyses", where)]
    peaks, spaces, tables = [], [], []
    for analysis in analyses:
        table = text(analysis.get("id")) or text(analysis.get("name"))
        for i, point in enumerate(_objects(analysis, "points", f"{where}, analysis {table}"), 1):
            peaks.append(_xyz(point.get("coordinates"), f"{where}, analysis {table}, point {i}"))
            label = text(point.get("space")).upper()
            spaces.append(SPACES.get(label, label))
            tables.append(table)
    metadata: dict[str, Value | None] = {}
    # The analyses' own sizes before the study's, before what was extracted from the text.
    for level in ([_part(x, "metadata") for x in analyses],
                  [_part(x, "metadata") for x in records], notes):  # fmt: skip
        if n := max(map(_sample_size, level), default=0.0):
            metadata["n"] = n
            break
    year = number(_first(records, "year"))
    if year is not None and _YEARS.low <= year <= _YEARS.high:
        metadata["year"] = year  # older ones count as missing: PET, mostly
    return Study(
        id=key,
        title=_first(records, "name"),
        peaks_mm=np.array(peaks, dtype=float).reshape(-1, 3),
        peak_space=tuple(spaces),
        metadata=metadata,
        peak_table=tuple(tables),
        authors=_first(records, "authors"),
        journal=_first(records, "publication"),
        doi=_first(records, "doi"),
    )


def _xyz(value: object, where: str) -> list[float]:
    """Return three numbers; NaN stays, the cleaning names it."""
    if not isinstance(value, list) or len(value) != 3:
        raise AtlasError(f"{where}: expected coordinates [x, y, z], got {show(value)}")
    try:
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in value):
            return [float(x) for x in value]
    except OverflowError:
        pass
    raise AtlasError(f"{where}: the coordinates {show(value)} are not numbers")


def _sample_size(entry: dict[str, Any]) -> float:
    """Return participants in all groups together, 0 where the entry does not say."""
    lower = {str(key).lower(): value for key, value in entry.items()}
    groups = [m[1] for key in entry if (m := _GROUP.fullmatch(key))]  # NeuroStore's, from the text
    imaged = [g for g in groups if text(entry.get(f"{g}.imaging_sample")).lower() != "no"]
    counts = [x for g in imaged if (x := number(entry[f"{g}.count"]) or 0) > 0]
    said = (lower.get("sample_sizes"), lower.get("sample_size"), counts)
    return next((n for value in said if (n := _total(value))), 0.0)


def _total(value: object) -> float:
    """Return the sum of a size or a list of them; 0 where one is missing, for then the sum is."""
    sizes = [number(x) or 0 for x in (value if isinstance(value, list | np.ndarray) else [value])]
    return sum(sizes) if all(x > 0 for x in sizes) else 0.0


def _first(records: Iterable[dict[str, Any]], key: str) -> str:
    """Return the first text under a key of the records, or of their metadata."""
    texts = (text(part.get(key)) for r in records for part in (r, _part(r, "metadata")))
    return next((text for text in texts if text), "")


def _objects(parent: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """Return the list of objects under a key; absent is empty, anything else is refused."""
    value = parent.get(key)
    if not isinstance(value, list | None):
        raise AtlasError(f"{where}: {key} must be a list, got {show(value)}")
    return [_object(x, f"{where}: {key}, entry {i}") for i, x in enumerate(value or [], 1)]


def _object(value: object, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    hint = "; export the studyset with its studies nested" if isinstance(value, str) else ""
    raise AtlasError(f"{where}: expected an object, got {show(value)}{hint}")


def _part(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}
