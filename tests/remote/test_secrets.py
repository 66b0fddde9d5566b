"""No key is in a file, a log line, an argument or an environment of the job, on either side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas.errors import AtlasError
from tests.remote.double import API_KEY
from tests.remote.scenarios.account import Killed
from tests.remote.scenarios.stub import StubShell
from tests.remote.scenarios.world import JobWorld

WANDB = "wandb0123456789abcdef0123456789abcdef0123"


@pytest.mark.parametrize("seed", range(6))
def test_no_key_is_left_anywhere(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
    world = JobWorld(seed, tmp_path, monkeypatch)
    seen: list[str] = []
    sent: list[bytes] = []
    answer = StubShell._answer

    def watched(shell: StubShell, argv: Any, stdin: Any) -> str:
        sent.append(stdin or b"")
        said = answer(shell, argv, stdin)
        seen.extend([*argv, said, *files_below(Path(shell.root))])
        return said

    monkeypatch.setattr(StubShell, "_answer", watched)
    monkeypatch.setattr("atlas.remote.steps.resolved", online)
    try:
        world.launch(2.0, detach=False)
    except (AtlasError, Killed) as error:
        seen.append(repr(error))
    seen += [text for line in world.lines for text in line] + files_below(tmp_path)
    seen += [str(pod.body) for pod in world.double.everything.values()]
    for key in (API_KEY, WANDB):
        assert not [text for text in seen if key in text]
    assert not [data for data in sent if API_KEY.encode() in data]
    if any(step == "train" for step, _ in world.lines):
        assert any(WANDB.encode() in data for data in sent)  # over standard input, so it is used
    world.trouble.dead = False
    world.trouble.kill_at = world.trouble.interrupt_at = 0
    world.clean_up()
    world.double.close()


def files_below(folder: Path) -> list[str]:
    """Names and contents of every file."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [f"{path} {path.read_bytes().decode(errors='replace')}" for path in found]


def online(job: Any) -> Any:
    from atlas import config

    return config.load("smoke", ["logging.wandb=online"])
