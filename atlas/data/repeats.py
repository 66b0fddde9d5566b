"""Directional deduplication: a peak that repeats an earlier one of its study goes, never the other.

Coordinates as printed, before any conversion. Mirrored peaks (x of the other sign) are bilateral
findings, not repeats. Measured on Neurosynth v7 the rate is a property of few bad tables, so the
tables that are repeated whole and the studies that hold most of the repeats are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from atlas.contracts import Finding, Study

Scope = Literal["study", "table", "none"]
HEAVY = 0.4  # share of repeats from which a study is listed


def first_of(study: Study, scope: Scope = "study", tolerance_mm: float = 0.0) -> np.ndarray:
    """Find the earlier peak that each peak repeats.

    Parameters
    ----------
    study : Study
        Peaks as printed.
    scope : {"study", "table", "none"}
        Where an earlier peak counts.
    tolerance_mm : float
        0: equal after rounding to 1 mm (half to even). Else: within this Euclidean distance of
        an earlier peak that stays.

    Returns
    -------
    (P,) int64 array
        Position of the earlier peak, or a peak's own position where it repeats none.
    """
    n = len(study.peaks_mm)
    if scope == "none" or n < 2:
        return np.arange(n)
    tables = _codes(study.peak_table) if scope == "table" else np.zeros(n, np.int64)
    if tolerance_mm > 0:
        return _greedy(study.peaks_mm, tables, tolerance_mm)
    return _first_equal(np.column_stack([tables, np.round(study.peaks_mm)]))


def drop_repeats(
    study: Study, scope: Scope = "study", tolerance_mm: float = 0.0
) -> tuple[Study, list[Finding]]:
    """Remove the peaks that repeat an earlier one; see `first_of`."""
    first = first_of(study, scope, tolerance_mm)
    own = np.arange(len(first))
    if (first == own).all():
        return study, []
    removed = [
        study.finding("repeat", f"repeats peak {study.peak_number[first[k]]}", int(k))
        for k in np.flatnonzero(first != own)
    ]
    return study.keep(first == own), removed


def _codes(labels: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1].astype(np.int64)


def _first_equal(rows: np.ndarray) -> np.ndarray:
    order = np.lexsort(rows.T)  # stable: of equal rows the earliest comes first
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    first = np.empty(len(rows), np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    return first


def _greedy(peaks_mm: np.ndarray, tables: np.ndarray, tolerance_mm: float) -> np.ndarray:
    distance = np.linalg.norm(peaks_mm[:, None] - peaks_mm[None], axis=2)
    near = np.tril((distance <= tolerance_mm) & (tables[:, None] == tables[None]), -1)
    first, kept = np.arange(len(peaks_mm)), np.ones(len(peaks_mm), dtype=bool)
    for k in np.flatnonzero(near.any(axis=1)):  # most lie near no earlier one
        earlier = np.flatnonzero(near[k] & kept)
        if len(earlier):
            first[k], kept[k] = earlier[0], False
    return first


def _count(first: np.ndarray) -> int:
    return int((first != np.arange(len(first))).sum())


def _exact(study: Study, by_table: bool) -> int:
    tables = _codes(study.peak_table) if by_table else np.zeros(len(study.peaks_mm))
    return _count(_first_equal(np.column_stack([tables, study.peaks_mm])))


def _on_grid(study: Study, edge_mm: float) -> int:
    return _count(_first_equal(np.round(study.peaks_mm / edge_mm)))


# One row a reading of "repeat": how many peaks of a study it removes.
READINGS: dict[str, Callable[[Study], int]] = {
    "same table, exact": lambda s: _exact(s, by_table=True),
    "same study, exact": lambda s: _exact(s, by_table=False),
    "same table, rounded to 1 mm": lambda s: _count(first_of(s, "table")),
    "same study, rounded to 1 mm": lambda s: _count(first_of(s, "study")),
    "same study, on a 2 mm grid": lambda s: _on_grid(s, 2),
    "same study, on a 3 mm grid": lambda s: _on_grid(s, 3),
    "same study, on a 4 mm grid": lambda s: _on_grid(s, 4),
    "same study, within 1 mm, first kept": lambda s: _count(first_of(s, "study", 1)),
    "same study, within 2 mm, first kept": lambda s: _count(first_of(s, "study", 2)),
    "same study, within 3 mm, first kept": lambda s: _count(first_of(s, "study", 3)),
    "same study, within 4 mm, first kept": lambda s: _count(first_of(s, "study", 4)),
}


def rates(
    studies: Sequence[Study], draws: Sequence[np.ndarray], tick: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Say what each reading of "repeat" would remove, from everything and from stratified draws.

    Parameters
    ----------
    studies : sequence of Study
        Peaks as printed.
    draws : sequence of (n,) int arrays
        Positions of the studies of each draw.
    tick : callable
        Called after each study.

    Returns
    -------
    list of dict
        reading, peaks, percent, studies; and where there are draws mean, sd, low, high: percent.
    """
    sizes = np.array([len(s.peaks_mm) for s in studies])
    counts = np.zeros((len(READINGS), len(studies)), np.int64)
    for k, study in enumerate(studies):
        counts[:, k] = [reading(study) for reading in READINGS.values()]
        tick()
    out: list[dict[str, Any]] = []
    for name, removed in zip(READINGS, counts):
        row: dict[str, Any] = {
            "reading": name,
            "peaks": int(removed.sum()),
            "percent": 100 * float(removed.sum() / max(sizes.sum(), 1)),
            "studies": int((removed > 0).sum()),
        }
        if draws:
            share = np.array([100 * removed[d].sum() / sizes[d].sum() for d in draws])
            row |= {
                "mean": float(share.mean()),
                "sd": float(share.std(ddof=1)),
                "low": float(share.min()),
                "high": float(share.max()),
            }
        out.append(row)
    return [*out, _anywhere(studies)]


def _anywhere(studies: Sequence[Study]) -> dict[str, Any]:
    everything = np.concatenate([s.peaks_mm for s in studies] or [np.zeros((0, 3))])
    owner = np.repeat(np.arange(len(studies)), [len(s.peaks_mm) for s in studies])
    first = _first_equal(everything)
    again = first != np.arange(len(first))
    return {
        "reading": "the same coordinate anywhere, any study",
        "peaks": int(again.sum()),
        "percent": 100 * float(again.mean()) if len(again) else 0.0,
        "studies": len(np.unique(owner[again])),
    }


def listing(studies: Sequence[Study]) -> dict[str, list[dict[str, Any]]]:
    """List the tables that repeat an earlier one whole, and the studies with many repeats.

    Returns
    -------
    dict
        ``tables``: study, table, repeats (the earlier table, or the table itself where it was
        parsed twice), peaks. ``studies``: study, peaks, repeated; those in which at least 40 % of
        the peaks repeat, most repeats first.
    """
    tables, heavy = [], []
    for study in studies:
        repeated = _count(first_of(study))
        if repeated >= HEAVY * max(len(study.peaks_mm), 1):
            heavy.append({"study": study.id, "peaks": len(study.peaks_mm), "repeated": repeated})
        if repeated:
            tables += _whole_tables(study)
    return {"tables": tables, "studies": sorted(heavy, key=lambda row: -row["repeated"])}


def _whole_tables(study: Study) -> list[dict[str, Any]]:
    labels, rounded = np.asarray(study.peak_table), np.round(study.peaks_mm)
    seen: dict[frozenset[tuple[float, ...]], str] = {}
    out = []
    for label in dict.fromkeys(study.peak_table):
        rows = rounded[labels == label]
        content = frozenset(map(tuple, rows.tolist()))
        # Parsed twice: every coordinate stands at least twice in the table itself.
        twice = len(rows) > 2 and np.unique(rows, axis=0, return_counts=True)[1].min() > 1
        if twice or (len(rows) > 1 and content in seen):
            repeats = str(label) if twice else seen[content]
            out.append({"study": study.id, "table": label, "repeats": repeats, "peaks": len(rows)})
        seen.setdefault(content, str(label))
    return out
