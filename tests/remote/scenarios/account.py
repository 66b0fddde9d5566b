"""One client's dealings with the account, killed anywhere, and the next command that cleans up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx

from atlas.errors import AtlasError
from atlas.remote import overview
from atlas.remote.errors import OutOfStock, PriceRose
from atlas.remote.ledger import GRACE, Ledger, new_name
from atlas.remote.provider import Pod, PodSpec
from atlas.remote.runpod import RunPod, connect
from tests.remote.double import API_KEY, Double, FakeClock, Faults


class Killed(BaseException):
    """The process is gone at once: nothing of ours that follows runs."""


@dataclass
class Fuse(httpx.BaseTransport):
    """Kills the client at its n-th request, before it leaves or after it was carried out."""

    inner: httpx.BaseTransport
    at: int = 0
    after: bool = False
    seen: int = field(default=0, init=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.seen += 1
        if self.seen == self.at and not self.after:
            raise Killed
        response = self.inner.handle_request(request)
        if self.seen == self.at:
            raise Killed
        return response


class World:
    """The double, a clock, a ledger on disk; clients come and go."""

    def __init__(self, seed: int, folder: Path):
        self.rng = random.Random(seed)
        self.clock = FakeClock()
        self.double = Double(self.clock, faults=Faults.seeded(seed))
        self.ledger = Ledger(folder / "ledger.jsonl")

    @contextmanager
    def client(self, at: int = 0, after: bool = False) -> Iterator[RunPod]:
        inner = self.double.client()
        http = httpx.Client(transport=Fuse(inner._transport, at, after), timeout=inner.timeout)
        env = {"RUNPOD_API_KEY": API_KEY, "HOME": "/nonexistent"}
        yield connect(clock=self.clock, env=env, http=http, rng=random.Random(self.rng.random()))

    def job(self, provider: RunPod) -> str:
        """Create, wait, work, terminate, as a job does; returns how it ended."""
        pod = None
        for offer in provider.offers()[:3]:
            name = new_name("scenario")
            self.ledger.plan(name, job="job-1", provider="runpod", time=self.clock.now(),
                             gpu=offer.gpu, price=offer.price)  # fmt: skip
            try:
                pod = provider.create(PodSpec(name, offer, 1, "image", 20, "ssh-ed25519 AAAA"))
            except PriceRose as rose:
                self._close(provider, name, rose.pod, "price rose")
            except OutOfStock:
                self.ledger.ended(name, self.clock.now(), cost=0.0, reason="out of stock")
            else:
                self.ledger.created(name, pod, self.clock.now())
                break
        if pod is None:
            return "no pod"
        for _ in range(self.rng.randint(1, 8)):  # looks in from time to time
            self.clock.sleep(self.rng.uniform(0, 900))
            provider.pod(pod.id)
        provider.terminate(pod.id)
        self._close(provider, pod.name, pod, "done")
        return "done"

    def _close(self, provider: RunPod, name: str, pod: Pod | None, reason: str) -> None:
        if pod is None:
            return
        self.ledger.created(name, pod, self.clock.now())
        overview.end(provider, self.ledger, self.clock, pod.id, reason)

    def clean_up(self) -> None:
        """`atlas remote stop --all`, as often as it takes; then what the grace period left."""
        for _ in range(12):
            self.clock.advance(60)
            with self.client() as provider:
                if self._stop_all(provider):
                    break
        self.clock.advance((GRACE + timedelta(minutes=1)).total_seconds())
        for _ in range(12):
            with self.client() as provider:
                if self._stop_all(provider):
                    return
            self.clock.advance(60)

    def _stop_all(self, provider: RunPod) -> bool:
        views = overview.look(self.ledger, lambda *_: provider, self.clock,
                              {"RUNPOD_API_KEY": API_KEY, "HOME": "/nonexistent"})  # fmt: skip
        whole = not any(view.failed for view in views)
        for row in overview.rows(views, self.ledger, self.clock.now()):
            if row.pod is None or row.status == "not asked":
                continue
            try:
                overview.end(provider, self.ledger, self.clock, row.pod, "stopped")
            except AtlasError:
                whole = False
        return whole
