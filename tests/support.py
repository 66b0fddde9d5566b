"""Helpers that tests share."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Over the smoke configuration: as the shipped models, on cells of twice the edge, an eighth of the
# work; the loop around it is the same.
TINY = ["model.halve=true"]


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
