"""Sources -> clean -> split -> dataset folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from atlas.contracts import Study
from atlas.errors import AtlasError, OptionError
from atlas.metadata import FieldTable

from . import clean, dataset, splits
from .sources import SOURCES


def prepare(
    source: str,
    out: Path,
    data_dir: Path | None = None,
    seed: int = 0,
    space_policy: clean.SpacePolicy = "label",
) -> dataset.Dataset:
    """Make a dataset folder from a source.

    Parameters
    ----------
    source : str
        A row of `atlas.data.sources.SOURCES`.
    out : Path
        The dataset folder to write.
    data_dir : Path, optional
        Where the source's files lie, for those that need to be told.
    seed : int
        Of the split.
    space_policy : {"label", "none"}
        Whether peaks labelled Talairach are converted to MNI.

    Raises
    ------
    AtlasError
        Whatever is wrong with the source's files; nothing is written then.
    """
    if source not in SOURCES:
        raise OptionError(f"unknown source {source!r}; there are {', '.join(SOURCES)}")
    studies, provenance = SOURCES[source](data_dir)
    if not studies:
        raise AtlasError(f"source {source}: it holds no study with peaks")
    kept, funnel = clean.clean(studies, space_policy)
    if not kept:
        raise AtlasError(f"source {source}: no study has a peak inside the brain")
    kept = [
        dataclasses.replace(s, metadata={**s.metadata, "n_peaks": float(len(s.peaks_mm))})
        for s in kept
    ]
    _check_records(kept)
    drawn = splits.draw([s.id for s in kept], [len(s.peaks_mm) for s in kept], seed)
    empty = [name for name, ids in drawn.items() if not ids]
    if empty:
        raise AtlasError(f"{len(kept)} studies are too few: the {empty[0]} split would be empty")
    return dataset.write(
        out, kept, drawn, provenance, space_policy=space_policy, seed=seed, funnel=funnel
    )


def _check_records(studies: list[Study]) -> None:
    """Refuse repeated ids and values outside their field's range, naming the study."""
    fields, seen = FieldTable(), set()
    for study in studies:
        if study.id in seen:
            raise AtlasError(f"study {study.id}: stands twice in the source")
        seen.add(study.id)
        try:
            fields.encode(study.metadata)
        except AtlasError as error:
            raise AtlasError(f"study {study.id}: {error}") from None
