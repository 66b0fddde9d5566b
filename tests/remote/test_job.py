"""Whole jobs with real processes through `local`: however they end, what was fetched is whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from atlas.errors import AtlasError
from atlas.remote import ending, fetch, job, state
from atlas.remote.errors import CommandFailed
from atlas.remote.pod import watchdog
from atlas.remote.reach import Way
from atlas.remote.shell import LocalShell
from tests.remote.jobs import Bench, local
from tests.support import heed_ctrl_c

__all__ = ["local"]


def last_epoch(out: Path) -> int:
    return int(json.loads((out / "checkpoints" / "last.ckpt").read_text())["epoch"])


def nothing_left(bench: Bench) -> bool:
    return not bench.provider.pods() and not [e for e in bench.ledger.entries() if e.open]


def test_the_run_comes_home_whole(local: Bench) -> None:
    assert local.launch() == 0
    assert last_epoch(local.out) == 3
    assert (local.out / "model.safetensors").read_bytes() == bytes(range(256)) * 100
    assert local.said("log") == ["begins after epoch 0", "epoch 1", "epoch 2", "epoch 3"]
    assert json.loads((local.out / "environment.json").read_text())["dataset"]["path"] == str(
        local.data
    )
    about = json.loads((local.out / "remote.json").read_text())
    assert (about["provider"], about["exit"], about["cost"]) == ("local", 0, 0)
    assert local.lines[-1][0] == "done"
    assert nothing_left(local)
    hidden = {p.name for p in (local.out / ".remote").iterdir()}
    assert hidden == {"job.json", "job.log", "lock"}


def test_checkpoints_come_while_it_trains(local: Bench) -> None:
    seen: list[int] = []

    def come() -> None:
        seen.append(last_epoch(local.out))
        (pod,) = local.provider.pods()
        local.provider.shell(pod, Path(), Path()).run(["touch", "seen"])

    local.at = {"checkpoint and metrics": come}
    assert local.launch(local.commands(end="when seen")) == 0
    assert seen == [1]


@pytest.mark.parametrize(
    ("end", "line"), [("fail", "the loss is not finite"), ("full", "No space left")]
)
def test_a_failed_training_brings_home_what_it_wrote(local: Bench, end: str, line: str) -> None:
    assert local.launch(local.commands(end=end)) == 1
    step, text = local.lines[-1]
    assert step == "failed" and line in text and "--resume" in text
    assert last_epoch(local.out) == 3
    assert not (local.out / "model.json").exists()
    assert nothing_left(local)


def test_a_lost_pod_is_replaced_and_goes_on(local: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is taken away in the middle; the next one begins at the fetched checkpoint."""
    packed: list[Path] = []
    monkeypatch.setattr("atlas.remote.bundle.make", packed.append)

    def lose() -> None:
        (pod,) = local.provider.pods()
        local.provider.terminate(pod.id)

    local.at = {"checkpoint and metrics": lose}
    assert local.launch(local.commands(epochs=6, pace=0.4)) == 0
    begun = [int(t.split()[-1]) for t in local.said("log") if t.startswith("begins")]
    assert begun[0] == 0 and begun[1] >= 1
    assert last_epoch(local.out) == 6
    assert len(json.loads((local.out / "remote.json").read_text())["pods"]) == 2
    assert len(packed) == 1  # whatever became of the checkout, with the same code
    assert nothing_left(local)


def test_wandb_goes_on_under_one_id_and_its_folder_comes_home(local: Bench) -> None:
    run = f"run/{local.out.name}"
    write = f"d={run}/wandb/offline-run-1-$WANDB_RUN_ID; mkdir -p $d {run}/checkpoints"
    write += f"; echo x > $d/run.wandb; echo x > {run}/checkpoints/last.ckpt"
    commands = [["sh", "-c", f"{write}; echo $WANDB_RUN_ID $WANDB_RESUME"]]
    assert local.launch(commands) == 0 and local.launch(commands, resume=True) == 0
    first, second = local.said("log")
    assert first == second and first.endswith(" allow")
    name = first.split()[0]
    kept = local.out / "wandb" / f"offline-run-1-{name}"
    assert (kept / "run.wandb").read_text() == "x\n"
    assert local.said("wandb") == [f"send it to W&B with: wandb sync {kept}"] * 2
    (local.out / "remote.json").unlink()
    assert state._wandb_id(local.plan(resume=True).request) == name  # of a run that began here


def test_ctrl_c_stops_the_pod_unless_told_otherwise(local: Bench) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    local.at = {"epoch 2": interrupt}
    assert local.launch(local.commands(epochs=50, pace=0.3)) == 1
    assert last_epoch(local.out) >= 2  # fetched before the pod went
    assert local.lines[-1] == ("failed", "stopped; what it wrote is here, go on with --resume")
    assert nothing_left(local)


def test_stopped_before_it_said_a_word(local: Bench) -> None:
    """By another client: the one that follows finds an exit code and no log."""
    local.at = {"started": lambda: (local.out / ".remote" / "stop").touch()}
    assert local.launch([["sleep", "50"]]) == 1
    assert local.lines[-1] == ("failed", "stopped")
    assert nothing_left(local)


def test_a_second_ctrl_c_stops_at_once(local: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ending, "what_there_is", interrupt)
    local.at = {"epoch 1": interrupt}
    assert local.launch(local.commands(epochs=50, pace=0.3)) == 1
    assert nothing_left(local)


def test_ctrl_c_may_leave_it_running(local: Bench) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    local.at = {"epoch 1": interrupt}
    code = local.launch(local.commands(epochs=4, pace=0.3), ask=lambda question: "leave")
    assert code == 0 and len(local.provider.pods()) == 1
    assert local.attach() == 0
    assert local.epochs_said() == [1, 2, 3, 4]  # no line lost or doubled by the change of clients
    assert nothing_left(local)


def test_detached_it_waits_for_whoever_fetches_it(local: Bench) -> None:
    assert local.launch(local.commands(epochs=2), detach=True) == 0
    assert local.lines[-1][0] == "left"
    args: Any = (local.out, local.provider, local.ledger, local.clock)
    for _ in range(100):
        text = job.log(*args)
        if b"epoch 2" in text:
            break
        time.sleep(0.1)
    assert text == b"begins after epoch 0\nepoch 1\nepoch 2\n"
    assert job.log(*args, 21) == b"epoch 1\nepoch 2\n"
    time.sleep(0.3)
    assert "model.json" in job.pull(*args, local.say)
    assert nothing_left(local)
    assert local.attach() == 0  # it has ended


CLIENT = """
import sys
from pathlib import Path
from tests.remote.jobs import Bench, Impatient, quicken
from atlas.remote.local import Local
import pytest
patch = pytest.MonkeyPatch()
quicken(patch)
bench = Bench(Local(Impatient()), Path(sys.argv[1]))
say = bench.say
bench.say = lambda step, text: (say(step, text), print(step, text, flush=True))[0]
sys.exit(bench.launch(bench.commands(epochs=30, pace=0.3)))
"""


def spawn_client(bench: Bench) -> subprocess.Popen[str]:
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(bench.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=heed_ctrl_c,
    )
    assert client.stdout is not None
    said = ""
    for line in client.stdout:
        said += line
        if line.startswith("log epoch 2"):
            return client
    raise AssertionError(said)


def test_a_killed_client_loses_nothing(local: Bench) -> None:
    client = spawn_client(local)
    client.send_signal(signal.SIGKILL)
    client.communicate()
    assert len(local.provider.pods()) == 1
    with pytest.raises(AtlasError, match="has not ended; atlas remote logs"):
        local.launch()
    job.stop(local.out, local.provider, local.ledger, local.clock, local.say)
    assert last_epoch(local.out) >= 2
    log = (local.out / ".remote" / "job.log").read_text().splitlines()
    assert log[:4] == ["begins after epoch 0", "epoch 1", "epoch 2", *log[3:4]]
    assert len(log) == len(set(log))
    assert nothing_left(local)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_where_nobody_can_be_asked_it_stops(local: Bench, number: int) -> None:
    client = spawn_client(local)
    client.send_signal(number)
    out, _ = client.communicate(timeout=60)
    assert client.returncode == 1, out
    assert "Traceback" not in out and out.splitlines()[-1].startswith("failed stopped")
    assert nothing_left(local)


def test_two_clients_one_leads_and_the_other_may_stop(local: Bench) -> None:
    client = spawn_client(local)
    with pytest.raises(AtlasError, match="another atlas follows this job"):
        local.attach()
    job.stop(local.out, local.provider, local.ledger, local.clock, local.say)
    client.communicate(timeout=60)
    assert client.returncode == 1
    assert last_epoch(local.out) >= 2
    assert nothing_left(local)


def test_a_silent_client_ends_the_job(local: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.remote.steps.SILENCE_S", 2.0)
    real = job.Follower.to_the_end

    def sleeps(follower: Any) -> Any:
        time.sleep(3 + watchdog.EVERY_S)
        return real(follower)

    monkeypatch.setattr(job.Follower, "to_the_end", sleeps)
    assert local.launch(local.commands(epochs=100, pace=0.3)) == 1
    assert "had not heard of its client" in local.lines[-1][1]
    assert last_epoch(local.out) >= 1


def test_the_ceiling_ends_the_job_and_keeps_its_checkpoint(local: Bench) -> None:
    assert local.launch(local.commands(epochs=100, pace=0.3), max_hours=34 / 3600) == 1
    assert "ceiling" in local.lines[-1][1]
    assert 1 <= last_epoch(local.out) < 100
    assert nothing_left(local)


def test_a_torn_checkpoint_never_takes_the_place_of_a_whole_one(
    local: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalShell.pull
    torn: list[str] = []

    def tears(shell: LocalShell, source: str, target: Path, names: Any) -> None:
        real(shell, source, target, names)
        Path(shell.root, "seen").touch()
        if (local.out / "checkpoints" / "last.ckpt").exists() and len(torn) < 2:
            for name in names:
                if name.endswith("last.ckpt"):
                    path = target / name
                    path.write_bytes(path.read_bytes()[:1000])
                    torn.append(name)

    monkeypatch.setattr(LocalShell, "pull", tears)
    whole: list[int] = []

    def look(step: str, text: str) -> None:
        if (local.out / "checkpoints" / "last.ckpt").exists():
            whole.append(last_epoch(local.out))

    said = local.say
    local.say = lambda step, text: (said(step, text), look(step, text))[0]  # type: ignore[method-assign]
    assert local.launch(local.commands(epochs=6, pace=0.3, end="when seen")) == 0
    assert len(torn) == 2 and whole == sorted(whole)
    assert last_epoch(local.out) == 6


def test_names_that_lead_out_of_the_run_folder_are_refused() -> None:
    for name in ("../x", "/etc/passwd", ".remote/job.json", "a/../../b"):
        with pytest.raises(AtlasError, match="outside the run folder"):
            fetch._checked({name: {}})


def test_a_full_disk_here_keeps_the_pod_until_there_is_room(
    local: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = fetch._need_room, [2]

    def room(j: Any, size: int) -> None:
        if j.state.step == "fetch" and full[0]:
            full[0] -= 1
            raise AtlasError("the disk here is full")
        real(j, size)

    monkeypatch.setattr(fetch, "_need_room", room)
    assert local.launch() == 0
    assert any("disk here is full" in text for text in local.said("fetch"))
    assert (local.out / "model.json").exists()


def test_a_full_disk_here_does_not_end_a_training(
    local: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a checkpoint nor the job's own state can be written for a while."""
    checkpoint, save, full = fetch.checkpoint, state.write_text, [2, 2]

    def fetched(way: Any) -> list[str]:
        if full[0]:
            full[0] -= 1
            raise AtlasError("the disk here is full")
        (pod,) = local.provider.pods()
        local.provider.shell(pod, Path(), Path()).run(["touch", "seen"])
        return checkpoint(way)

    def saved(path: Path, text: str) -> None:
        if '"step": "fetch"' in text and full[1]:
            full[1] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, text)

    monkeypatch.setattr(fetch, "checkpoint", fetched)
    monkeypatch.setattr(state, "write_text", saved)
    assert local.launch(local.commands(end="when seen")) == 0
    assert full == [0, 0] and (local.out / "model.json").exists()
    assert any("the job goes on: the disk here is full" in t for t in local.said("fetch"))
    assert nothing_left(local)


def test_what_ends_the_client_is_fetched_before_the_pod_ends(
    local: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that makes no sense, once, in the middle of a training."""
    call, odd = Way.call, [b"<html>"]

    def answered(way: Way, verb: str, *given: Any, **more: Any) -> bytes:
        said = call(way, verb, *given, **more)
        return odd.pop() if verb == "status" and odd and local.epochs_said()[-1:] >= [2] else said

    monkeypatch.setattr(Way, "call", answered)
    with pytest.raises(AtlasError, match="status: the pod answered '<html>', which is no JSON"):
        local.launch(local.commands(epochs=30))
    assert last_epoch(local.out) >= 2 and nothing_left(local)
    assert json.loads((local.out / "remote.json").read_text())["exit"] == 1


def test_no_signal_keeps_a_pod_from_being_ended() -> None:
    def tell(*_: object) -> None:
        raise job.Told

    before = signal.signal(signal.SIGTERM, tell)
    try:
        with ending.uninterrupted():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_cannot_be_installed_is_one_line_and_no_pod_stays(
    local: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(way: Any) -> None:
        raise CommandFailed(["python3"], 1, "ERROR: no matching distribution for torch")

    monkeypatch.setattr("atlas.remote.steps.install", install)
    with pytest.raises(CommandFailed, match="no matching distribution"):
        local.launch()
    assert nothing_left(local)
