"""The state of the double: catalogue, pods, stock, balance and the bill."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from .clock import FakeClock
from .faults import Fault, Faults
from .machines import Address, Folder, Machine

API_KEY = "rpa_DOUBLE0KEY0NOT0A0REAL0ONE"  # the account's; a pod's own key is API_KEY-less


class Refused(Exception):
    """An answer that is not a success: HTTP status, one line, validation errors."""

    def __init__(self, status: int, detail: str, errors: tuple[str, ...] = ()):
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors


@dataclass
class Gpu:
    id: str
    name: str
    memory: int
    price: float  # USD an hour of one, in the secure cloud
    stock: int  # machines that can still be had
    max_count: int = 8
    regions: tuple[str, ...] = ("EU-RO-1", "EU-SE-1", "US-KS-2")

    @property
    def level(self) -> str:
        return "NONE" if self.stock <= 0 else "LOW" if self.stock < 3 else "HIGH"


def catalogue() -> list[Gpu]:
    return [
        Gpu("NVIDIA RTX A4000", "RTX A4000", 16, 0.25, 20),
        Gpu("NVIDIA RTX A5000", "RTX A5000", 24, 0.27, 20),
        Gpu("NVIDIA GeForce RTX 4090", "RTX 4090", 24, 0.69, 20),
        Gpu("NVIDIA L40S", "L40S", 48, 0.86, 20, regions=("US-KS-2",)),
        Gpu("NVIDIA A100 80GB PCIe", "A100 PCIe", 80, 1.64, 20),
        Gpu("NVIDIA H100 80GB HBM3", "H100 SXM", 80, 2.99, 20),
    ]


@dataclass
class DoublePod:
    id: str
    name: str
    gpu: Gpu
    count: int
    price: float
    body: dict[str, Any]
    created: datetime
    key: str  # may end this pod, and nothing else
    ready: datetime
    ports: datetime
    listed: datetime
    gone_at: datetime | None = None  # planned disappearance
    ended: datetime | None = None
    stopped: bool = False
    address: Address | None = None
    log: list[tuple[datetime, str]] = field(default_factory=list)


class Cloud:
    """The account. Pods change with the clock: every call first looks what time it is."""

    def __init__(
        self,
        clock: Any = None,
        faults: Faults | None = None,
        machine: Callable[[DoublePod], Machine] = Folder,
        balance: float = 100.0,
        provisioning: float = 4.0,
        booting: float = 20.0,
    ):
        self.clock = clock or FakeClock()
        self.faults = faults or Faults()
        self.gpus = catalogue()
        self.balance = balance
        self.provisioning, self.booting = provisioning, booting
        self.everything: dict[str, DoublePod] = {}  # every pod that ever was
        self.machines: dict[str, Machine] = {}
        self.lock = threading.RLock()
        self.url = ""  # set while it is served; the pods see it
        self._machine = machine
        self._ids = itertools.count(1)

    # ------------------------------------------------------------ what tests ask
    def running(self) -> list[DoublePod]:
        """Pods that cost money now; every test must end with none."""
        with self.lock:
            self.tick()
            return [p for p in self.everything.values() if p.ended is None]

    def bill(self, pod: DoublePod | str) -> float:
        """USD of one pod: whole seconds, from create to its end or to now."""
        pod = self.everything[pod] if isinstance(pod, str) else pod
        seconds = ((pod.ended or self.clock.now()) - pod.created).total_seconds()
        return pod.price * math.ceil(seconds) / 3600

    def total(self) -> float:
        """USD of all pods."""
        with self.lock:
            self.tick()
            return sum(map(self.bill, self.everything.values()))

    def kill(self, pod_id: str) -> None:
        """The pod disappears now, with its disk."""
        with self.lock:
            self.end(self.everything[pod_id])

    def machine(self, pod_id: str) -> Machine:
        """Return the machine behind a running pod."""
        with self.lock:
            self.tick()
            return self.machines[pod_id]

    def gpu(self, name: str) -> Gpu:
        return next(g for g in self.gpus if name in (g.id, g.name))

    def close(self) -> None:
        """End every machine."""
        with self.lock:
            for pod in self.everything.values():
                self.end(pod)

    # ------------------------------------------------------------ what the API does
    def tick(self) -> None:
        now = self.clock.now()
        for pod in self.everything.values():
            if pod.ended is None and pod.gone_at is not None and now >= pod.gone_at:
                self.end(pod, pod.gone_at)
            if pod.ended is None and now >= pod.ready and pod.id not in self.machines:
                self.machines[pod.id] = machine = self._machine(pod)
                pod.address = machine.start(self._environment(pod))
                for line in (
                    "starting",
                    f"atlas-host-key {pod.address.host_key} root@pod",
                    "ready",
                ):
                    pod.log.append((now + timedelta(microseconds=len(pod.log)), line))

    def end(self, pod: DoublePod, at: datetime | None = None) -> None:
        if pod.ended is None:
            pod.ended = at or self.clock.now()
            pod.gpu.stock += 1
            if pod.id in self.machines:
                self.machines[pod.id].stop()

    def allow(self, token: str | None, pod_id: str | None = None) -> None:
        """Refuse a key that is not the account's, nor the named pod's own."""
        if token == API_KEY:
            return
        owner = next((p for p in self.everything.values() if token and p.key == token), None)
        if owner is None:
            raise Refused(401, "the bearer token is missing or invalid")
        if owner.id != pod_id:
            raise Refused(403, "a pod's key is for that pod alone")

    def create(self, body: dict[str, Any], gpu_id: str, count: int) -> DoublePod:
        gpu = next((g for g in self.gpus if g.id == gpu_id), None)
        if gpu is None:
            raise Refused(400, f"no GPU type {gpu_id}")
        price = gpu.price * count * (2 if self.faults.pod("price_jump") else 1)
        if self.balance - self.total() < price:
            raise Refused(402, "insufficient balance: one hour must be paid for")
        wanted = body.get("dataCenterIds") or gpu.regions
        here = set(wanted) & set(gpu.regions)
        if self.faults.pod("out_of_stock") or gpu.stock <= 0 or not here or count > gpu.max_count:
            raise Refused(400, "no instances are available with these specifications")
        gpu.stock -= 1
        pod = self._pod(body, gpu, count, price)
        self.everything[pod.id] = pod
        return pod

    def _pod(self, body: dict[str, Any], gpu: Gpu, count: int, price: float) -> DoublePod:
        now, number = self.clock.now(), next(self._ids)

        def after(seconds: float, fault: Fault | None) -> datetime:
            return now + timedelta(seconds=seconds + (fault.seconds if fault else 0.0))

        up = self.provisioning + self.booting
        never = self.faults.pod("never_ready")
        vanish = self.faults.pod("vanish")
        return DoublePod(
            id=f"pod{number:04d}x",
            name=body["name"],
            gpu=gpu,
            count=count,
            price=price,
            body=body,
            created=now,
            key=f"pod_KEY{number:04d}",
            ready=now + timedelta(days=9999) if never else after(up, None),
            ports=after(up, self.faults.pod("late_ports")),
            listed=after(0, self.faults.pod("late_listing")),
            gone_at=after(0, vanish) if vanish else None,
        )

    def listed(self) -> list[DoublePod]:
        now = self.clock.now()
        return [p for p in self.everything.values() if p.ended is None and now >= p.listed]

    def get(self, pod_id: str) -> DoublePod:
        pod = self.everything.get(pod_id)
        if pod is None or pod.ended is not None:
            raise Refused(404, "the requested pod does not exist")
        return pod

    def status(self, pod: DoublePod) -> str:
        now = self.clock.now()
        if pod.ended is not None:
            return "TERMINATED"
        if pod.stopped:
            return "EXITED"
        if now >= pod.ready:
            return "RUNNING"
        begun = pod.created + timedelta(seconds=self.provisioning)
        return "STARTING" if now >= begun else "PROVISIONING"

    def direct(self, pod: DoublePod) -> Address | None:
        """Where its sshd is published, once it is."""
        up = self.status(pod) == "RUNNING" and self.clock.now() >= pod.ports
        return pod.address if up else None

    def _environment(self, pod: DoublePod) -> Mapping[str, str]:
        own = {"RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": pod.key, "RUNPOD_GPU_COUNT": "0"}
        if self.url:
            own["ATLAS_RUNPOD_URL"] = self.url
        return {**pod.body.get("env", {}), **own}


class Double(Cloud):
    """The account with its two doors."""

    def client(self, timeout: float = 30.0) -> Any:
        """An httpx client whose requests end here, in this process; time passes by the clock."""
        from .server import in_process

        return in_process(self, timeout)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Open it on loopback; yields the base URL for ATLAS_RUNPOD_URL."""
        from .server import serving

        with serving(self) as url:
            self.url = url
            try:
                yield url
            finally:
                self.url = ""
