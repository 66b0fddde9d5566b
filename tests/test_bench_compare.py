"""`python -m bench.compare`: what fails, what passes, what is no file of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compare
from tests.support import ROOT, one_line_error

SAVED = {"forward": {"memset": 2.0, "reference": 0.001}, "step": {"forward": 3.0}}
RUN = '{"machine_info": {}, "benchmarks": [%s]}'


def write(path: Path, ratios: dict[str, dict[str, float]], machine: str = "a") -> str:
    rows = [{"name": name, "extra_info": {"ratio": ratio}} for name, ratio in ratios.items()]
    path.write_text(json.dumps({"machine_info": {"cpu": machine}, "benchmarks": rows}))
    return str(path)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    return write(tmp_path / "saved.json", SAVED)


@pytest.mark.parametrize(
    ("reference", "code"),
    [(0.0005, 0), (0.001, 0), (0.0011, 0), (0.0012, 1)],
    ids=["better", "same", "10 % worse", "20 % worse"],
)
def test_a_ratio_may_be_15_percent_worse(
    tmp_path: Path, saved: str, capsys: pytest.CaptureFixture, reference: float, code: int
) -> None:
    changed = {**SAVED, "forward": {"memset": 2.0, "reference": reference}}
    assert compare.main([write(tmp_path / "new.json", changed), saved]) == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if "WORSE" in line] == (
        [["forward", "/", "reference"]] if code else []
    )
    assert lines[-1] == f"{code} of 3 ratios are more than 15% worse"


def test_what_one_side_lacks_is_named(
    tmp_path: Path, saved: str, capsys: pytest.CaptureFixture
) -> None:
    new = write(tmp_path / "new.json", {"step": {"forward": 3.0}, "decode": {"encode": 1.0}}, "b")
    assert compare.main([new, saved]) == 0
    printed = capsys.readouterr().out
    assert "forward / memset: missing in the new file" in printed
    assert "decode / encode: missing in the old file" in printed
    assert "Not the same machine" in printed


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        '{"benchmarks": [{"na',
        "[]",
        RUN % "",
        RUN % '{"name": "step"}',
        RUN % '{"name": "step", "extra_info": {"ratio": {"forward": NaN}}}',
        RUN % '{"name": "step", "extra_info": {"ratio": {"forward": 0}}}',
    ],
    ids=["missing", "empty", "truncated", "list", "no benchmark", "no ratio", "nan", "zero"],
)
@pytest.mark.parametrize("side", [0, 1], ids=["new", "old"])
def test_an_unreadable_file_is_one_line(
    tmp_path: Path, saved: str, capsys: pytest.CaptureFixture, content: str | None, side: int
) -> None:
    damaged = tmp_path / "damaged.json"
    if content is not None:
        damaged.write_text(content)
    assert compare.main([str(damaged), saved] if side == 0 else [saved, str(damaged)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ") and printed.err.count("\n") == 1
    assert str(damaged) in printed.err and not printed.out


def test_the_command_line(tmp_path: Path, saved: str) -> None:
    command = [sys.executable, "-m", "bench.compare", str(tmp_path / "no.json"), saved]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "No such file" in one_line_error(done, code=2)


def test_the_saved_baseline_compares_with_itself() -> None:
    baseline = ROOT / "bench" / "results" / "baseline.json"
    assert compare.main([str(baseline), str(baseline)]) == 0
