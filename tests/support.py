"""Helpers that tests share."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from atlas.data.dataset import Dataset
    from atlas.data.prepare import Settings

ROOT = Path(__file__).parents[1]
SOAK = os.environ.get("ATLAS_SOAK") == "1"


def skip(reason: str) -> None:
    """Skip a test by name, or fail where the machine is meant to have everything."""
    if os.environ.get("ATLAS_FORBID_SKIPS") == "1":
        pytest.fail(f"would be skipped, but ATLAS_FORBID_SKIPS=1: {reason}")
    pytest.skip(reason)


def require_tool(tool: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(tool)
    if found is None:
        skip(f"{tool} is not installed")
    return str(found)


def printed_by(program: Path, sources: Sequence[Path], *flags: str) -> str:
    """Build a C++ program from `sources` beside csrc/, run it, return what it prints."""
    command = [require_tool("g++"), "-std=c++17", "-O1", "-w", "-pthread", f"-I{ROOT / 'csrc'}"]
    command += [*flags, *map(str, sources), "-ldl", "-o", str(program)]
    subprocess.run(command, check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


def require_neurosynth() -> Path:
    """Return the folder that ATLAS_NEUROSYNTH names, or skip the test by name."""
    folder = os.environ.get("ATLAS_NEUROSYNTH")
    if not folder:
        pytest.skip("ATLAS_NEUROSYNTH is not set: the real Neurosynth files are not here")
    return Path(folder)


def require_splits() -> Path:
    """Return the split file that ATLAS_SPLITS names, or skip the test by name."""
    path = os.environ.get("ATLAS_SPLITS")
    if not path:
        pytest.skip("ATLAS_SPLITS is not set: the benchmark's split is not here")
    return Path(path)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder that `make` writes; the first worker makes it, the others wait for it.

    Tests only read what lies there: they run at once.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, finished = base / name, base / f"{name}.finished"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a try that failed
            make(folder)
            finished.touch()
    return folder


def go_on_after(stage: str, made: Path, settings: Settings, out: Path) -> Dataset:
    """Run the stages after one that was run for the dataset `made`, with settings of their own."""
    from atlas.data import dataset
    from atlas.data.prepare import STAGES, run_stage, stage_folder

    link = stage_folder(out, stage)
    link.parent.mkdir(parents=True)
    link.symlink_to(stage_folder(made, stage))
    for later in STAGES[STAGES.index(stage) + 1 :]:
        run_stage(later, settings, out)
    return dataset.read(out)


def pairs(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Choose rows in which any value of one axis meets any of another; in `make soak` all rows."""
    rows = list(product(*map(range, map(len, axes))))
    chosen = rows if SOAK else []
    left = {pair for row in rows for pair in combinations(enumerate(row), 2)}
    while left and not SOAK:
        best = max(rows, key=lambda row: len(left.intersection(combinations(enumerate(row), 2))))
        left.difference_update(combinations(enumerate(best), 2))
        chosen.append(best)
    return [tuple(axis[k] for axis, k in zip(axes, row)) for row in chosen]


def heed_ctrl_c() -> None:
    """For `preexec_fn`: undo that a shell's background jobs, and so their children, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def spawn_atlas(
    *arguments: object, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "atlas.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )


def run_atlas(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process: the same code, without seconds of imports."""
    from atlas.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        try:
            main([*map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def one_line_error(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """Check that a command failed as users should see it; return its line."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]
