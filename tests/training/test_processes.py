"""Several processes train what one does; strategies that cannot run say so."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atlas import config
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.training.run import train
from tests.support import spawn_atlas

OPTIONS = ["train.epochs=2", "train.ema=0.5", "train.accelerator=cpu", "train.threads=1"]


def row_values(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_get_the_loss_of_one(small: Dataset, tmp_path: Path) -> None:
    """Two processes of two studies each, by gloo, beside one that accumulates two batches."""
    out = {name: tmp_path / name for name in ("one", "two")}
    common = ("train", "smoke", *OPTIONS, "train.batch=2", "--data", small.path)
    one = spawn_atlas(*common, "train.accumulate=2", "--out", out["one"], timeout=900)
    assert one.returncode == 0, one.stderr
    two = spawn_atlas(
        *common, "train.devices=2", "train.strategy=ddp", "--out", out["two"], timeout=900
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.splitlines() == [str(out["two"])]
    ours, theirs = row_values(out["two"]), row_values(out["one"])
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [7, 14]
    for mine, other in zip(ours, theirs):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
    a, b = (load_file(out[name] / "model.safetensors") for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_fsdp_is_refused_on_a_cpu(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"train.strategy=fsdp: needs GPUs; processes on a CPU"):
        train(config.load("smoke", ["train.strategy=fsdp"]), small, tmp_path / "run")
    assert not (tmp_path / "run").exists()
