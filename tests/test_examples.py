"""The code of every notebook in examples/ runs, and what is committed are the outputs of a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atlas_kernels import _extension
from tests.support import ROOT, SOAK, skip

# Fewer steps, studies and repetitions than the notebook's own, which `make soak` takes.
FEWER = {
    "kernels_in_your_model": {"STEPS := 50": "STEPS := 20"},
    "nimare_acceleration": {
        "ids[:60]": "ids[:20]",
        "unique()[:200]": "unique()[:40]",
        "rounds=5": "rounds=1",
        "n_iters=10": "n_iters=2",
    },
}
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_code_runs(path: Path, tmp_path: Path) -> None:
    reason = _extension.why_missing()
    if reason:
        skip(reason)
    script = tmp_path / "notebook.py"
    code = "\n\n".join("".join(cell["source"]) for cell in code_cells(path))
    for ours, fewer in FEWER.get(path.stem, {}).items():
        assert code.count(ours) == 1
        code = code if SOAK else code.replace(ours, fewer)
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "False" not in done.stdout  # what a notebook compares, it asserts or prints


def test_it_was_run_from_top_to_bottom(path: Path) -> None:
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_it_names_no_folder_of_one_machine(path: Path) -> None:
    text = [line for line in path.read_text().splitlines() if '"image/png"' not in line]
    assert not re.findall(r'[\s"\'(]/\w+/\w.*', "\n".join(text))
