"""A whole job with nothing pretended but the account: the command line, sshd, rsync, torchrun.

Clients are processes that really die, pods have a real sshd that really stops, and the training is
a small one of atlas. A seed says what befalls the job, and when.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atlas.errors import AtlasError
from atlas.remote import job
from atlas.remote.ledger import Ledger
from atlas.remote.pod import watchdog
from tests.remote.double import API_KEY, Double, Fault, Faults, SshMachine
from tests.remote.double.clock import RealClock
from tests.remote.test_ssh import seed_kernels
from tests.support import ROOT, heed_ctrl_c, skip

EPOCHS = 6
OPTIONS = [f"train.epochs={EPOCHS}", "train.threads=1", "train.accelerator=cpu"]
GPUS = ["--gpu", "RTX A4000", "--gpu", "RTX 4090"]
PATIENCE_S = 400.0  # for one client, on a machine that others use too
SMALL_DISK = "400m"

# In the order of the seeds: what befalls the job. Those of LOST end it.
TROUBLES = ["vanish", "kill", "drop", "ctrl_c", "crash", "trainer", "terminate", "other",
            "detach", "full", "sleep", "fail", "none"]  # fmt: skip
LOST = {
    "ctrl_c": "stopped",
    "terminate": "stopped",
    "other": "stopped",
    "trainer": "exit code 1",
    "full": "disk is full",
    "fail": "train.lr",
}
# When: the line of the client's that it comes after.
MOMENTS = ["pod pod", "the pod answers", "code (", "data (", "started", "checkpoint and metrics"]
PROVIDER = [
    Fault("lost_reply", "create"),
    Fault("malformed", "create"),
    Fault("slow", "create", seconds=2.0),
    Fault("out_of_stock", "create"),
    Fault("price_jump", "create"),
    Fault("never_ready", "create"),
    Fault("late_ports", "create", seconds=3.0),
    Fault("rate_limited", "get", call=3, times=2, seconds=1.0),
    Fault("bad_gateway", "get", call=4, times=2),
    Fault("error", "delete", times=2),
    Fault("lost_reply", "delete"),
    Fault("malformed", "billing"),
    Fault("cut_logs", "logs"),
]


class Pod(SshMachine):
    """A pod whose kernels are built, and whose disk may be a small one."""

    small = False

    def start(self, environment: Any) -> Any:
        if self.small:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(self.home)]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                skip("cannot mount a small disk here")
        seed_kernels(self.home / ".cache")
        return super().start(environment)

    def stop(self) -> None:
        for _ in range(2 if self.small else 1):  # the disk is busy until its processes are gone
            super().stop()
            if self.small:
                umount = ["umount", "-l", str(self.home)]
                subprocess.run(umount, capture_output=True, check=False)


@dataclass
class Client:
    """One process of the command line, and all that it said on standard error."""

    process: subprocess.Popen[str]
    lines: list[str]

    @property
    def last(self) -> str:
        return self.lines[-1] if self.lines else ""


class RealWorld:
    """One account, one run folder, one job."""

    def __init__(self, seed: int, folder: Path, data: Path) -> None:
        rng = random.Random(f"real {seed}")
        self.trouble = TROUBLES[seed % len(TROUBLES)]
        self.moment = self._moment(seed, rng)
        self.delay = rng.uniform(0, 3) if seed > 1 else 0.0
        faults = [rng.choice(PROVIDER)] if seed > 1 and rng.random() < 0.6 else []
        machine = type("SmallPod", (Pod,), {"small": self.trouble == "full"})
        self.double = Double(RealClock(), Faults(faults), machine, provisioning=0.1, booting=0.2)
        self.folder, self.data, self.out = folder, data, folder / "RUN"
        self.ledger = Ledger(folder / "home" / "remote" / "ledger.jsonl")
        self.clients: list[Client] = []
        self.best = -1
        self.fired = False
        self._timer: threading.Timer | None = None

    def _moment(self, seed: int, rng: random.Random) -> str:
        if self.trouble in ("trainer", "full", "detach"):
            return "started"
        return "checkpoint and metrics" if seed < 2 else rng.choice(MOMENTS)

    def __str__(self) -> str:
        said = [line for client in self.clients for line in ["---", *client.lines]]
        what = (
            f"{self.trouble} {self.delay:.1f} s after {self.moment!r}, {self.double.faults.planned}"
        )
        return "\n".join([what, *said[-60:]])

    # ------------------------------------------------------------ clients
    def environment(self, url: str) -> dict[str, str]:
        mine = {
            "ATLAS_HOME": str(self.folder / "home"),
            "ATLAS_REMOTE_PYTHON": sys.executable,
            "ATLAS_RUNPOD_URL": url,
            "PYTHONPATH": str(ROOT),
            "RUNPOD_API_KEY": API_KEY,
            "XDG_CONFIG_HOME": str(self.folder / "config"),
        }
        return {**os.environ, **mine}

    def client(self, *arguments: object) -> tuple[int, str]:
        """Run one to its end; returns its exit code and its last line."""
        with (self.folder / "stdout.txt").open("a") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.remote.scenarios.client", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                env=self.environment(self.double.url),
                preexec_fn=heed_ctrl_c,
                start_new_session=True,
            )
        client = Client(process, [])
        self.clients.append(client)
        end = threading.Timer(PATIENCE_S, process.kill)
        end.start()
        with process:
            assert process.stderr is not None
            for line in process.stderr:
                client.lines.append(line.rstrip())
                self._look(line)
            code = process.wait()
        end.cancel()
        return code, client.last

    def _look(self, line: str) -> None:
        self.check_kept()
        if not self.fired and self.moment in line and self.trouble != "none":
            self.fired = True
            self._timer = threading.Timer(self.delay, self._befall)
            self._timer.daemon = True
            self._timer.start()

    def launch(self) -> tuple[int, str]:
        bad = ["train.lr=1e18"] if self.trouble == "fail" else []
        more = ["--detach"] if self.trouble == "detach" else []
        there = ["--remote", "runpod", *GPUS, "--max-cost", 5, "--yes", *more]
        return self.client("train", "smoke", *OPTIONS, *bad, "--data", self.data,
                           "--out", self.out, *there)  # fmt: skip

    def lead(self) -> tuple[int, str]:
        """Clients until the job has ended; the exit code and the last line of the last one."""
        code, last = self.launch()
        for _ in range(4):
            if self._timer is not None:
                self._timer.join()
            state = self.state()
            if state is None or state.ended is not None:
                break
            code, last = self.client("remote", "logs", self.out, "--follow")
        return code, last

    def state(self) -> Any:
        with suppress(AtlasError):
            return job.read(self.out)
        return None

    # ------------------------------------------------------------ what befalls them
    def _befall(self) -> None:
        client = self.clients[-1].process
        actions: dict[str, Callable[[], None]] = {
            "vanish": lambda: self._each(lambda pod: self.double.kill(pod.id)),
            "kill": client.kill,
            "drop": lambda: self._away(3.0),
            "crash": lambda: self._away(6.0),
            "ctrl_c": lambda: client.send_signal(signal.SIGINT),
            "terminate": lambda: client.send_signal(signal.SIGTERM),
            "other": self._stop_by_another,
            "trainer": lambda: self._each(self._kill_trainer),
            "full": lambda: self._each(self._fill),
            "sleep": lambda: self._sleep(client),
        }
        actions.get(self.trouble, lambda: None)()

    def _each(self, action: Callable[[Any], None]) -> None:
        for pod in self.double.running():
            action(pod)

    def _machine(self, pod: Any) -> Pod:
        machine = self.double.machine(pod.id)
        assert isinstance(machine, Pod)
        return machine

    def _away(self, seconds: float) -> None:
        """The network of every pod is gone for a while; what runs there goes on."""
        machines = [self._machine(pod) for pod in self.double.running()
                    if pod.id in self.double.machines]  # fmt: skip
        for machine in machines:
            machine.cut()
        time.sleep(seconds)
        for machine in machines:
            machine.mend()

    def _stop_by_another(self) -> None:
        command = [sys.executable, "-m", "tests.remote.scenarios.client", "remote", "stop"]
        subprocess.run([*command, str(self.out)], env=self.environment(self.double.url),
                       capture_output=True, timeout=PATIENCE_S, check=False)  # fmt: skip

    def _sleep(self, client: subprocess.Popen[str]) -> None:
        client.send_signal(signal.SIGSTOP)
        time.sleep(5)
        client.send_signal(signal.SIGCONT)

    def _root(self, pod: Any) -> Path:
        return self._machine(pod).home / "atlas" / str(pod.name)

    def _kill_trainer(self, pod: Any) -> None:
        """As the kernel does where memory is short: the processes that torchrun started."""
        while self.clients[-1].process.poll() is None:  # minutes, where other work is running
            for pid in watchdog.of_job(str(self._root(pod))):
                with suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if b"atlas.cli\0train" in words and b"torch.distributed.run" not in words:
                        os.kill(pid, signal.SIGKILL)
                        return
            time.sleep(0.1)

    def _fill(self, pod: Any) -> None:
        with suppress(OSError), (self._machine(pod).home / "filler").open("wb", 0) as file:
            while True:
                file.write(bytes(1 << 20))

    # ------------------------------------------------------------ what must hold
    def check_kept(self) -> None:
        """What was fetched never goes back, and is whole."""
        last = self.out / "checkpoints" / "last.ckpt"
        if last.exists():
            epoch = torch.load(last, map_location="cpu", weights_only=True)["epoch"]
            assert epoch >= self.best, (epoch, self.best)
            self.best = epoch
        else:
            assert self.best == -1
