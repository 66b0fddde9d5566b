"""Neurosynth v7: 14,371 studies, 507,891 peaks, 50 LDA topics of the abstracts (ODbL).

NiMARE downloads the files (`fetch_neurosynth`) or finds them where they are; our own reader reads
them, because NiMARE's conversion drops the tables and has transformed the coordinates already.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas.contracts import Study
from atlas.errors import AtlasError, require
from atlas.metadata import N_TOPICS, Value

from ._provenance import Provenance, sha256

if TYPE_CHECKING:
    import pandas as pd

NAME = "neurosynth v7"
_PREFIX = "data-neurosynth_version-7_"
# The released files, by their sha256: one that differs is damaged or edited.
FILES = {
    "coordinates.tsv.gz": "17135be3e08a0ab045896c77217e8463086543a0817d52a6a88c8e32c1161616",
    "metadata.tsv.gz": "8acde7de2a14ee2a12b406e50a8805e83288b0bc78924ddb36879d496dfb757b",
    "vocab-LDA50_source-abstract_type-weight_features.npz": (
        "dff7606079404b8496be4baca35c0d261e91d4ac6ff5c5595e1ef519e598a571"
    ),
}
_COORDINATES = {"id": "int64", "table_id": "int64", "x": "float64", "y": "float64", "z": "float64"}
_METADATA = {
    "id": "int64",
    "doi": "str",
    "space": "str",
    "title": "str",
    "authors": "str",
    "year": "int64",
    "journal": "str",
}

# One row a task category: the LDA topics whose weights sum to its own. The other 20 topics speak
# of the population, of anatomy or of methods, which is no evidence of a task.
TASK_TOPICS: dict[str, tuple[int, ...]] = {
    "working_memory": (9, 18),
    "attention_control": (16, 20, 44, 47, 48),
    "memory": (33, 41),
    "language": (37, 38, 46),
    "auditory": (6,),
    "visual": (42, 45, 25),
    "motor": (11, 17, 19),
    "pain_somatosensory": (32,),
    "emotion": (13, 26, 40),
    "reward_decision": (7, 10, 30),
    "social": (8, 28),
    "resting_state": (0,),
}
MIN_TASK_WEIGHT = 0.10  # of the strongest category, else the task is missing


def read(data_dir: Path | None = None) -> tuple[list[Study], Provenance]:
    """Read the release, downloading what is not there.

    Parameters
    ----------
    data_dir : Path, optional
        The folder that holds ``neurosynth/``. By default what ATLAS_NEUROSYNTH names, else
        NiMARE's own data folder.

    Raises
    ------
    AtlasError
        A file is missing and cannot be downloaded, is damaged, or is not Neurosynth v7's.
    """
    folder = data_dir or (os.environ.get("ATLAS_NEUROSYNTH") or None)
    paths = _fetch(Path(folder) if folder else None)
    digests = sha256(paths)
    changed = [p for p in paths if digests[p.name] != FILES[p.name.removeprefix(_PREFIX)]]
    again = "; delete it to have it downloaded again"
    try:
        studies = read_files(*paths)
    except AtlasError as error:  # the message names what is wrong inside
        raise AtlasError(f"{error}{again}") from None
    if changed:
        raise AtlasError(
            f"{changed[0]}: differs from Neurosynth v7's file (sha256 "
            f"{digests[changed[0].name][:12]}..): damaged or edited{again}"
        )
    licence = "Open Database License (ODbL) 1.0, Neurosynth (Yarkoni et al. 2011)"
    return studies, Provenance(name=NAME, version="7", licence=licence, inputs=digests)


def _fetch(folder: Path | None) -> list[Path]:
    """Return the paths of the files in the order of `FILES`; NiMARE downloads what is missing."""
    if folder is not None:
        if not folder.is_dir():
            raise AtlasError(f"{folder}: no such folder; --data-dir names the one with neurosynth/")
        paths = [folder / "neurosynth" / f"{_PREFIX}{name}" for name in FILES]
        if all(path.is_file() for path in paths):
            return paths
    extract = require("nimare.extract", "data")
    logging.getLogger("nimare").setLevel(logging.WARNING)
    here = folder / "neurosynth" if folder else None
    before = set(here.iterdir()) if here is not None and here.is_dir() else set()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            found = extract.fetch_neurosynth(
                data_dir=str(folder) if folder else None,
                version="7",
                source="abstract",
                vocab="LDA50",
                type="weight",
                return_type="files",
            )[0]
    except OSError as error:
        for path in set(here.iterdir()) - before if here is not None else ():
            path.unlink()  # what a failed download began
        raise AtlasError(
            f"{here or 'Neurosynth v7'}: a file is missing and could not be downloaded ({error}); "
            "name the folder that holds neurosynth/ with --data-dir"
        ) from None
    features = found["features"][0]["features"]
    return [Path(found["coordinates"]), Path(found["metadata"]), Path(features)]


def read_files(coordinates: Path, metadata: Path, features: Path) -> list[Study]:
    """Read three files in Neurosynth's format, whoever wrote them.

    Raises
    ------
    AtlasError
        Damaged file, missing column, a value that is no number, repeated id, a peak of an unknown
        study, another number of feature rows than of studies; names the file.
    """
    peaks, about = _table(coordinates, _COORDINATES), _table(metadata, _METADATA)
    weights = _features(features)
    if len(weights) != len(about):
        raise AtlasError(
            f"{features}: {len(weights)} rows of topic weights for {len(about)} studies in "
            f"{metadata.name}"
        )
    repeated = about["id"].duplicated()
    if repeated.any():
        raise AtlasError(f"{metadata}: study {about['id'][repeated].iloc[0]} stands twice")
    strange = ~peaks["id"].isin(about["id"])
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        raise AtlasError(
            f"{coordinates}, row {row + 2}: study {peaks['id'].iloc[row]} is not in {metadata.name}"
        )
    return _studies(peaks, about, weights)


def _studies(peaks: pd.DataFrame, about: pd.DataFrame, weights: np.ndarray) -> list[Study]:
    xyz, tables = peaks[["x", "y", "z"]].to_numpy(), peaks["table_id"].astype(str).to_numpy()
    rows = peaks.groupby("id", sort=False).indices
    none = np.zeros(0, np.int64)
    out = []
    for study, topics in zip(about.to_dict("records"), weights):
        mine = rows.get(study["id"], none)
        metadata: dict[str, Value | None] = {
            "year": float(study["year"]),
            "topics": {f"topic_{k:02d}": float(w) for k, w in enumerate(topics) if w > 0} or None,
            "task": task_weights(topics),
        }
        out.append(
            Study(
                id=str(study["id"]),
                title=study["title"],
                peaks_mm=xyz[mine],
                peak_space=(study["space"].upper() or "UNKNOWN",) * len(mine),
                metadata=metadata,
                peak_table=tuple(tables[mine]),
                authors=study["authors"],
                journal=study["journal"],
                doi=study["doi"],
            )
        )
    return out


def task_weights(topics: np.ndarray) -> Value | None:
    """Turn topic weights, (50,), into weights over the task categories; None where none is 0.1."""
    sums = {task: float(topics[list(members)].sum()) for task, members in TASK_TOPICS.items()}
    total = sum(sums.values())
    if max(sums.values()) < MIN_TASK_WEIGHT:
        return None
    return {task: weight / total for task, weight in sums.items() if weight > 0}


def _table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Read columns of a tab-separated file; text is kept, "" where empty."""
    pd = require("pandas", "data")
    try:
        table = pd.read_csv(
            path, sep="\t", dtype="str", keep_default_na=False, encoding="utf-8", quoting=3
        )
    except UnicodeDecodeError as error:
        raise AtlasError(f"{path}: not UTF-8 text ({error})") from None
    # What pandas and gzip raise for damaged files has no common base.
    except (OSError, EOFError, ValueError, zlib.error, MemoryError, OverflowError) as error:
        raise AtlasError(f"{path}: cannot be read: {_line(error)}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for an index
        raise AtlasError(f"{path}: a row has more cells than the header has columns")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise AtlasError(f"{path}: has no column {missing[0]!r}; expected {', '.join(columns)}")
    out = {}
    for name, dtype in columns.items():
        out[name] = table[name] if dtype == "str" else _numbers(path, table[name], dtype)
    return pd.DataFrame(out)


def _numbers(path: Path, column: Any, dtype: str) -> Any:
    pd = require("pandas", "data")
    numbers = pd.to_numeric(column, errors="coerce")
    bad = numbers.isna().to_numpy()
    if dtype == "float64":  # NaN and inf are refused by the cleaning, which names study and peak
        bad = bad & ~column.str.lower().isin(["nan", "inf", "-inf"]).to_numpy()
    else:
        bad = bad | (numbers % 1 != 0).to_numpy() | (numbers.abs() >= 2**53).to_numpy()
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        kind = "a number" if dtype == "float64" else "a whole number"
        raise AtlasError(
            f"{path}, row {row + 2}: {column.name} is {column.iloc[row]!r}, expected {kind}"
        )
    return numbers.astype(dtype)


def _features(path: Path) -> np.ndarray:
    """Read the (S, 50) topic weights from a scipy sparse npz; never a pickle."""
    sparse = require("scipy.sparse", "data")
    try:
        with path.open("rb") as file:
            weights = sparse.load_npz(file)
        shape = weights.shape
        if len(shape) != 2 or shape[1] != N_TOPICS or shape[0] > 10**7:
            raise AtlasError(f"{path}: a matrix of {shape}, expected (studies, {N_TOPICS})")
        if hasattr(weights, "check_format"):  # not every sparse format has one
            weights.check_format()
        dense = np.asarray(weights.toarray(), dtype=float)
    except AtlasError:
        raise
    # A damaged archive may fail anywhere in zipfile, numpy or scipy.
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        NotImplementedError,
        AttributeError,
        OverflowError,
        MemoryError,
        SyntaxError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise AtlasError(f"{path}: cannot be read: {_line(error)}") from None
    if not (np.isfinite(dense).all() and (dense >= 0).all()):
        raise AtlasError(f"{path}: topic weights must be finite and at least 0")
    return dense


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
