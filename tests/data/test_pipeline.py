"""dvc.yaml: everything is made once, what is fresh is skipped, what changed is made again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.data import dataset as folder
from tests.support import ROOT, skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a git repository with the pipeline, its code, and the bundled source."""
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "atlas", tmp_path / "atlas", ignore=shutil.ignore_patterns("__pycache__")
    )
    params = (tmp_path / "params.yaml").read_text().replace("neurosynth", "bundled")
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", tmp_path / ".dvc")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def repro(checkout: Path) -> str:
    dvc = Path(sys.prefix) / "dvc" / "bin" / "dvc"
    if not dvc.exists():
        skip("DVC is not installed; make data brings it")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(dvc), "repro"],
        cwd=checkout, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_pipeline_runs_what_changed(checkout: Path) -> None:
    first = repro(checkout)
    for stage in ("fetch", "clean", "validate", "split", "cache"):
        assert f"Running stage '{stage}'" in first
    data = folder.read(checkout / "data" / "bundled")
    assert len(data) == 320 and (data.path / "cache_4mm" / "key.json").is_file()
    again = repro(checkout)
    assert "Running stage" not in again and "up to date" in again
    params = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(params.replace('split: ""', 'split: "--subset 60"'))
    changed = repro(checkout)
    assert "Running stage 'split'" in changed and "Running stage 'cache'" in changed
    assert "Running stage 'fetch'" not in changed and "Running stage 'validate'" not in changed
    assert len(folder.read(data.path)) == 60
