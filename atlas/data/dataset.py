"""The dataset folder: studies.parquet, peaks.parquet, splits.json, dataset.json.

From here on nothing needs NiMARE. The fingerprint, a sha256 over the three data files, is
checked on every read: an edited or damaged folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from atlas.contracts import Study
from atlas.errors import AtlasError, require
from atlas.metadata import FieldTable, Value

from .sources import Provenance

FORMAT = 1
DATA_FILES = ("studies.parquet", "peaks.parquet", "splits.json")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared set of studies.

    Attributes
    ----------
    path : Path
    fields : FieldTable
        The table that the metadata were encoded with.
    ids, titles : tuple of str, S of them
    metadata : tuple of dict
        Value by field name, None where missing.
    peaks_mm : (P, 3) float32 ndarray, MNI mm
        All studies' peaks one after another.
    offsets : (S + 1,) int64 ndarray
        Study s has the peaks ``offsets[s]:offsets[s + 1]``.
    splits : dict
        Ids by split.
    info : dict
        dataset.json.
    """

    path: Path
    fields: FieldTable
    ids: tuple[str, ...]
    titles: tuple[str, ...]
    metadata: tuple[dict[str, Value | None], ...]
    peaks_mm: np.ndarray
    offsets: np.ndarray
    splits: dict[str, list[str]]
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """sha256 over the data files."""
        return str(self.info["fingerprint"])

    @cached_property
    def row(self) -> dict[str, int]:
        """Position of each id."""
        return {study_id: k for k, study_id in enumerate(self.ids)}

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's studies, int64."""
        return np.array([self.row[i] for i in self.splits[split]], dtype=np.int64)

    def peaks(self, row: int) -> np.ndarray:
        """Peaks of one study, (p, 3) float32, MNI mm."""
        return self.peaks_mm[self.offsets[row] : self.offsets[row + 1]]

    def study_row(self, study_id: str) -> int:
        """Position of a study, or AtlasError for an unknown id."""
        if study_id not in self.row:
            raise AtlasError(f"{self.path}: has no study {study_id!r}; for example {self.ids[0]}")
        return self.row[study_id]

    def coverage(self, split: str | None = None) -> dict[str, int]:
        """Count the studies for which each field is observed."""
        rows = range(len(self)) if split is None else self.rows(split)
        return {
            name: sum(self.metadata[r].get(name) is not None for r in rows)
            for name in self.fields.names
        }


def write(
    path: Path,
    studies: Sequence[Study],
    splits: Mapping[str, list[str]],
    provenance: Provenance,
    **info: Any,
) -> Dataset:
    """Write a dataset folder; it appears whole or not at all.

    Raises
    ------
    AtlasError
        If `path` exists and is not an older dataset folder.
    """
    pa, pq = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    if path.is_dir() and any(path.iterdir()) and not (path / "dataset.json").is_file():
        raise AtlasError(f"{path}: exists and is no dataset folder; choose another --out")
    fields = FieldTable()
    work = path.with_name(f"{path.name}.part{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        pq.write_table(_studies_table(pa, studies, fields), work / "studies.parquet")
        pq.write_table(_peaks_table(pa, studies), work / "peaks.parquet")
        (work / "splits.json").write_text(json.dumps(splits, indent=1))
        dataset_json = {
            "format": FORMAT,
            "source": asdict(provenance),
            **info,
            "fields": fields.snapshot(),
            "coverage": {
                name: sum(s.metadata.get(name) is not None for s in studies)
                for name in fields.names
            },
            "fingerprint": _fingerprint(work),
        }
        (work / "dataset.json").write_text(json.dumps(dataset_json, indent=1))
        _replace(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read(path)


def read(path: Path | str) -> Dataset:
    """Read a dataset folder.

    Raises
    ------
    AtlasError
        Missing, empty, incomplete or changed folder; says which file and what to do.
    """
    path = Path(path)
    if not path.is_dir():
        raise AtlasError(f"{path}: no such dataset folder; make one with atlas data prepare")
    for name in (*DATA_FILES, "dataset.json"):
        if not (path / name).is_file():
            raise AtlasError(f"{path}: {name} is missing; make it again with atlas data prepare")
    try:
        info = json.loads((path / "dataset.json").read_text())
        stored, fields = info["fingerprint"], FieldTable.from_snapshot(info["fields"])
    except (ValueError, KeyError, TypeError):
        raise AtlasError(
            f"{path}/dataset.json: damaged; make it again with atlas data prepare"
        ) from None
    if _fingerprint(path) != stored:
        raise AtlasError(
            f"{path}: its files do not match the fingerprint in dataset.json (edited or damaged); "
            "make it again with atlas data prepare"
        )
    if info.get("format") != FORMAT:
        raise AtlasError(f"{path}: format {info.get('format')}; this atlas reads {FORMAT}")
    pq = require("pyarrow.parquet", "data")
    studies = pq.read_table(path / "studies.parquet").to_pydict()
    peaks = pq.read_table(path / "peaks.parquet").to_pydict()
    ids = tuple(studies["id"])
    counts = np.array(studies["peaks"], dtype=np.int64)
    return Dataset(
        path=path,
        fields=fields,
        ids=ids,
        titles=tuple(studies["title"]),
        metadata=tuple(_row_metadata(studies, fields, k) for k in range(len(ids))),
        peaks_mm=np.stack([peaks[axis] for axis in "xyz"], axis=1).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        splits=json.loads((path / "splits.json").read_text()),
        info=info,
    )


def _studies_table(pa: Any, studies: Sequence[Study], fields: FieldTable) -> Any:
    columns: dict[str, Any] = {
        "id": pa.array([s.id for s in studies], pa.string()),
        "title": pa.array([s.title for s in studies], pa.string()),
        "peaks": pa.array([len(s.peaks_mm) for s in studies], pa.int32()),
    }
    for field in fields:
        values = [s.metadata.get(field.name) for s in studies]
        if field.kind == "category":  # weights in the order of the field's categories
            rows = [None if v is None else field.encode(v).tolist() for v in values]
            columns[f"field:{field.name}"] = pa.array(rows, pa.list_(pa.float32()))
        else:
            columns[f"field:{field.name}"] = pa.array(values, pa.float64())
    return pa.table(columns)


def _peaks_table(pa: Any, studies: Sequence[Study]) -> Any:
    xyz = np.concatenate([s.peaks_mm for s in studies] or [np.zeros((0, 3))])
    ids = [s.id for s in studies for _ in range(len(s.peaks_mm))]
    axes = {axis: pa.array(xyz[:, k], pa.float32()) for k, axis in enumerate("xyz")}
    return pa.table({"id": pa.array(ids, pa.string()), **axes})


def _row_metadata(
    columns: dict[str, list[Any]], fields: FieldTable, row: int
) -> dict[str, Value | None]:
    out: dict[str, Value | None] = {}
    for field in fields:
        value = columns[f"field:{field.name}"][row]
        if value is not None and field.kind == "category":
            value = {c: w for c, w in zip(field.categories, value) if w > 0}
        out[field.name] = value
    return out


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for name in DATA_FILES:
        digest.update(hashlib.sha256((path / name).read_bytes()).digest())
    return digest.hexdigest()


def _replace(work: Path, path: Path) -> None:
    """Put the finished folder in place of an older one; the gap is two renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.replace(work, path)
        return
    old = path.with_name(f"{path.name}.old{os.getpid()}")
    os.replace(path, old)
    os.replace(work, path)
    shutil.rmtree(old)
