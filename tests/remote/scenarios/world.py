"""A whole job under seeded trouble: the double, stub pods, clients that die and come back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from atlas.errors import AtlasError
from atlas.remote import bundle, follow, job, plan, preflight, shell
from atlas.remote.pod import files, watchdog
from atlas.remote.provider import Pod
from atlas.remote.runpod import RunPod, connect
from tests.remote.double import API_KEY, Double, FakeClock, Faults
from tests.remote.double.cloud import DoublePod

from .account import Killed, World
from .stub import NOBODY, Script, StubJob, StubShell, Trouble


class Ticking(FakeClock):
    """Time in small steps, so that what the pods do by themselves happens when it is due."""

    hook: Callable[[], None] = staticmethod(lambda: None)
    busy = False

    def advance(self, seconds: float) -> None:
        while seconds > 0:
            super().advance(min(seconds, 20.0))
            seconds -= 20.0
            if not self.busy:
                self.busy = True
                self.hook()
                self.busy = False


class Gone(httpx.BaseTransport):
    """The network of one client: it is gone with the client."""

    def __init__(self, inner: httpx.BaseTransport, trouble: Trouble):
        self.inner, self.trouble = inner, trouble

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        after = self.trouble("request", cuts=False)
        response = self.inner.handle_request(request)
        after()
        return response


class JobWorld(World):
    """One run folder and its job."""

    def __init__(self, seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch):
        super().__init__(seed, folder)
        rng = self.rng
        self.clock = Ticking()
        self.clock.hook = self._tick
        faults = Faults.seeded(seed) if rng.random() < 0.6 else Faults()
        self.double = Double(self.clock, faults=faults)
        self.jobs: dict[str, StubJob] = {}
        self.script = Script(
            epochs=rng.randint(1, 6),
            epoch_s=rng.choice([30.0, 120.0, 900.0]),
            fails=rng.choice([0, 0, 0, 2]),
            vanishes=rng.choice([0, 0, 0, 2]),
            fills=rng.choice([0, 0, 0, 3]),
        )
        self.trouble = self._troubles()
        self.out, self.data = folder / "run", folder / "data"
        self.data.mkdir()
        (self.data / "studies.parquet").write_text("studies")
        self.lines: list[tuple[str, str]] = []
        self.best = 0
        self._patch(monkeypatch)

    def _troubles(self) -> Trouble:
        trouble = Trouble.seeded(self.rng, Killed)
        trouble.sleep = self.clock.advance
        return trouble

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundle, "make", lambda folder: [])
        monkeypatch.setattr(shell, "make_key", self._key)
        monkeypatch.setattr(watchdog, "release", lambda: True)
        monkeypatch.setattr(files, "alive", lambda pid: pid != NOBODY)
        monkeypatch.setattr(follow, "POLL_S", 20.0)

    @staticmethod
    def _key(path: Path) -> str:
        path.write_text("private")
        path.with_suffix(".pub").write_text("public")
        return "ssh-ed25519 AAAA"

    # ------------------------------------------------------------ the pods' own doings
    def _tick(self) -> None:
        for pod in self.double.running():
            if pod.id not in self.double.machines:
                continue
            stub, now = self._stub(pod), self.clock.now().timestamp()
            stub.catch_up(now)
            root = str(stub.root)
            age = now - pod.created.timestamp()
            if not files.read(root, watchdog.DEADLINE):  # start.sh: nobody came
                if age > float(pod.body["env"]["ATLAS_FIRST_CONTACT"]):
                    self.double.kill(pod.id)
                continue
            found = watchdog.verdict(root, now)
            watchdog.check(root, now, end=lambda _, stub=stub: stub.stop())
            if found is not None and found[1]:
                self.double.kill(pod.id)

    def _stub(self, pod: DoublePod | Pod) -> StubJob:
        if pod.id not in self.jobs:
            self.jobs[pod.id] = StubJob(self.double.machines[pod.id].root, self.script)
        return self.jobs[pod.id]

    def _way(self, pod: Pod, key: Path, known_hosts: Path) -> StubShell:
        assert key.read_text() == "private" and known_hosts.read_text()
        stub = self._stub(pod)
        return StubShell(stub.root, stub, lambda: self.clock.now().timestamp(), self.trouble)

    # ------------------------------------------------------------ the clients
    def provider(self) -> RunPod:
        inner = self.double.client()
        http = httpx.Client(transport=Gone(inner._transport, self.trouble), timeout=inner.timeout)
        env = {"RUNPOD_API_KEY": API_KEY, "HOME": "/nonexistent"}
        return connect(clock=self.clock, env=env, http=http, open_shell=self._way,
                       rng=random.Random(self.rng.random()))  # fmt: skip

    def say(self, step: str, text: str) -> None:
        assert text and "\n" not in text and "Traceback" not in text
        self.lines.append((step, text))
        self.check_kept()

    def check_kept(self) -> None:
        """What was fetched never goes back."""
        last = self.out / "checkpoints" / "last.ckpt"
        if last.exists():
            epoch = json.loads(last.read_text())["epoch"]
            assert epoch >= self.best, (epoch, self.best)
            self.best = epoch
        else:
            assert self.best == 0

    def launch(self, max_cost: float, detach: bool) -> int:
        provider = self.provider()
        gpu = tuple(self.rng.sample(["RTX A4000", "RTX 4090", "L40S", "A100"], 2))
        request = plan.Request("smoke", (), self.data, self.out, "runpod", gpu=gpu,
                               max_cost=max_cost, max_hours=20.0, detach=detach)  # fmt: skip
        choices = tuple(
            plan.Choice(offer, offer.price, 1.0, "computed", 1.0, offer.price, None)
            for offer in preflight.pick(request, provider.offers())
        )
        made = plan.Plan(request, choices, 10, max_cost, None, "0" * 40, 0, (), 7, 40)
        return job.launch(made, provider, self.ledger, self.clock, self.say, ask=self._ask)

    def _ask(self, question: str) -> str:
        return self.rng.choice(["stop", "leave", "go on"])

    def later(self) -> int:
        """Another client, after a while: takes the job up, or ends it."""
        self.trouble = self._troubles() if self.rng.random() < 0.3 else Trouble(self.rng, Killed)
        self.trouble.sleep = self.clock.advance
        self.clock.advance(self.rng.choice([5, 600, 3600, 4 * 3600]))
        with_ledger: tuple[Any, ...] = (self.provider(), self.ledger, self.clock, self.say)
        what = self.rng.choice(["attach", "attach", "pull", "stop"])
        if what == "pull":
            job.pull(self.out, *with_ledger)
        elif what == "stop":
            job.stop(self.out, *with_ledger)
        return job.attach(self.out, *with_ledger, ask=self._ask)

    def state(self) -> Any:
        try:
            return job.read(self.out)
        except AtlasError:
            return None
