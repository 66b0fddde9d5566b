"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to it if the block succeeds, else removed.

    The suffix stays, for libraries that choose a format by it.
    """
    work = path.with_name(f".part{os.getpid()}.{path.name}")
    try:
        yield work
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8")


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path` that takes its place if the block succeeds.

    An older folder at `path` goes; the gap between the two is one rename.
    """
    work = path.with_name(f"{path.name}.part{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        if path.exists():
            old = path.with_name(f"{path.name}.old{os.getpid()}")
            os.replace(path, old)
            os.replace(work, path)
            shutil.rmtree(old)
        else:
            os.replace(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
