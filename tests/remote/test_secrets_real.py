"""The same of a real job: every process of both sides, every argument list, every file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from atlas.remote.pod import watchdog
from tests.remote.double import API_KEY, Double, SshMachine
from tests.remote.double.clock import RealClock
from tests.remote.test_secrets import WANDB, files_below
from tests.support import ROOT, require_tool

CLIENT = """
import sys, time
from pathlib import Path
import pytest
from atlas.remote import plan, runpod, steps
from atlas.remote.runpod import connect
from tests.remote.jobs import Bench, Impatient, quicken
from tests.remote.test_secrets import online
quicken(pytest.MonkeyPatch())
steps.resolved, runpod.ROOT = online, "atlas"
bench = Bench(connect(clock=Impatient()), Path(sys.argv[1]))
offer = bench.provider.offers()[0]
choice = plan.Choice(offer, offer.price, None, "unknown", None, None, None)
said = bench.say
bench.say = lambda step, text: (said(step, text), print(step, text, flush=True))[0]
asked = plan.Request("smoke", (), bench.data, bench.out, "runpod", max_cost=1.0)
bench.plan = lambda: plan.Plan(asked, (choice,), 3, None, None, None, 0, (), 7, 40)
evaluation = ["python3", "-c", "import time; time.sleep(1.5)", "evaluate"]
sys.exit(bench.launch([*bench.commands(epochs=4, pace=0.6), evaluation]))
"""
SHIM = """#!/bin/sh
{{ printf '%s\\n' "$@"; env; }} >> {log}
exec {tool} "$@"
"""


@dataclass
class Watch(threading.Thread):
    """Looks at /proc again and again; `marks` tell whose a process is."""

    marks: list[bytes]
    done: threading.Event = field(default_factory=threading.Event)
    seen: set[tuple[int, bytes, bytes]] = field(default_factory=set)  # pid, cmdline, environ

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        while not self.done.wait(0.02):
            for name in os.listdir("/proc"):
                if name.isdigit() and int(name) != os.getpid():
                    self._look(int(name))

    def _look(self, pid: int) -> None:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return
        if any(mark in command or mark in environment for mark in self.marks):
            self.seen.add((pid, command, environment))


@pytest.fixture
def wandb_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def shims(folder: Path) -> Path:
    """Stand before ssh and rsync, and write down what they are called with."""
    log = folder / "called"
    (folder / "bin").mkdir()
    for tool in ("ssh", "rsync", "ssh-keygen"):
        path = folder / "bin" / tool
        path.write_text(SHIM.format(log=log, tool=require_tool(tool)))
        path.chmod(0o755)
    return log


def test_no_key_is_where_it_need_not_be(tmp_path: Path, wandb_server: str) -> None:
    double = Double(RealClock(), machine=SshMachine, provisioning=0.1, booting=0.1)
    called, there, held = shims(tmp_path), [], []
    watch = Watch([str(tmp_path).encode(), b"/tmp/double-pod"])
    with double.serve() as url:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                 "PYTHONPATH": str(ROOT), "ATLAS_HOME": str(tmp_path / "home"),
                 "RUNPOD_API_KEY": API_KEY, "ATLAS_RUNPOD_URL": url,
                 "WANDB_API_KEY": WANDB, "WANDB_BASE_URL": wandb_server},
        )  # fmt: skip
        watch.start()
        said = []
        with client:
            assert client.stdout is not None
            for line in client.stdout:
                said.append(line)
                if line.startswith("log epoch 2"):
                    (pod,) = double.running()
                    machine = double.machine(pod.id)
                    there = files_below(machine.root / "home")
                    held = [p.name for p in Path("/dev/shm").glob(f"atlas-{pod.name}*")]
        watch.done.set()
        watch.join()
        assert client.returncode == 0, said
        assert not double.running()
        double.close()
    judge(watch.seen, client.pid)
    assert there and not held  # the keys' file is gone before the training begins
    here = files_below(tmp_path) + said + there
    assert called.read_text().count("ControlPath") > 5
    for key in (API_KEY, WANDB, "pod_KEY"):
        assert not [text for text in here if key in text], key


def judge(seen: set[tuple[int, bytes, bytes]], client: int) -> None:
    """The client has its user's keys, the training W&B's, the pod's shells the pod's own."""
    api, wandb, mark = API_KEY.encode(), WANDB.encode(), f"{watchdog.MARK}=".encode()
    own = {command for pid, command, _ in seen if pid == client}
    trained = evaluated = connected = False
    for _, command, environment in seen:
        assert not {key for key in (api, wandb, b"pod_KEY") if key in command}, command
        connected |= command.startswith(require_tool("ssh").encode())
        if command in own:  # it, or a child of it before its own program is loaded
            assert api in environment
            continue
        assert api not in environment, command
        trains = mark in environment and b"write_text" in command
        assert trains or wandb not in environment, command
        assert mark not in environment or b"RUNPOD_API_KEY" not in environment, command
        trained |= trains and wandb in environment
        evaluated |= mark in environment and b"evaluate" in command
    assert trained and evaluated and connected
