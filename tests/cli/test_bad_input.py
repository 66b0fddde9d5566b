"""What users get wrong: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas.data.dataset import Dataset
from tests.support import one_line_error, run_atlas


def everything_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["data.fwhm=[]"], 1, "data.fwhm"),
        (["data.fwhm=[100]"], 1, "data.fwhm"),
        (["data.keep=[0.9, 0.1]"], 1, "must not exceed the second"),
        (["train.beta2=1.0"], 1, "train.beta2"),
        (["train.lr=.inf"], 1, "train.lr"),
        (["model.blocks=[1, 1, 1, 1]"], 1, "model.blocks"),
        (["seed=99999999999999"], 1, "seed"),
        (["train.accelerator=gpu"], 1, "train.accelerator=gpu"),
        (["nonsense"], 2, "expected key=value"),
    ],
)
def test_a_configuration_that_cannot_run_leaves_no_run_folder(
    bundled: Dataset, tmp_path: Path, overrides: list[str], code: int, message: str
) -> None:
    import torch

    if "gpu" in overrides[0] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run_atlas("train", "smoke", *overrides, "--data", bundled.path, "--out", tmp_path / "r")
    assert message in one_line_error(done, code)
    assert not list(tmp_path.iterdir())


def spoil_nothing(run: Path) -> None:
    pass


def truncate_checkpoint(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])


def empty_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")


def break_environment(run: Path) -> None:
    (run / "environment.json").write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "overrides", "message"),
    [
        (truncate_checkpoint, [], "last.ckpt: damaged"),
        (empty_checkpoint, [], "last.ckpt: damaged"),
        (lambda run: (run / "config.yaml").unlink(), [], "config.yaml is missing"),
        (lambda run: (run / "config.yaml").write_text("- x"), [], "expected sections"),
        (lambda run: (run / "environment.json").unlink(), [], "missing or damaged"),
        (break_environment, [], "missing or damaged"),
        (spoil_nothing, ["model.latent=9", "--force"], "model.latent was 8, is 9"),
    ],
)
def test_a_run_that_cannot_be_resumed_stays_as_it_is(
    tiny_run: Path,
    bundled: Dataset,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    overrides: list[str],
    message: str,
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    spoil(run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    options = ("--data", bundled.path, "--out", run, "--resume")
    done = run_atlas("train", "smoke", *overrides, *options)
    assert message in one_line_error(done)
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_copied_run_resumes_with_its_own_weights(
    tiny_run: Path, bundled: Dataset, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    done = run_atlas("train", "smoke", "--data", bundled.path, "--out", run, "--resume")
    assert done.returncode == 0, done.stderr
    name = "model.safetensors"
    assert (run / name).read_bytes() == (tiny_run / name).read_bytes()
    (run / "checkpoints" / "best.ckpt").unlink()
    again = run_atlas("train", "smoke", "--data", bundled.path, "--out", run, "--resume")
    assert "best.ckpt: missing" in one_line_error(again)


@pytest.mark.parametrize("command", ["generate", "prepare", "train"])
def test_an_output_that_cannot_be_written_is_one_line(
    tiny_run: Path, bundled: Dataset, tmp_path: Path, command: str
) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    arguments = {
        "generate": ("generate", tiny_run, "--out", file / "map.nii.gz"),
        "prepare": ("data", "prepare", "--source", "bundled", "--out", file / "data"),
        "train": ("train", "smoke", "--data", bundled.path, "--out", file / "run"),
    }[command]
    one_line_error(run_atlas(*arguments))
    assert file.read_text() == "precious" and everything_below(tmp_path) == {"file"}


def test_a_directory_in_the_maps_place_is_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "map.nii.gz").mkdir()
    one_line_error(run_atlas("generate", tiny_run, "--out", tmp_path / "map.nii.gz"))
    assert everything_below(tmp_path) == {"map.nii.gz"}


def nimare_copy(folder: Path) -> Path:
    from nimare.utils import get_resource_path

    source = Path(get_resource_path()) / "nback_vs_flanker_studyset_2026-07"
    return Path(shutil.copytree(source, folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(x=t["x"].where(t.index != 7)), "are not finite"),
        (lambda t: t.assign(x=t["x"] / 10, y=t["y"] / 10, z=t["z"] / 10), "centimetres"),
        (lambda t: t.assign(x=t["x"] * 10), "outside the brain"),
        (lambda t: t.iloc[:0], "no study has a peak inside the brain"),
        (lambda t: t.drop(columns="x"), "cannot be read as a NiMARE studyset"),
    ],
)
def test_a_source_with_wrong_coordinates_is_refused(tmp_path: Path, change, message: str) -> None:
    import pandas as pd

    folder = nimare_copy(tmp_path / "set")
    path = folder / "coordinates.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    out = tmp_path / "out"
    done = run_atlas("data", "prepare", "--source", "bundled", "--data-dir", folder, "--out", out)
    assert message in one_line_error(done)
    assert not out.exists()


def test_a_study_without_peaks_is_counted(tmp_path: Path) -> None:
    import pandas as pd

    folder = nimare_copy(tmp_path / "set")
    path = folder / "coordinates.parquet"
    table = pd.read_parquet(path)
    table[table["study_id"] != table["study_id"].iloc[0]].to_parquet(path)
    out = tmp_path / "out"
    arguments = ("--source", "bundled", "--data-dir", folder, "--out", out, "--json")
    done = run_atlas("data", "prepare", *arguments)
    assert done.returncode == 0, done.stderr
    funnel = json.loads(done.stdout)["funnel"]
    assert funnel[0]["studies"] == 320 and funnel[-1]["studies"] == 319
    assert funnel[-1]["step"] == "studies without peaks dropped" and funnel[-1]["changed"] == 1
