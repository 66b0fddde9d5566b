"""What a provider of machines must do, and the records that pass between it and a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Literal, Protocol

PodStatus = Literal["starting", "running", "stopped", "gone"]


@dataclass(frozen=True)
class Offer:
    """One kind of GPU that can be had now.

    Attributes
    ----------
    gpu : name as users write it, ``RTX 4090``
    gpu_id : the provider's own name for it
    memory : GB of one GPU
    price : USD an hour of one GPU; 0 where nothing is billed
    stock : how many there are; "none" cannot be created now
    """

    gpu: str
    gpu_id: str
    memory: float
    price: float
    stock: Literal["high", "medium", "low", "none"]
    regions: tuple[str, ...] = ()


@dataclass(frozen=True)
class PodSpec:
    """What to create. `name` is unique and known before the call, so that a lost reply is found."""

    name: str
    offer: Offer
    gpus: int
    image: str
    disk: int  # GB
    public_key: str
    env: Mapping[str, str] = field(default_factory=dict)  # nothing secret
    args: str = ""  # for the image's entry point; no quotes, backslashes or line ends
    region: str | None = None
    volume: str | None = None


@dataclass(frozen=True)
class Endpoint:
    """Where a pod's sshd listens, and the host key to expect (``ssh-ed25519 AAAA...``), if told."""

    host: str
    port: int
    user: str
    host_key: str | None = None


@dataclass(frozen=True)
class Pod:
    """A machine as the provider sees it. `price` is USD an hour for all of its GPUs."""

    id: str
    name: str
    status: PodStatus
    price: float
    gpu: str = ""
    gpus: int = 1
    created: datetime | None = None  # UTC
    endpoint: Endpoint | None = None


@dataclass(frozen=True)
class Account:
    """Who the key belongs to. `balance` in USD, None where nothing is billed or it is not told."""

    user: str
    balance: float | None = None


class Shell(Protocol):
    """Commands and files on one machine. Every call raises ShellLost when the way there is cut."""

    root: str  # folder on that machine that belongs to this job

    def run(
        self, argv: Sequence[str], *, stdin: bytes | IO[bytes] | None = None, timeout: float = 60
    ) -> bytes:
        """Run to the end and return stdout; CommandFailed with the last lines of stderr if not 0.

        argv is passed literally: no shell expands it on either side. Secrets go through stdin.
        """
        ...

    def read(self, path: str, offset: int = 0) -> bytes:
        """Bytes of a file from an offset on; b"" where there is none yet."""
        ...

    def push(self, source: Path, target: str) -> None:
        """Copy a file or the content of a folder there (rsync where there is a network)."""
        ...

    def pull(self, source: str, target: Path, names: Sequence[str]) -> None:
        """Copy these files, relative to `source`, here; each appears whole or not at all."""
        ...


class Provider(Protocol):
    """One file in this package each; the contract's tests run over all of them."""

    name: str
    bills: bool

    def account(self) -> Account:
        """Authenticate: AtlasError says what is wrong with the key and where it was read."""
        ...

    def offers(self, gpus: int = 1) -> list[Offer]:
        """GPUs with their price and the stock of machines with so many of them, cheapest first."""
        ...

    def create(self, spec: PodSpec) -> Pod:
        """Create one pod; never twice for one name. OutOfStock, NoBalance, ProviderDown."""
        ...

    def pods(self) -> list[Pod]:
        """Every pod of the account whose name is ours, whoever created it, dead ones left out."""
        ...

    def pod(self, pod_id: str) -> Pod:
        """One pod; status "gone" where there is none."""
        ...

    def terminate(self, pod_id: str) -> None:
        """End it for good; no error where it is gone already. Returns when it is confirmed gone."""
        ...

    def cost(self, pod: Pod) -> float | None:
        """USD billed so far, where the provider says; None: compute it from price and time."""
        ...

    def shell(self, pod: Pod, key: Path, known_hosts: Path) -> AbstractContextManager[Shell]:
        """Open the way to a running pod; the host key is checked against `known_hosts`."""
        ...


class Clock(Protocol):
    """Time, injected so that hours of waiting can be tested in milliseconds."""

    def now(self) -> datetime:
        """Return the time, UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...
