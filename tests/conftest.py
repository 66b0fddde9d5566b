"""Fixtures: the prepared bundled dataset, a tiny trained run, and unwritten memory made visible."""

from __future__ import annotations

import functools
import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as the command line

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atlas import config
from atlas.data import dataset
from atlas.data.dataset import Dataset
from atlas.data.joins import Join
from atlas.data.prepare import Settings, prepare, run_stage
from tests.support import made_once, require_neurosynth


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker ends long after the other."""
    marks = ("slow", "browser")
    long = {item.path for item in items if any(map(item.get_closest_marker, marks))}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: nilearn calls it for every picture."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _poison_empty() -> Iterator[None]:
    """Fill torch.empty with NaN, so that an element that nobody wrote fails a comparison."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Prepare the bundled studyset once."""
    make = functools.partial(prepare, Settings())
    return dataset.read(made_once(tmp_path_factory, "bundled", make))


@pytest.fixture(scope="session")
def neurosynth_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of Neurosynth v7 and a joined column, through all stages but the split, once."""
    source = require_neurosynth()

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "n.csv").write_text("pmid,n\n9065511,8\n1,9\n")
        join = Join.parse(f"{folder / 'n.csv'}:pmid:n")
        for stage in ("fetch", "clean", "validate"):
            settings = Settings(source="neurosynth", data_dir=source, joins=(join,))
            run_stage(stage, settings, folder / "all")

    return made_once(tmp_path_factory, "neurosynth", make) / "all"


@pytest.fixture(scope="session")
def tiny_run(bundled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the smoke configuration once; its run folder."""
    from atlas.training.run import train

    make = functools.partial(train, config.load("smoke"), bundled)
    return made_once(tmp_path_factory, "tiny", make)


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the whole quickstart once, as the README says; its run folder."""
    from tests.support import spawn_atlas

    run = tmp_path_factory.mktemp("runs") / "quickstart"
    done = spawn_atlas("quickstart", "--out", run, timeout=900)
    assert done.returncode == 0, done.stderr
    (run / "stdout.txt").write_text(done.stdout)
    (run / "stderr.txt").write_text(done.stderr)
    return run
