"""The command line as a user meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from atlas.data.dataset import Dataset
from tests.support import one_line_error, run_atlas, spawn_atlas


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from atlas.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'nimare', 'pytorch_lightning', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    for command in ("quickstart", "doctor", "data", "train", "evaluate", "generate", "serve"):
        assert f"  {command} " in done.stdout
    assert min(times) < 1.0  # 0.2 s on an idle machine; the margin is for a busy one


def test_unknown_commands_and_options_are_usage_errors() -> None:
    for arguments in (("fly",), ("train",), ("generate", "run", "--colour", "red")):
        assert run_atlas(*arguments).returncode == 2


def test_version() -> None:
    from atlas import __version__

    assert __version__ in spawn_atlas("--version").stdout


def test_doctor_says_what_runs_here(tiny_run: Path) -> None:
    done = run_atlas("doctor", "--json", "--model", tiny_run)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    kernels = {(k["op"], k["implementation"]): k["why_not"] for k in said["kernels"]}
    assert kernels["splat", "cpu"] is None and kernels["splat", "reference"] is None
    assert said["core"]["torch"] and "mm" in said["model"]["receptive_field"]
    assert "kernels" in run_atlas("doctor").stdout


def test_data_prepare_and_cache(tmp_path: Path) -> None:
    out = tmp_path / "data"
    done = run_atlas("data", "prepare", "--source", "bundled", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "320 studies     9,203 peaks" in done.stdout
    assert "peaks out of the volume removed  (16)" in done.stdout
    cached = run_atlas("data", "cache", out, "--fwhm", 6, "--fwhm", 12)
    assert cached.returncode == 0, cached.stderr
    assert Path(cached.stdout.strip()).is_dir()
    one_line_error(run_atlas("data", "cache", tmp_path / "none"))
    assert run_atlas("data", "cache", out, "--fwhm", 0).returncode == 2
    assert run_atlas("data", "prepare", "--source", "sleuth", "--out", out).returncode == 2


def test_evaluate(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    done = run_atlas("evaluate", run, "--json", "--samples", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((run / "test_results.json").read_text())
    assert (run / "report" / "index.html").is_file()
    one_line_error(run_atlas("evaluate", tmp_path))


def test_generate(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps" / "map.nii.gz"
    settings = ("--set", "task=language", "--set", "n=9000")
    done = run_atlas("generate", tiny_run, *settings, "--seed", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "extrapolated beyond the training data: n" in done.stdout
    assert nib.load(out).shape == nib.load(tmp_path / "maps" / "map_sd.nii.gz").shape
    sidecar = json.loads((tmp_path / "maps" / "map.json").read_text())
    assert sidecar["metadata"] == {"task": {"language": 1.0}, "n": 9000.0}
    assert sidecar["extrapolated"] == ["n"] and "age" in sidecar["imputed"]
    assert len(list(out.parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("n=0", "outside its range"),
        ("task=chess", "unknown category 'chess'"),
        ("colour=red", "unknown metadata field 'colour'"),
        ("n", "expected FIELD=VALUE"),
        ("year=2010", "year: never observed in this model's training"),
    ],
)
def test_a_wrong_setting_is_a_usage_error_and_writes_nothing(
    tiny_run: Path, tmp_path: Path, setting: str, message: str
) -> None:
    done = run_atlas("generate", tiny_run, "--set", setting, "--out", tmp_path / "x.nii.gz")
    assert message in one_line_error(done, code=2)
    assert not list(tmp_path.iterdir())


def test_a_map_needs_a_niftis_name(tiny_run: Path, tmp_path: Path) -> None:
    done = run_atlas("generate", tiny_run, "--out", tmp_path / "map.png")
    assert "ends in .nii.gz or .nii" in one_line_error(done, code=2)
    assert not list(tmp_path.iterdir())


def test_counterfactual(tiny_run: Path, bundled: Dataset, tmp_path: Path) -> None:
    study = bundled.splits["test"][0]
    arguments = ("counterfactual", tiny_run, "--study", study, "--out", tmp_path / "cf")
    done = run_atlas(*arguments, "--set", "task=language")
    assert done.returncode == 0, done.stderr
    images = {path.name.split("desc-")[1].split("_")[0]: nib.load(path).get_fdata()
              for path in (tmp_path / "cf").glob("*statmap.nii.gz")}  # fmt: skip
    assert set(images) == {"factual", "counterfactual", "difference"}
    difference = images["counterfactual"] - images["factual"]
    assert np.allclose(difference, images["difference"], atol=1e-4)
    assert run_atlas(*arguments).returncode == 2  # no change named
    nobody = run_atlas(
        "counterfactual", tiny_run, "--study", "x", "--set", "n=9", "--out", tmp_path
    )
    assert "has no study 'x'" in one_line_error(nobody)


def test_quiet_says_only_results(tmp_path: Path) -> None:
    done = run_atlas("-q", "data", "prepare", "--source", "bundled", "--out", tmp_path / "data")
    assert done.returncode == 0 and done.stderr == ""


def test_the_kernel_table() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "atlas_kernels"], capture_output=True, text=True, check=True
    )
    assert "splat" in done.stdout and "reference" in done.stdout
