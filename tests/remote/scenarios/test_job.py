"""Seeded: a whole job with everything that may befall it; what must hold at the end of each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from atlas.errors import AtlasError

from .account import Killed
from .stub import Trouble
from .world import JobWorld

SOAK = os.environ.get("ATLAS_SOAK") == "1"
CEILING = 2.0


@pytest.mark.parametrize("seed", range(460 if SOAK else 20))
def test_a_job(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = JobWorld(seed, tmp_path, monkeypatch)
    code, said = lead(world)
    told = [str(fault) for _, fault in world.double.faults.happened]
    told += [str(world.script), str(world.lines[-8:]), said]

    assert not world.double.running(), told  # before any cleaning up
    world.trouble = Trouble(world.rng, Killed)
    world.clean_up()
    assert not world.double.running() and not [e for e in world.ledger.entries() if e.open], told
    world.check_kept()
    check_end(world, code, said, told)
    check_bill(world, told)
    world.double.close()


def lead(world: JobWorld) -> tuple[int, str]:
    """Clients until one ends the job; the last one's exit code, and its line if it failed."""
    code, said = 1, ""
    for attempt in range(8):
        try:
            if attempt == 0:
                code = world.launch(CEILING, detach=world.rng.random() < 0.15)
            else:
                code = world.later()
            said = ""
        except AtlasError as error:
            code, said = 1, str(error)
        except Killed:
            code, said = 1, "killed"
        except KeyboardInterrupt:  # before there is a job, or in a pull or stop beside it
            assert attempt or world.state() is None
            code, said = 1, "killed"
        state = world.state()
        if said != "killed" and (state is None or state.ended is not None):
            break
    return code, said


def check_end(world: JobWorld, code: int, said: str, told: list[str]) -> None:
    state, made = world.state(), world.out / "model.json"
    if said:
        assert "\n" not in said, told
    if state is None:
        assert code == 1 and said and not world.double.everything, told
        return
    assert state.ended is not None, told
    assert made.exists() == (code == 0) or state.why, told
    step, text = world.lines[-1]
    assert ((step == "done" and "trained" in text) or "has ended" in text) == (code == 0) or (
        step in ("failed", "done") and text
    ), told
    assert not (world.out / ".remote" / "key").exists(), told
    assert json.loads((world.out / "remote.json").read_text())["exit"] == state.ended, told
    if code == 0:
        assert world.best == world.script.epochs, told


def check_bill(world: JobWorld, told: list[str]) -> None:
    made = {pod.name: pod for pod in world.double.everything.values()}
    entries = {entry.name: entry for entry in world.ledger.entries()}
    assert made.keys() <= entries.keys(), told
    for name, entry in entries.items():
        true = world.double.bill(made[name]) if name in made else 0.0
        assert entry.cost is not None, told
        exact = entry.cost == pytest.approx(true, abs=0.002)
        assert exact or (entry.estimated and entry.cost >= true), (entry, true, told)
    # A pod that never boots runs nothing that could end it, until some client comes again.
    deaf = [p for p in world.double.everything.values() if p.id not in world.double.machines]
    rest = world.double.total() - sum(map(world.double.bill, deaf))
    assert rest <= CEILING + 0.01, told
