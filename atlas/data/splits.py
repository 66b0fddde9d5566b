"""Splits by study: 70/15/15, seeded, inside strata of year and number of peaks. Ids only.

Studies of one group (near-duplicates, `atlas.data.twins`) land on one side. A split can be
inherited: studies that it does not name become ``unassigned`` and are never trained on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atlas.errors import AtlasError
from atlas.metadata import YEAR_BINS

from .years import year_bin, year_edges

SPLITS = ("train", "val", "test")
UNASSIGNED = "unassigned"
_PATTERN = np.repeat([0, 1, 2], [14, 3, 3])  # 70/15/15 in every 20 studies
_STRATA = 5  # fifths of the number of peaks


def order_by_stratum(
    ids: Sequence[str],
    years: Sequence[float | None],
    n_peaks: Sequence[int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the studies' positions, (S,), stratum after stratum, shuffled inside each.

    A stratum is a year bin (ten of nearly equal size, and the studies without a year) and a fifth
    of the number of peaks. The result depends on the studies, not on their order in the source.
    """
    edges = year_edges([y for y in years if y is not None], YEAR_BINS)
    bin_of = {year: year_bin(year, edges) for year in set(years)}
    bins = np.array([bin_of[year] for year in years])
    cuts = np.quantile(n_peaks, np.linspace(0, 1, _STRATA + 1)[1:-1])
    fifths = np.searchsorted(cuts, n_peaks, side="left")
    shuffle = np.empty(len(ids))
    shuffle[np.argsort(np.asarray(ids, dtype=str))] = rng.random(len(ids))
    return np.lexsort((shuffle, fifths, bins))


def draw_subset(
    ids: Sequence[str],
    years: Sequence[float | None],
    n_peaks: Sequence[int],
    size: int,
    seed: int,
) -> np.ndarray:
    """Draw `size` studies, stratified by year and number of peaks; sorted positions, (size,)."""
    if not 0 < size <= len(ids):
        raise AtlasError(f"a subset of {size} studies: there are {len(ids)}")
    rng = np.random.default_rng([seed, 1])
    order = order_by_stratum(ids, years, n_peaks, rng)
    steps = (np.arange(size) + rng.random()) * len(ids) / size
    return np.sort(order[steps.astype(np.int64)])


def draw(
    ids: Sequence[str],
    years: Sequence[float | None],
    n_peaks: Sequence[int],
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Assign every study to train, val or test.

    Parameters
    ----------
    ids : sequence of str
        One a study: everything of one publication lands on one side.
    years, n_peaks : sequences
        Year (None where missing) and number of peaks: the strata.
    groups : (S,) int array, optional
        Position of the first study of each study's group; groups land on one side.
    seed : int
        Same studies and seed give the same split, whatever their order.

    Returns
    -------
    dict
        Sorted ids by split. Every 20 studies in the order of the strata hold 14, 3 and 3.
    """
    rng = np.random.default_rng(seed)
    order = order_by_stratum(ids, years, n_peaks, rng)
    blocks = [rng.permutation(_PATTERN) for _ in range(-(-len(ids) // len(_PATTERN)))]
    side = np.empty(len(ids), np.int64)
    side[order] = np.concatenate([*blocks, np.zeros(0, np.int64)])[: len(ids)]
    if groups is not None:
        side = _keep_together(side, groups, order)
    members = [np.flatnonzero(side == s).tolist() for s in range(len(SPLITS))]
    return {name: sorted(ids[k] for k in mine) for name, mine in zip(SPLITS, members)}


def _keep_together(side: np.ndarray, groups: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Move every group to its first study's side, and give back as many single studies."""
    together = side[groups]
    single = np.bincount(groups, minlength=len(groups))[groups] == 1
    for k in np.flatnonzero(together != side):
        # The nearest single study, in the order of the strata, that can go the other way.
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        swap = np.flatnonzero(single & (together == together[k]))
        if len(swap):
            nearest = swap[np.argmin(np.abs(rank[swap] - rank[k]))]
            together[nearest] = side[k]
            single[nearest] = False
    return together


def inherit(ids: Sequence[str], given: dict[str, str]) -> dict[str, list[str]]:
    """Apply a split that was read by `read`: sorted ids by split, ``unassigned`` the unnamed."""
    out: dict[str, list[str]] = {name: [] for name in (*SPLITS, UNASSIGNED)}
    for study_id in ids:
        out[given.get(study_id, UNASSIGNED)].append(study_id)
    return {name: sorted(members) for name, members in out.items()}


def read(path: Path) -> dict[str, str]:
    """Read a split: our splits.json (ids by split), or a CSV with the columns id and split.

    Raises
    ------
    AtlasError
        Not readable, another form, an unknown split, or a study on two sides; names the file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AtlasError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise AtlasError(f"{path}: not UTF-8 text ({error})") from None
    pairs = _json_pairs(path, text) if path.suffix == ".json" else _csv_pairs(path, text)
    out: dict[str, str] = {}
    for study_id, split in pairs:
        if split not in (*SPLITS, UNASSIGNED):
            raise AtlasError(f"{path}: study {study_id}: unknown split {split!r}; train, val, test")
        if out.get(study_id, split) != split:
            raise AtlasError(f"{path}: study {study_id} stands in {out[study_id]} and in {split}")
        out[study_id] = split
    if not out:
        raise AtlasError(f"{path}: names no study")
    return out


def _json_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AtlasError(f"{path}: is no JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise AtlasError(f"{path}: expected an object of lists of ids, as in splits.json")
    return [(str(study_id), split) for split, members in content.items() for study_id in members]


def _csv_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    table = csv.DictReader(text.splitlines())
    try:
        if not {"id", "split"} <= set(table.fieldnames or ()):
            raise AtlasError(f"{path}: needs the columns id and split")
        return [((row["id"] or "").strip(), (row["split"] or "").strip()) for row in table]
    except csv.Error as error:
        raise AtlasError(f"{path}: is no CSV table ({error})") from None
