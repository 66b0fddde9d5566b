"""Seeded: real clients, a real sshd for a pod, torchrun, a training; what must hold at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from atlas.data.dataset import Dataset
from tests.remote.double import API_KEY
from tests.training.conftest import small

from .real import EPOCHS, LOST, MOMENTS, RealWorld

__all__ = ["small"]
SOAK = os.environ.get("ATLAS_SOAK") == "1"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40 if SOAK else 2))
def test_a_training(seed: int, small: Dataset, tmp_path: Path) -> None:
    world = RealWorld(seed, tmp_path, small.path)
    with world.double.serve():
        try:
            code, last = world.lead()
            left = [pod.id for pod in world.double.running()]
            world.client("remote", "stop", "--all", "--yes")  # whoever finds one closes the ledger
            world.client("remote", "cost")
        finally:
            world.double.close()
    assert not left, world
    world.check_kept()
    check_end(world, code, last)
    check_bill(world)
    check_words(world)


def check_end(world: RealWorld, code: int, last: str) -> None:
    state = world.state()
    if state is None:  # it ended before there was a job
        assert code != 0 and not world.double.everything, world
        return
    assert state.ended is not None, world
    whole = (world.out / "model.safetensors").exists() and (world.out / "model.json").exists()
    about = json.loads((world.out / "remote.json").read_text())
    assert about["exit"] == state.ended and (state.ended == 0) == (code == 0), world
    early = world.fired and world.moment in MOMENTS[:5]
    if world.trouble not in LOST:
        assert code == 0, world
    elif early or world.trouble == "fail":
        assert code == 1, world
    if code == 0:
        rows = (world.out / "metrics.csv").read_text().splitlines()[1:]
        assert whole and [int(row.split(",")[0]) for row in rows] == [*range(EPOCHS)], world
        assert (world.out / "test_results.json").exists() and world.best == EPOCHS - 1, world
        assert "trained and evaluated" in last, world
    else:
        assert LOST[world.trouble] in last, world
    if world.best >= 0 and code:
        assert "--resume" in last, world


def check_bill(world: RealWorld) -> None:
    made = {pod.name: pod for pod in world.double.everything.values()}
    entries = {entry.name: entry for entry in world.ledger.entries()}
    assert made.keys() <= entries.keys(), world
    for name, pod in made.items():
        entry, true = entries[name], world.double.bill(pod)
        assert not entry.open and entry.cost is not None, (entry, world)
        exact = entry.cost == pytest.approx(true, abs=0.002)
        assert exact or (entry.estimated and entry.cost >= true), (entry, true, world)


def check_words(world: RealWorld) -> None:
    """No traceback of the client's own, no key, no key file that stays."""
    said = "\n".join(line for client in world.clients for line in client.lines)
    said += (world.folder / "stdout.txt").read_text()
    assert API_KEY not in said and "pod_KEY" not in said, world
    ours = [line for line in said.splitlines() if "atlas/remote/" in line or "cli/remote" in line]
    assert not ours, world
    assert not (world.out / ".remote" / "key").exists(), world
