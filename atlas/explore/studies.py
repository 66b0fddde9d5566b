"""Studies at hand: found by words, category and year; peaks and metadata of one.

Only what searching needs is read into memory: titles, authors, years, categories. Peaks and
metadata are looked up when one study is asked for, so that fourteen thousand open in a second.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atlas import space
from atlas.contracts import Study
from atlas.data import dataset, prepare, records
from atlas.errors import AtlasError, require
from atlas.inference import Atlas, Code
from atlas.metadata import Field, FieldTable


class Row(NamedTuple):
    """What a list of studies shows of one."""

    id: str
    title: str
    authors: str
    year: int | None
    category: str | None
    peaks: int


@dataclass(frozen=True, eq=False)
class Studies:
    """A collection of studies.

    Attributes
    ----------
    source : str
        Where they come from, for people.
    fingerprint : str
        Of the dataset; "" for studies that were not prepared as one.
    fields : FieldTable
    rows : list of Row
        In the order of the collection.
    table : pyarrow.Table
        The fields of each row, as `atlas.data.records` writes them.
    peaks_mm, offsets : arrays
        As of `Dataset`.
    splits : dict
        Ids by split; empty where there is none.
    """

    source: str
    fingerprint: str
    fields: FieldTable
    rows: list[Row]
    table: Any
    peaks_mm: np.ndarray
    offsets: np.ndarray
    splits: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def row(self) -> dict[str, int]:
        """Position of each id."""
        return {row.id: k for k, row in enumerate(self.rows)}

    @cached_property
    def _texts(self) -> list[str]:
        return [plain(f"{r.id} {r.title} {r.authors}") for r in self.rows]

    @cached_property
    def _newest_first(self) -> list[int]:
        return sorted(range(len(self)), key=lambda k: -(self.rows[k].year or 0))

    def search(
        self,
        q: str = "",
        category: str | None = None,
        first: int | None = None,
        last: int | None = None,
    ) -> list[Row]:
        """Find studies, newest first.

        Parameters
        ----------
        q : str
            Words over title, authors and id, all of which must occur; case and accents do not
            matter.
        category : str, optional
            A task category: the heaviest of the study's task weights.
        first, last : int, optional
            Years, both included; a study without a year is in no range.
        """
        words = plain(q).split()
        low, high = first or -(10**9), last or 10**9
        anytime = first is None and last is None
        found = (
            self.rows[k] for k in self._newest_first if all(w in self._texts[k] for w in words)
        )
        return [
            row
            for row in found
            if (category is None or row.category == category)
            and (anytime or (row.year is not None and low <= row.year <= high))
        ]

    def peaks(self, row: int) -> np.ndarray:
        """Peaks of one study, (p, 3) float32, MNI mm."""
        return self.peaks_mm[self.offsets[row] : self.offsets[row + 1]]

    def cells(self, resolution: int) -> np.ndarray:
        """Cell of the mask that each peak lies in, (P,) int64; found once for each grid."""
        if resolution not in self._cells:
            self._cells[resolution] = space.load(resolution).cells(self.peaks_mm)[0]
        return self._cells[resolution]

    @cached_property
    def _cells(self) -> dict[int, np.ndarray]:
        return {}

    def metadata(self, row: int, atlas: Atlas) -> dict[str, Any]:
        """Return what is known of one study and what the model can use, weights as weights."""
        known = records.metadata_of(self.table.slice(row, 1).to_pydict(), self.fields, 0)
        return atlas.usable({k: v for k, v in known.items() if k in atlas.card.used})

    def code(self, row: int, atlas: Atlas) -> Code:
        """Encode one study with all that is known of it."""
        return atlas.encode(self.peaks(row), self.metadata(row, atlas))

    def values(self, field: Field) -> tuple[np.ndarray, np.ndarray]:
        """Return a model's field of every study, as elements of its metadata vector.

        Returns
        -------
        elements : (S, width) float64, NaN where missing
        known : (S,) bool
        """
        if field.name not in self.fields.names:  # prepared before there was such a field
            return np.full((len(self), field.width), np.nan), np.zeros(len(self), bool)
        column = self.table.column(f"field:{field.name}").combine_chunks()
        known = np.asarray(column.is_valid())
        out = np.full((len(self), field.width), np.nan)
        if field.kind == "category":
            own = self.fields[field.name].categories
            weights = np.asarray(column.flatten()).reshape(-1, len(own))
            places = [own.index(c) if c in own else None for c in field.categories]
            none = np.zeros(len(weights))
            out[known] = np.transpose([none if p is None else weights[:, p] for p in places])
        else:
            raw = np.asarray(column.drop_null(), dtype=np.float64)
            centre = np.log(field.centre) if field.log else field.centre
            out[known, 0] = ((np.log(raw) if field.log else raw) - centre) / field.spread
        return out, known

    def held_out(self, atlas: Atlas) -> tuple[np.ndarray, bool]:
        """Rows that the model's training never saw, and whether that is known.

        The test split where these are the studies that the model was trained on; else all.
        """
        own = self._own(atlas)
        return self._split("test") if own else np.arange(len(self)), own

    def training(self, atlas: Atlas) -> np.ndarray:
        """Rows that the model was trained on; all of them where that is not known."""
        return self._split("train") if self._own(atlas) else np.arange(len(self))

    def _own(self, atlas: Atlas) -> bool:
        """Whether the splits are the model's: the same dataset, or one of equal training studies.

        A dataset prepared again by a later version has another fingerprint and the same split.
        """
        trained = atlas.card.used["n_peaks"].studies  # every study has a number of peaks
        again = (self.source, len(self.splits.get("train", ()))) == (atlas.card.source, trained)
        return bool(self.splits) and (again or self.fingerprint == atlas.card.dataset)

    def _split(self, name: str) -> np.ndarray:
        return np.array([self.row[i] for i in self.splits[name]], dtype=np.int64)


def plain(text: str) -> str:
    """Fold case and drop accents: "Müller" and "muller" are one."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in letters if not unicodedata.combining(c))


def main_category(weights: dict[str, float] | None) -> str | None:
    """Return the heaviest category; None without weights."""
    return max(weights, key=weights.__getitem__) if weights else None


def read(path: Path) -> Studies:
    """Open a dataset folder; refuses what `atlas.data.dataset.read` refuses."""
    info, fields = dataset.check(path)
    pq = require("pyarrow.parquet", "data")
    table = pq.read_table(path / records.STUDIES)
    peaks = pq.read_table(path / records.PEAKS, columns=["x", "y", "z"])
    return _collect(
        source=info["source"]["name"],
        fingerprint=info["fingerprint"],
        fields=fields,
        table=table,
        peaks_mm=np.column_stack([peaks.column(axis).to_numpy() for axis in "xyz"]),
        splits=json.loads((path / "splits.json").read_text()),
    )


def bundled() -> Studies:
    """Open the studies that NiMARE carries, cleaned as `atlas data prepare` does."""
    settings = prepare.Settings()
    cleaned = prepare.clean_stage(prepare.fetch(None, settings), settings)
    state = prepare.validate_stage(cleaned, settings)
    return of(state.studies, state.provenance.name)


def of(studies: Sequence[Study], source: str) -> Studies:
    """Make a collection of cleaned studies."""
    fields = FieldTable()
    peaks_mm = np.concatenate([s.peaks_mm for s in studies] or [np.zeros((0, 3))])
    table = records.studies_table(studies, fields)
    return _collect(source, "", fields, table, peaks_mm, {})


def _collect(
    source: str,
    fingerprint: str,
    fields: FieldTable,
    table: Any,
    peaks_mm: np.ndarray,
    splits: dict[str, list[str]],
) -> Studies:
    counts = table.column("peaks").to_pylist()
    texts = (table.column(name).to_pylist() for name in ("id", "title", "authors"))
    years = [None if y is None else round(y) for y in table.column("field:year").to_pylist()]
    names = fields["task"].categories
    tasks = [
        None if w is None else main_category(dict(zip(names, w)))
        for w in table.column("field:task").to_pylist()
    ]
    rows = [Row(*row) for row in zip(*texts, years, tasks, counts)]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if offsets[-1] != len(peaks_mm):
        raise AtlasError(f"{source}: peaks do not fit the studies; prepare it again")
    peaks_mm = peaks_mm.astype(np.float32)
    return Studies(source, fingerprint, fields, rows, table, peaks_mm, offsets, splits)
