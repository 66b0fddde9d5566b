"""SOURCES: where studies come from, one file a source, one row here.

A reader takes the folder given with ``--data-dir`` (or None) and returns the studies as printed,
nothing converted, dropped or reordered, with a description of what it read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atlas.contracts import Study

from ._provenance import Provenance
from .bundled import read as read_bundled
from .neurosynth import read as read_neurosynth
from .nimads import read as read_nimads

Reader = Callable[[Path | None], tuple[list[Study], Provenance]]

SOURCES: dict[str, Reader] = {
    "bundled": read_bundled,
    "neurosynth": read_neurosynth,
    "nimads": read_nimads,
}

__all__ = ["SOURCES", "Provenance", "Reader"]
