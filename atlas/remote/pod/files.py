"""The file protocol between a job's client and its pod: names in the job's root folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

JOB = "job.json"  # what to run, and for how long
LOG = "job.log"  # all that the job says
PID = "job.pid"  # process group of the job
STOPPING = "job.stopping"  # whoever ended it wants no further command run
EXIT = "job.exit"  # its exit code, when it has ended
STARTED = "job.started"  # made once, by the one runner that may start the job
HEARTBEAT = "heartbeat"  # when the client was last heard, by this machine's clock
WATCHDOG_PID, WATCHDOG_LOG = "watchdog.pid", "watchdog.log"
VERDICT = "watchdog.verdict"  # why the watchdog ended the job
SNAPSHOT = "snapshot"  # files of the run held still while they are pulled
MANIFEST = "manifest.json"


def read(root: str | Path, name: str) -> str:
    """Return a file's text without the white space around it; "" where there is none."""
    try:
        with open(os.path.join(root, name), encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def write(root: str | Path, name: str, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path = os.path.join(root, name)
    part = f"{path}.part{os.getpid()}"
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


def job(root: str | Path) -> dict[str, Any]:
    """Return job.json; an empty job where there is none yet."""
    found: dict[str, Any] = json.loads(read(root, JOB) or "{}")
    return found


def alive(pid: object) -> bool:
    """Say whether a process runs; one that has ended and waits for its parent does not."""
    try:
        with open(f"/proc/{int(str(pid or 0))}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError, IndexError):
        return False
