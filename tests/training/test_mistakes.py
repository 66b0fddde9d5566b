"""What goes wrong in training: one line that says what to do, and the last checkpoint is kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas import config
from atlas.contracts import Batch, Output
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.metadata import FieldTable
from atlas.models.cvae import CVAE
from atlas.training.module import AtlasModule
from atlas.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
OPTIONS = ["train.batch=4"]
EPOCH = config.load("smoke", [*OPTIONS, "train.epochs=1"])


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def trained(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, to copy."""
    return train(EPOCH, small, tmp_path_factory.mktemp("mistakes") / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize("where", ["loss", "gradient's norm"])
def test_nothing_is_learnt_from_what_is_not_finite(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """In the last batch of the second epoch, where weights would be kept next."""
    modules: list[AtlasModule] = []
    weights: list[list[torch.Tensor]] = []

    def spoil(self: AtlasModule, batch: Batch) -> Any:
        terms = original(self, batch)
        if self.global_step == 13:
            modules.append(self)
            weights.append([p.detach().clone() for p in self.parameters()])
            # a loss that is finite, but whose gradient is not
            zero = next(self.parameters()).flatten()[0] * 0
            broken = zero.sqrt() if where != "loss" else zero + float("nan")
            return terms._replace(total=terms.total + broken)
        return terms

    original = AtlasModule.training_losses
    monkeypatch.setattr(AtlasModule, "training_losses", spoil)
    settings = config.load("smoke", [*OPTIONS, "train.epochs=2"])
    said = (
        rf"the {where} is nan at step 13 \(studies \w+, .*\); lower train.lr; the last checkpoint"
    )
    with pytest.raises(AtlasError, match=said):
        train(settings, small, tmp_path / "run")
    assert all(torch.equal(p, q) for p, q in zip(modules[0].parameters(), weights[0]))
    kept = checkpoint(tmp_path / "run")
    assert kept["global_step"] == 7
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError("std::bad_alloc"),
    ],
)
def test_out_of_memory_says_which_batch_fits(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    limit = 3

    def forward(self: CVAE, batch: Batch, *arguments: Any) -> Output:
        if len(batch.ids) > limit:
            raise error
        return original(self, batch, *arguments)

    original = CVAE.forward
    monkeypatch.setattr(CVAE, "forward", forward)
    settings = config.load("smoke", ["train.epochs=1", "train.batch=8"])
    said = r"^out of memory with train.batch=8; 2 fits: train.batch=2 train.accumulate=4$"
    with pytest.raises(AtlasError, match=said):
        train(settings, small, tmp_path / "run")
    limit = 0
    with pytest.raises(AtlasError, match=r"train.batch=8, and a single study does not fit"):
        train(settings, small, tmp_path / "again")


LIMITED = """
import resource, sys
from pathlib import Path
from atlas import config
from atlas.data.dataset import read
from atlas.training import run as runs
from atlas.errors import AtlasError

def limited(*arguments):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 700_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return fit(*arguments)

fit, runs._fit = runs._fit, limited
try:
    settings = ["model.halve=false", "model.width=64", "train.batch=28"]
    settings += ["train.epochs=1", "train.threads=1"]
    runs.train(config.load("smoke", settings), read(sys.argv[1]), Path(sys.argv[2]))
except AtlasError as error:
    print("said:", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_real_shortage_of_memory(small: Dataset, tmp_path: Path) -> None:
    """A process that may not have 700 MB more; the batch that it names does train there."""
    command = [sys.executable, "-c", LIMITED, str(small.path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    [said] = [line for line in done.stdout.splitlines() if line.startswith("said: ")]
    assert "out of memory with train.batch=28; " in said, done.stderr
    fitting = int(said.split(";")[1].split()[0])
    assert 1 <= fitting <= 14


def test_a_field_that_the_run_requires(small: Dataset, tmp_path: Path) -> None:
    def settings(names: str) -> config.Config:
        return config.load("smoke", ["train.epochs=1", f"train.requires={names}"])

    with pytest.raises(AtlasError, match=r"no training study has topics, which train.requires"):
        train(settings("[n_peaks, topics]"), small, tmp_path / "run")
    with pytest.raises(AtlasError, match=r"train.requires: unknown metadata field 'colour'; there"):
        train(settings("[colour]"), small, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(settings("[n_peaks, fwhm]"), small, tmp_path / "run").exists()


def test_resume_lists_every_change_and_force_goes_on_with_it(small: Dataset, run: Path) -> None:
    options = {"train.epochs": 2, "train.lr": 1e-3, "train.beta2": 0.9, "train.weight_decay": 0.5,
               "kl.target": 5.0, "data.jitter": 1.0, "seed": 3}  # fmt: skip
    changed = config.load("smoke", [*OPTIONS, *(f"{k}={v}" for k, v in options.items())])
    with pytest.raises(AtlasError) as error:
        train(changed, small, run, resume=True)
    old, new = EPOCH.model_dump(), changed.model_dump()
    for key in options:
        section, _, name = key.rpartition(".")
        was, now = (tree[section][name] if section else tree[name] for tree in (old, new))
        assert f"{key} was {was}, is {now}" in str(error.value)
    train(changed, small, run, resume=True, force=True)
    state = checkpoint(run)
    assert state["global_step"] == 14
    groups = state["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups] == [1e-3, 1e-3, 4e-3]  # the imputer's last
    assert [group["weight_decay"] for group in groups] == [0.5, 0, 0]
    assert all(group["betas"] == (0.9, 0.9) for group in groups)
    assert state["lr_schedulers"][0]["base_lrs"] == [1e-3, 1e-3, 4e-3]


def test_resume_names_the_rows_of_another_table_of_fields(small: Dataset, run: Path) -> None:
    rows = small.fields.snapshot()
    for row in rows:
        if row["name"] == "n_peaks":
            row["centre"] = 99.0
    other = dataclasses.replace(small, fields=FieldTable.from_snapshot(rows))
    with pytest.raises(AtlasError, match=r"last.ckpt: .*fields.n_peaks.centre was 25, is 99.0$"):
        train(EPOCH, other, run, resume=True)


def test_weights_beside_another_card(run: Path, tmp_path: Path) -> None:
    from atlas import model_file

    model, card = model_file.read(run)
    for change, said in (
        (lambda tree: tree["model"].update(growth=16), "model.growth was 8, is 16"),
        (lambda tree: tree["fields"][-1].update(spread=5), "fields.fwhm.spread was 4, is 5"),
    ):
        copy = Path(shutil.copytree(run, tmp_path / said.split()[0]))
        tree = json.loads((copy / model_file.CARD).read_text())
        change(tree)
        (copy / model_file.CARD).write_text(json.dumps(tree))
        with pytest.raises(AtlasError, match=rf"describes another model than .*: {said}$"):
            model_file.read(copy)

    model_file.write(tmp_path, model, card, half=True)
    size = (tmp_path / model_file.WEIGHTS).stat().st_size
    assert size < 0.65 * (run / model_file.WEIGHTS).stat().st_size
    again, _ = model_file.read(tmp_path)
    for (name, ours), theirs in zip(again.state_dict().items(), model.state_dict().values()):
        assert ours.dtype == theirs.dtype, name
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert torch.equal(again.decoder.base_V, model.decoder.base_V)
