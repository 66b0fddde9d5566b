"""atlas remote on jobs that run: as commands, on a folder of this machine and over a real sshd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas.remote import runpod
from atlas.remote.clock import SystemClock
from atlas.remote.ledger import Ledger, new_name
from atlas.remote.local import Local
from atlas.remote.provider import PodSpec
from atlas.remote.ssh import Ssh
from tests.remote.double import API_KEY, Double, SshMachine
from tests.remote.double.clock import RealClock
from tests.remote.jobs import Bench, Impatient, quicken
from tests.remote.sshd import Lab, lab
from tests.remote.test_ssh import seed_kernels
from tests.support import one_line_error, require_tool, run_atlas

__all__ = ["lab"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without keys, and short pauses."""
    quicken(monkeypatch)
    for name in ("RUNPOD_API_KEY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    sleep = SystemClock.sleep
    monkeypatch.setattr(SystemClock, "sleep", lambda clock, s: sleep(clock, min(s, 0.2)))
    return tmp_path


@pytest.fixture
def agent(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The user's ssh-agent: commands take no key file."""
    path = str(here / "agent")
    process = subprocess.Popen([require_tool("ssh-agent"), "-D", "-a", path],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    while not os.path.exists(path):
        time.sleep(0.02)
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    yield path
    process.kill()
    process.wait()


def trust(lab: Lab) -> None:
    subprocess.run(["ssh-add", "-q", str(lab.key)], check=True, capture_output=True)


@pytest.fixture(params=["local", "ssh"])
def bench(request: pytest.FixtureRequest, here: Path) -> Bench:
    if request.param == "local":
        return started(Bench(Local(Impatient()), here))
    request.getfixturevalue("agent")
    machine: Lab = request.getfixturevalue("lab")
    trust(machine)
    return started(Bench(Ssh(Impatient(), machine.host), here), host=machine.host)


def started(bench: Bench, **request: Any) -> Bench:
    """A job that its client has left: 3 epochs, then it waits for the file `seen`."""
    bench.ledger = Ledger()
    commands = bench.commands(epochs=3, end="when seen")
    assert bench.launch(commands, detach=True, **request) == 0
    return bench


def go_on(bench: Bench) -> None:
    (pod,) = bench.provider.pods()
    with bench.provider.shell(pod, Path(), Path()) as there:
        there.run(["touch", "seen"])


def answer(*arguments: object) -> Any:
    """What a command says in JSON."""
    done = run_atlas("remote", *arguments, "--json")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def until(bench: Bench, words: str) -> str:
    for _ in range(300):
        done = run_atlas("remote", "logs", bench.out)
        assert done.returncode == 0, done.stderr
        if words in done.stdout:
            return done.stdout
        time.sleep(0.1)
    raise AssertionError(done.stdout)


def test_a_job_by_commands_alone(bench: Bench, lab: Lab) -> None:
    (row,) = answer("list")
    assert (row["run"], row["status"]) == (str(bench.out), "running")
    first = "begins after epoch 0\nepoch 1\n"
    assert until(bench, "epoch 1") == first
    for name in (row["job"], row["pod"], row["name"], bench.out.name):
        assert answer("logs", name, "--offset", 21) == {
            "offset": 21, "next": len(first), "text": "epoch 1\n",
        }  # fmt: skip
    way = run_atlas("remote", "ssh", bench.out, "echo", "here", "--json")
    if bench.provider.name == "local":
        assert "no address for SSH" in one_line_error(way)
    else:
        command = json.loads(way.stdout)["argv"]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"here\n"
    part = answer("pull", bench.out)
    assert part["run"] == str(bench.out) and "checkpoints/last.ckpt" in part["pulled"]
    assert not (bench.out / "model.json").exists()
    go_on(bench)
    followed = run_atlas("remote", "logs", bench.out, "--follow", "--json")
    assert followed.returncode == 0 and "epoch 3" in followed.stderr
    assert json.loads(followed.stdout) == {"run": str(bench.out), "exit": 0}
    assert followed.stderr.splitlines()[-1].endswith("trained and evaluated")
    assert (bench.out / "model.json").exists()
    assert answer("list") == [] and answer("pull", bench.out)["pulled"] == []
    assert answer("cost")["total"] == 0 and str(bench.out) in answer("cost")["runs"]
    assert run_atlas("remote", "logs", bench.out).stdout.startswith(first)
    gone = run_atlas("remote", "stop", bench.out)
    assert gone.returncode == 0 and "has no pod running" in gone.stderr
    assert "has no pod running" in one_line_error(run_atlas("remote", "ssh", bench.out))


def test_stop_brings_home_what_there_is(bench: Bench) -> None:
    until(bench, "epoch 1")
    (ended,) = answer("stop", bench.out)
    assert ended["cost"] == 0 and not bench.provider.pods()
    assert json.loads((bench.out / "checkpoints" / "last.ckpt").read_text())["epoch"] == 1
    assert json.loads((bench.out / "remote.json").read_text())["why"] == "stopped"
    late = run_atlas("remote", "logs", bench.out, "--follow")
    assert late.returncode == 1 and late.stderr.strip().endswith("its job has ended (stopped)")


def test_pull_of_a_job_that_ended_ends_its_pod(bench: Bench) -> None:
    go_on(bench)
    until(bench, "epoch 3")
    time.sleep(0.5)
    assert "model.json" in answer("pull", bench.out)["pulled"]
    assert not bench.provider.pods() and answer("list") == []


def test_two_machines_do_not_close_each_other(
    here: Path, agent: str, lab: Lab, tmp_path: Path
) -> None:
    (here / "other").mkdir()
    other = Lab(here / "other")
    try:
        benches = []
        for machine, folder in ((lab, here / "one"), (other, here / "two")):
            trust(machine)
            folder.mkdir()
            benches.append(started(Bench(Ssh(Impatient(), machine.host), folder),
                                   host=machine.host))  # fmt: skip
        assert {row["run"] for row in answer("list")} == {str(bench.out) for bench in benches}
        assert len(answer("stop", benches[0].out)) == 1
        (row,) = answer("list")
        assert row["run"] == str(benches[1].out)
        offer = benches[1].provider.offers()[0]
        stranger = benches[1].provider.create(PodSpec(new_name("x"), offer, 1, "", 1, ""))
        assert "running, not made here" in {row["status"] for row in answer("list")}
        assert answer("stop", stranger.id)[0]["pod"] == stranger.id
        assert len(answer("stop", "--all", "--yes")) == 1
        assert not [pod for bench in benches for pod in bench.provider.pods()]
    finally:
        other.machine.stop()


def test_what_is_wrong_with_a_command_is_one_line(here: Path) -> None:
    for wrong in (
        ("logs", "x", "--offset", "-1"), ("logs",), ("pull",), ("ssh",), ("stop",), ("check", "x"),
        ("cost", "--all"), ("export", "smoke", "--data", "d", "--out", "o"),
        ("export", "smoke", "--format", "pbs", "--data", "d", "--out", "o"),
        ("export", "smoke", "--format", "slurm", "--data", "d", "--out", "o", "--gpus", 0),
    ):  # fmt: skip
        assert one_line_error(run_atlas("remote", *wrong), code=2)
    for command in ("logs", "pull", "ssh", "stop"):
        said = one_line_error(run_atlas("remote", command, here / "none"))
        assert said.endswith("no such job; running are none")


@pytest.fixture
def cloud(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    class Pod(SshMachine):
        def start(self, environment: Any) -> Any:
            seed_kernels(self.home / ".cache")
            return super().start(environment)

    double = Double(RealClock(), machine=Pod, provisioning=0.1, booting=0.1)
    with double.serve() as url:
        monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
        monkeypatch.setenv("ATLAS_RUNPOD_URL", url)
        monkeypatch.setattr(runpod, "ROOT", "atlas")
        yield double
    double.close()


def test_check_refuses_before_it_spends(cloud: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    said = one_line_error(run_atlas("remote", "check", "--gpu", "RTX 9999", "--yes"))
    assert "RTX 9999: unknown; there are RTX A4000 ($0.25/h)" in said
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: "n")
    assert run_atlas("remote", "check").returncode == 1
    cloud.balance = 0.01
    done = run_atlas("remote", "check", "--yes")
    assert "balance" in one_line_error(done) and "no pod was made" in done.stderr
    assert answer("list") == [] and answer("cost")["total"] == 0
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_WRONG")
    assert "RUNPOD_API_KEY" in one_line_error(run_atlas("remote", "check", "--yes"))
    assert not cloud.everything


@pytest.mark.slow
def test_check_goes_the_whole_way(here: Path, cloud: Double, request: Any) -> None:
    """A pod with a real sshd, the code by git, the kernels' table as that Python prints it."""
    request.getfixturevalue("monkeypatch").undo()
    client = [sys.executable, "-m", "tests.remote.scenarios.client"]
    done = subprocess.run(
        [*client, "remote", "check", "--yes", "--json"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        env={**os.environ, "ATLAS_HOME": str(here / "home"), "RUNPOD_API_KEY": API_KEY,
             "ATLAS_RUNPOD_URL": cloud.url, "ATLAS_REMOTE_PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "kernels\n" in found["doctor"] and "splat    cpu         runs here" in found["doctor"]
    (pod,) = cloud.everything.values()
    assert pod.ended is not None and pod.price == 0.25
    assert found["cost"] == pytest.approx(cloud.bill(pod), abs=0.002)
    steps = [line.split("  ", 1)[-1] for line in done.stderr.splitlines()]
    for words in ("key accepted", "the pod answers", "code (", "kernels built before", "started"):
        assert any(words in step for step in steps), done.stderr
