"""The dataset folder: studies.parquet, peaks.parquet, splits.json, dataset.json, and its logs.

From here on nothing needs NiMARE. The fingerprint, a sha256 over the three data files, is
checked on every read: an edited or damaged folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from atlas.contracts import Finding, Study
from atlas.errors import AtlasError
from atlas.files import building
from atlas.metadata import FieldTable, Value

from . import records
from .sources import Provenance

FORMAT = 2
DATA_FILES = (records.STUDIES, records.PEAKS, "splits.json")
REMOVED = "removed.parquet"
LOGS = ("mismatches.json", "repeats.json", "twins.json")


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
    logs: Mapping[str, Any] | None = None,
    removed: Sequence[Finding] = (),
    **info: Any,
) -> Dataset:
    """Write a dataset folder; it appears whole or not at all.

    Parameters
    ----------
    path : Path
    studies, splits, provenance
        What it holds.
    logs : mapping, optional
        Contents of further JSON files, by name: what was noticed and left alone.
    removed : sequence of Finding
        Peaks that the cleaning removed, for removed.parquet.
    info
        Further entries of dataset.json.

    Raises
    ------
    AtlasError
        If `path` exists and is not an older dataset folder.
    """
    foreign = [p.name for p in path.iterdir() if not _ours(p.name)] if path.is_dir() else []
    if foreign or (path.exists() and not path.is_dir()):
        raise AtlasError(f"{path}: exists and is no dataset folder; choose another --out")
    fields = FieldTable()
    with building(path) as work:
        records.write(work, studies, fields)
        records.write_findings(work / REMOVED, removed)
        _dump(work / "splits.json", splits)
        for name, content in (logs or {}).items():
            _dump(work / name, content)
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
        _dump(work / "dataset.json", dataset_json)
        for cache in path.glob("cache_*"):  # each knows what it was made from
            os.replace(cache, work / cache.name)
    return read(path)


def check(path: Path) -> tuple[dict[str, Any], FieldTable]:
    """Return dataset.json and its table of fields, once all files fit.

    Raises
    ------
    AtlasError
        Missing, empty, incomplete or changed folder; says which file and what to do.
    """
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
    if info.get("format") != FORMAT:
        raise AtlasError(
            f"{path}: format {info.get('format')}, this atlas reads {FORMAT}; make it again with "
            "atlas data prepare"
        )
    if _fingerprint(path) != stored:
        raise AtlasError(
            f"{path}: its files do not match the fingerprint in dataset.json (edited or damaged); "
            "make it again with atlas data prepare"
        )
    return info, fields


def read(path: Path | str) -> Dataset:
    """Read a dataset folder; see `check` for what it refuses."""
    path = Path(path)
    info, fields = check(path)
    studies = records.read(path, fields)
    counts = [len(study.peaks_mm) for study in studies]
    peaks = np.concatenate([study.peaks_mm for study in studies] or [np.zeros((0, 3))])
    return Dataset(
        path=path,
        fields=fields,
        ids=tuple(study.id for study in studies),
        titles=tuple(study.title for study in studies),
        metadata=tuple(study.metadata for study in studies),
        peaks_mm=peaks.astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        splits=json.loads((path / "splits.json").read_text()),
        info=info,
    )


def _ours(name: str) -> bool:
    return name in (*DATA_FILES, REMOVED, *LOGS, "dataset.json", "report.html") or name.startswith(
        "cache_"
    )


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for name in DATA_FILES:
        digest.update(hashlib.sha256((path / name).read_bytes()).digest())
    return digest.hexdigest()
