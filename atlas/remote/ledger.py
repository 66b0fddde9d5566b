"""The ledger on disk of every pod ever created, and how it is held against what the provider says.

One line of JSON an event, appended under a lock and on the disk before the caller goes on. The line
that plans a pod is there before the create call, so that no pod exists that this file cannot name:
whoever is killed in between leaves a name to look for.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from atlas.errors import AtlasError

from .provider import Clock, Pod, Provider

OURS = re.compile(r"atlas-[a-z0-9-]+-[0-9a-f]{8}")
GRACE = timedelta(minutes=15)  # a create call that nobody finished by then was never carried out
BOOKED = timedelta(minutes=1)  # a bill that lacks more than this lags behind
ALONE = timedelta(hours=1)  # a pod that no client has reached has ended itself by then


def new_name(run: str) -> str:
    """Return a pod's name that was never given: atlas-RUN-8 hex digits."""
    slug = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")[:32].strip("-") or "run"
    return f"atlas-{slug}-{secrets.token_hex(4)}"


def is_ours(name: str) -> bool:
    """Whether a pod of this name was made by us."""
    return OURS.fullmatch(name) is not None


def home(env: dict[str, str] | None = None) -> Path:
    """Return the folder of what outlives a job: ATLAS_HOME, or ~/.local/share/atlas."""
    given = (os.environ if env is None else env).get("ATLAS_HOME")
    return Path(given) if given else Path.home() / ".local" / "share" / "atlas"


@dataclass(frozen=True)
class Entry:
    """What is known of one pod. `price` is USD an hour for all of its GPUs."""

    name: str
    job: str
    provider: str
    planned: datetime
    run: str = ""
    gpu: str = ""
    gpus: int = 1
    price: float = 0.0
    pod: str | None = None
    created: datetime | None = None
    ended: datetime | None = None
    cost: float | None = None
    estimated: bool = False  # computed from price and time, at most this; not told by the provider
    reason: str = ""

    @property
    def open(self) -> bool:
        """Whether it may still cost something."""
        return self.ended is None


class Ledger:
    """An append-only file; several processes may write at once."""

    def __init__(self, path: Path | None = None):
        self.path = path or home() / "remote" / "ledger.jsonl"

    def plan(
        self,
        name: str,
        *,
        job: str,
        provider: str,
        time: datetime,
        run: str = "",
        gpu: str = "",
        gpus: int = 1,
        price: float = 0.0,
    ) -> None:
        """Write down a pod that is about to be created. On disk when this returns."""
        self._append("planned", time, name=name, job=job, provider=provider, run=run, gpu=gpu,
                     gpus=gpus, price=price)  # fmt: skip

    def created(self, name: str, pod: Pod, time: datetime) -> None:
        """Write down that it exists, and its price as read back."""
        created = pod.created or time
        self._append("created", created, name=name, pod=pod.id, price=pod.price)

    def ended(
        self,
        name: str,
        time: datetime,
        *,
        cost: float | None,
        reason: str,
        estimated: bool = False,
        pod: str | None = None,
    ) -> None:
        """Write down that it is confirmed gone, and what it cost.

        `pod` is set for one that the ledger does not know under this name.
        """
        more = {} if pod is None else {"pod": pod}
        self._append("ended", time, name=name, cost=cost, reason=reason, estimated=estimated,
                     **more)  # fmt: skip

    def entries(self) -> list[Entry]:
        """Every pod, in the order of planning."""
        found: dict[str, Entry] = {}
        for event in self._events():
            entry = found.get(event["name"])
            merged = _merge(entry, event)
            if merged is not None:
                found[merged.name] = merged
        return list(found.values())

    def find(self, name: str) -> Entry | None:
        """One pod by its name."""
        return next((e for e in self.entries() if e.name == name), None)

    def _events(self) -> Iterator[dict[str, Any]]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise AtlasError(f"{self.path}: cannot be read: {error.strerror}") from None
        for line in data.split(b"\n"):
            event = _parse(line)  # a line torn by a power cut had not let its create call go
            if event is not None:
                yield event

    def _append(self, event: str, time: datetime, **values: Any) -> None:
        line = json.dumps({"event": event, "time": time.isoformat(), **values}) + "\n"
        try:
            with self._locked() as descriptor:
                torn = _lacks_line_end(descriptor)
                os.write(descriptor, (b"\n" if torn else b"") + line.encode())
                os.fsync(descriptor)
        except OSError as error:
            raise AtlasError(
                f"{self.path}: cannot be written ({error.strerror}); no pod is made without it"
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[int]:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if new:
                _sync_folder(self.path.parent)
            yield descriptor
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Reconciled:
    """The ledger beside the provider's list.

    Attributes
    ----------
    running : pods that the ledger knows as open
    unknown : pods of ours that cost money and that it does not know, or knows as ended
    ended : entries that were open and whose pod is gone; they are closed now
    waiting : planned a moment ago and not seen yet, perhaps by another client at work
    """

    running: tuple[tuple[Entry, Pod], ...]
    unknown: tuple[Pod, ...]
    ended: tuple[Entry, ...]
    waiting: tuple[Entry, ...]


def reconcile(
    ledger: Ledger, provider: Provider, clock: Clock, mine: Callable[[Entry], bool] = lambda _: True
) -> Reconciled:
    """Hold every open entry of this provider against its pods, and write down what changed.

    `mine` leaves out the entries of the provider's other machines.
    """

    def known() -> dict[str, Entry]:
        return {e.name: e for e in ledger.entries() if e.provider == provider.name and mine(e)}

    entries = known()
    pods = provider.pods()  # after the entries: a pod made in between is unknown to nobody
    entries |= known()
    running: list[tuple[Entry, Pod]] = []
    unknown: list[Pod] = []
    for pod in pods:
        entry = entries.get(pod.name)
        if entry is None or not entry.open or entry.pod not in (None, pod.id):
            unknown.append(pod)
            continue
        if entry.pod is None:
            ledger.created(entry.name, pod, clock.now())
            entry = replace(entry, pod=pod.id, created=pod.created or clock.now(), price=pod.price)
        running.append((entry, pod))
    seen = {entry.name for entry, _ in running}
    ended: list[Entry] = []
    waiting: list[Entry] = []
    for entry in entries.values():
        if entry.open and entry.name not in seen:
            closed = _close(ledger, entry, provider, clock)
            (waiting if closed is None else ended).append(closed or entry)
    return Reconciled(tuple(running), tuple(unknown), tuple(ended), tuple(waiting))


def _close(ledger: Ledger, entry: Entry, provider: Provider, clock: Clock) -> Entry | None:
    """Close an entry whose pod is not listed; None where it is too early to say."""
    now = clock.now()
    if entry.pod is None:
        if now - entry.planned < GRACE:
            return None
        cost, billed = cost_unseen(entry.price, entry.planned, now), entry.price > 0
        closed = replace(entry, ended=now, cost=cost, estimated=billed, reason="never seen")
    else:
        pod = provider.pod(entry.pod)
        if pod.status != "gone":
            return None
        told = provider.cost(replace(pod, created=entry.created, price=entry.price))
        begun = entry.created or entry.planned
        cost, computed = bill(told, entry.price, begun, now, ran=False)
        closed = replace(entry, ended=now, cost=cost, estimated=computed, reason="gone")
    ledger.ended(
        closed.name, now, cost=closed.cost, estimated=closed.estimated, reason=closed.reason
    )
    return closed


def cost_at_most(entry: Entry, until: datetime) -> float:
    """USD from the price read back and the time since the pod was made."""
    return dollars(entry.price, entry.created or entry.planned, until)


def cost_unseen(price: float, planned: datetime, now: datetime) -> float:
    """USD at most of a pod whose create call was not answered and that is not there now.

    It was never made, or has ended itself because no client came.
    """
    return dollars(price, planned, min(now, planned + ALONE))


def bill(
    told: float | None, price: float, begun: datetime, now: datetime, *, ran: bool
) -> tuple[float, bool]:
    """Return USD of a pod that is gone now, and whether they are computed, and so at most these.

    The provider books every few minutes. What it tells of a pod that `ran` until now and is well
    below price and time is not the whole.
    """
    most = dollars(price, begun, now)
    if told is None or (ran and told < most - dollars(price, now, now + BOOKED)):
        return most, price > 0
    return told, False


def dollars(price: float, begun: datetime, until: datetime) -> float:
    """USD of a time at a price an hour."""
    return price * max((until - begun).total_seconds(), 0.0) / 3600


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
        event["time"] = datetime.fromisoformat(event["time"])
        str.encode(event["name"])
    except (ValueError, KeyError, TypeError):
        return None
    return event


_FIELDS = {f.name for f in fields(Entry)}
_TIMES = {"planned": "planned", "created": "created", "ended": "ended"}


def _merge(entry: Entry | None, event: dict[str, Any]) -> Entry | None:
    values = {name: value for name, value in event.items() if name in _FIELDS}
    if event.get("event") not in _TIMES:
        return entry
    values[_TIMES[event["event"]]] = event["time"]
    if entry is not None:
        return replace(entry, **values)
    if not {"job", "provider"} <= values.keys():
        return None
    return Entry(**{"planned": event["time"], **values})


def _lacks_line_end(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
