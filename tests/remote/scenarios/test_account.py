"""Seeded: the provider fails, the client is killed at any call; no pod and no cent is lost."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from atlas.errors import AtlasError

from .account import Killed, World

SOAK = os.environ.get("ATLAS_SOAK") == "1"


@pytest.mark.parametrize("seed", range(400 if SOAK else 60))
def test_no_pod_and_no_cent_is_lost(seed: int, tmp_path: Path) -> None:
    world, rng = World(seed, tmp_path), random.Random(seed)
    at = rng.choice([0, rng.randint(1, 15)])  # 0: nobody kills it
    try:
        with world.client(at, after=rng.random() < 0.5) as provider:
            world.job(provider)
    except (AtlasError, Killed) as error:
        assert str(error) or isinstance(error, Killed)
    world.clock.advance(rng.uniform(0, 3600))
    world.clean_up()

    faults = [fault for _, fault in world.double.faults.happened]
    assert not world.double.running(), faults
    entries = world.ledger.entries()
    assert not [entry for entry in entries if entry.open], faults
    made = {pod.name: pod for pod in world.double.everything.values()}
    assert made.keys() <= {entry.name for entry in entries}  # planned before it was made
    for entry in entries:
        true = world.double.bill(made[entry.name]) if entry.name in made else 0.0
        assert entry.cost is not None
        if entry.estimated:
            assert entry.cost >= true - 0.001, (entry, faults)
        else:
            assert entry.cost == pytest.approx(true, abs=0.001), (entry, faults)
    world.double.close()
