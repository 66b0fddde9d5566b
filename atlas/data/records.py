"""Studies and their peaks as two parquet files: what the stages hand to one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlas.contracts import Finding, Study
from atlas.errors import AtlasError, require
from atlas.metadata import FieldTable, Value

STUDIES, PEAKS = "studies.parquet", "peaks.parquet"
_TEXTS = ("id", "title", "authors", "journal", "doi")


def write(folder: Path, studies: Sequence[Study], fields: FieldTable) -> None:
    """Write studies.parquet (one row a study) and peaks.parquet (one row a peak, float64 mm)."""
    pa, pq = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    pq.write_table(studies_table(studies, fields), folder / STUDIES)
    pq.write_table(_peaks_table(pa, studies), folder / PEAKS)


def read(folder: Path, fields: FieldTable) -> list[Study]:
    """Read what `write` wrote.

    Raises
    ------
    AtlasError
        A file is missing, damaged, or does not fit the other; names it.
    """
    about, peaks = _columns(folder / STUDIES), _columns(folder / PEAKS)
    try:
        ends = np.cumsum(about["peaks"])
        xyz = np.column_stack([peaks[axis] for axis in "xyz"]).astype(np.float64)
        space, table, number = peaks["space"], peaks["table"], np.asarray(peaks["number"])
        if len(xyz) != (ends[-1] if len(ends) else 0):
            raise AtlasError(f"{folder}: {PEAKS} does not fit {STUDIES}; prepare it again")
        out = []
        for k, (end, count) in enumerate(zip(ends.tolist(), about["peaks"])):
            mine = slice(end - count, end)
            out.append(
                Study(
                    **{name: about[name][k] for name in _TEXTS},
                    peaks_mm=xyz[mine],
                    peak_space=tuple(space[mine]),
                    peak_table=tuple(table[mine]),
                    peak_number=number[mine].astype(np.int64),
                    metadata=metadata_of(about, fields, k),
                )
            )
    except KeyError as error:
        raise AtlasError(f"{folder}: has no column {error}; prepare it again") from None
    return out


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write findings as a parquet table, one column a field of `Finding`."""
    pa, pq = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    columns = list(zip(*findings)) or [()] * len(Finding._fields)
    types = [pa.string(), pa.string(), pa.int32(), *[pa.float64()] * 3, pa.string()]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types)]
    pq.write_table(pa.table(dict(zip(Finding._fields, arrays))), path)


def read_findings(path: Path) -> list[Finding]:
    """Read what `write_findings` wrote."""
    return [Finding(*row) for row in zip(*_columns(path).values())]


def _columns(path: Path) -> dict[str, list[Any]]:
    pa, pq = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    try:
        return dict(pq.read_table(path).to_pydict())
    except (OSError, pa.ArrowException) as error:
        line = " ".join(str(error).split())[:200]
        raise AtlasError(f"{path}: cannot be read: {line}; prepare it again") from None


def studies_table(studies: Sequence[Study], fields: FieldTable) -> Any:
    """Return studies.parquet as a pyarrow table: texts, number of peaks, ``field:NAME``."""
    pa = require("pyarrow", "data")
    columns: dict[str, Any] = {
        name: pa.array([getattr(s, name) for s in studies], pa.string()) for name in _TEXTS
    }
    columns["peaks"] = pa.array([len(s.peaks_mm) for s in studies], pa.int32())
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
    number = np.concatenate([s.peak_number for s in studies] or [np.zeros(0, np.int64)])
    texts = {
        "id": [s.id for s in studies for _ in s.peak_space],
        "space": [label for s in studies for label in s.peak_space],
        "table": [label for s in studies for label in s.peak_table],
    }
    return pa.table(
        {
            **{name: pa.array(values, pa.string()) for name, values in texts.items()},
            "number": pa.array(number, pa.int32()),
            **{axis: pa.array(xyz[:, k], pa.float64()) for k, axis in enumerate("xyz")},
        }
    )


def metadata_of(columns: dict[str, list[Any]], fields: FieldTable, row: int) -> dict[str, Any]:
    """Return a row's metadata from the columns of studies.parquet; weights of 0 drop out."""
    out: dict[str, Value | None] = {}
    for field in fields:
        value = columns[f"field:{field.name}"][row]
        if value is not None and field.kind == "category":
            value = {c: w for c, w in zip(field.categories, value) if w > 0}
        out[field.name] = value
    return out
