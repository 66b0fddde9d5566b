"""Brings the run folder home: whole files, checked against the pod's sha256, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from atlas.errors import AtlasError
from atlas.files import write_text

from .errors import CommandFailed
from .pod import files
from .pod.manifest import sha256
from .reach import Way
from .state import FOLDER, Job

INCOMING, TRIES = "incoming", 3
Manifest = dict[str, dict[str, Any]]


def checkpoint(way: Way) -> list[str]:
    """Fetch the checkpoints and metrics that there are now; returns the names that came."""
    return _fetch(way, "snapshot", files.SNAPSHOT)


def everything(way: Way) -> list[str]:
    """Fetch the whole run folder; when this returns, all of it is here as it is there."""
    return _fetch(way, "whole", run_folder(way.job))


def run_folder(job: Job) -> str:
    """Name the run folder there; its last part is OUT's name, which the model's card repeats."""
    return f"run/{job.out.name}"


def _fetch(way: Way, verb: str, source: str) -> list[str]:
    job = way.job
    wrong: list[str] = []
    for _ in range(TRIES):
        manifest = _checked(way.ask(verb, timeout=1800))
        wanted = [n for n, entry in manifest.items() if _stale(job, n, entry["sha256"])]
        wrong = _bring(way, source, manifest, wanted)
        if not wrong:
            return wanted
    raise AtlasError(f"{', '.join(wrong[:3])}: came damaged {TRIES} times")


def _checked(manifest: dict[str, Any]) -> Manifest:
    """Refuse names that lead out of the run folder."""
    for name in manifest:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.parts[:1] == (FOLDER,):
            raise AtlasError(f"the pod's list of files names {name!r}, outside the run folder")
    return manifest


def _stale(job: Job, name: str, digest: str) -> bool:
    return job.state.pulled.get(name) != digest or not (job.out / name).is_file()


def _bring(way: Way, source: str, manifest: Manifest, names: list[str]) -> list[str]:
    """Copy files here, check them, and put them in place together; returns the wrong ones."""
    if not names:
        return []
    job, incoming = way.job, way.job.folder / INCOMING
    _need_room(job, sum(int(manifest[name]["bytes"]) for name in names))
    try:
        way.there(lambda shell: shell.pull(source, incoming, names))
    except CommandFailed as error:
        if error.code not in (1, 23, 24):  # a file went away while it was read
            raise
    wrong = [n for n in names if not _is(incoming / n, manifest[n]["sha256"])]
    if wrong:
        for name in wrong:
            (incoming / name).unlink(missing_ok=True)
        return wrong
    for name in names:
        target = job.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name == "environment.json":
            _localise(job, incoming / name)
        os.replace(incoming / name, target)
        job.state.pulled[name] = manifest[name]["sha256"]
    job.save()
    shutil.rmtree(incoming, ignore_errors=True)
    return []


def _need_room(job: Job, size: int) -> None:
    if shutil.disk_usage(job.out).free < size:
        raise AtlasError(f"{job.out}: the disk here is full; {size / 1e6:,.0f} MB are to come")


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _localise(job: Job, path: Path) -> None:
    """Let environment.json name this machine's dataset and command."""
    request = job.state.request
    environment = json.loads(path.read_text())
    environment.setdefault("dataset", {})["path"] = str(request.data)
    command = ["atlas", "train", *([request.config] if request.config else []), *request.overrides]
    environment["command"] = [*command, "--data", str(request.data), "--out", str(request.out),
                              "--remote", request.provider]  # fmt: skip
    write_text(path, json.dumps(environment, indent=1))
