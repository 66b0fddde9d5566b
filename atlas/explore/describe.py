"""A model as plain data with all that a page shows before the first map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atlas import model_file
from atlas.errors import AtlasError
from atlas.inference import Atlas

from . import directions, regions


def describe(
    atlas: Atlas,
    run: Path | None,
    studies: dict[str, Any],
    topics: directions.Topics | None = None,
) -> dict[str, Any]:
    """Extend `Atlas.describe` by its folder, topics, coverage, studies and regions.

    Parameters
    ----------
    run : Path or None
        The model's folder; None for the released one.
    studies : dict
        ``count``, ``source``, ``reason``.
    topics : list, optional
        Of each direction; by default what the folder carries.
    """
    out = atlas.describe()
    topics = topics or directions.stored(run) or []
    for direction in out["latent"]["directions"]:
        known = direction["index"] < len(topics)
        direction["topics"] = topics[direction["index"]] if known else []
    words = directions.topic_words() if atlas.card.source == "neurosynth v7" else {}
    for field in out["fields"]:
        for category in field["categories"] or ():
            category["label"] = words.get(category["value"], category["label"])
    why_not = _why_no_regions()
    return {
        **out,
        "run": None if run is None else str(run),
        "coverage": coverage(run),
        "studies": studies,
        "regions": {"available": why_not is None, "reason": why_not},
    }


def coverage(run: Path | None) -> list[dict[str, float]] | None:
    """Return how many held-out cells each nominal interval covered, as evaluation measured it.

    From RUN/test_results.json; the released model carries its own. None where there is none.
    """
    try:
        found = json.loads(((run or model_file.released()) / "test_results.json").read_text())
        return [
            {"level": int(level) / 100, "covered": float(share[0])}
            for level, share in found["uncertainty_coverage"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _why_no_regions() -> str | None:
    try:
        regions.load()
    except AtlasError as error:
        return str(error)
    return None
