"""sha256 of the files of a run folder, and a still picture of those that change while it runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from . import files

SMALL = ("config.yaml", "environment.json", "metrics.csv")  # pulled with every checkpoint
CHECKPOINTS = "checkpoints"


def sha256(path: str | Path) -> str:
    """Return the hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def names(folder: str | Path) -> list[str]:
    """Return the run's files, relative to its folder, sorted; no half-written ones, no links."""
    found = []
    for place, folders, here in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in (".remote", "__pycache__"))
        for name in here:
            path = os.path.join(place, name)
            if os.path.isfile(path) and not os.path.islink(path) and not name.startswith(".part"):
                found.append(os.path.relpath(path, folder))
    return sorted(found)


def whole(root: str | Path, run: str) -> dict[str, dict[str, Any]]:
    """Hash every file of the run folder: what a finished job left."""
    return _hashed(os.path.join(root, run), names(os.path.join(root, run)))


def snapshot(root: str | Path, run: str) -> dict[str, dict[str, Any]]:
    """Hold still what a resumed run needs, in the folder `snapshot`, and hash it there.

    The checkpoints are replaced by rename, so a second name keeps what is being pulled.
    """
    folder, still = os.path.join(root, run), os.path.join(root, files.SNAPSHOT)
    shutil.rmtree(still, ignore_errors=True)
    os.makedirs(os.path.join(still, CHECKPOINTS))
    for name in names(folder):
        if name not in SMALL and os.path.dirname(name) != CHECKPOINTS:
            continue
        try:
            os.link(os.path.join(folder, name), os.path.join(still, name))
        except FileNotFoundError:  # replaced under our hands; the next picture has it
            continue
        except OSError:  # a file system without hard links
            shutil.copy2(os.path.join(folder, name), os.path.join(still, name))
    return _hashed(still, names(still))


def signature(root: str | Path, run: str) -> str:
    """Say in a few words which checkpoints and metrics there are: a new one, another text."""
    folder, parts = os.path.join(root, run), []
    for name in (CHECKPOINTS + "/last.ckpt", CHECKPOINTS + "/best.ckpt", "metrics.csv"):
        try:
            found = os.stat(os.path.join(folder, name))
        except FileNotFoundError:
            continue
        parts.append(f"{name}:{found.st_size}:{found.st_mtime_ns}")
    return " ".join(parts)


def _hashed(folder: str, listed: list[str]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for name in listed:
        path = os.path.join(folder, name)
        try:
            out[name] = {"sha256": sha256(path), "bytes": os.path.getsize(path)}
        except FileNotFoundError:
            continue
    return out


def write(root: str | Path, manifest: dict[str, dict[str, Any]]) -> str:
    """Keep a manifest beside the run, and return it as text."""
    text = json.dumps(manifest, indent=1, sort_keys=True)
    files.write(root, files.MANIFEST, text)
    return text
