"""The code of examples/nimare_acceleration.ipynb runs, and its outputs say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_kernels import _extension
from tests.support import ROOT

NOTEBOOK = ROOT / "examples" / "nimare_acceleration.ipynb"


@pytest.mark.slow
@pytest.mark.skipif(bool(_extension.why_missing()), reason=str(_extension.why_missing()))
def test_the_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("nimare")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    shown = "".join("".join(out["text"]) for cell in cells for out in cell.get("outputs", []))
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(codes)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "False" not in done.stdout and "False" not in shown
    assert done.stdout.count("True") in (7, 11)  # with Neurosynth four more
    assert shown.count("True") == 11
