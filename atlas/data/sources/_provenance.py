"""What a source read, written into dataset.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Provenance:
    """Name, version and licence of a source, and the sha256 of every file read."""

    name: str
    version: str
    licence: str
    inputs: dict[str, str]


def sha256(paths: Iterable[Path]) -> dict[str, str]:
    """Return the hexadecimal sha256 of each file, by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}
