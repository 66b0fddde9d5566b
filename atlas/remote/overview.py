"""Every pod of this user: the ledger held against the providers, and what it all cost."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from atlas.errors import AtlasError

from . import keys, state
from .ledger import Entry, Ledger, Reconciled, bill, cost_at_most, dollars, reconcile
from .provider import Clock, Pod, Provider

Connect = Callable[[str, Entry | None], Provider]


@dataclass(frozen=True)
class View:
    """One provider's answer, or why there is none.

    Attributes
    ----------
    place : the machine, of a provider with several (ssh)
    failed : the line that says why it could not be asked; the ledger alone is shown then
    """

    name: str
    place: str
    provider: Provider | None
    found: Reconciled | None
    failed: str | None = None


@dataclass(frozen=True)
class Row:
    """One pod that costs something, or may."""

    name: str
    job: str
    run: str
    provider: str
    pod: str | None
    gpu: str
    gpus: int
    price: float
    status: str
    since: datetime | None
    cost: float


def look(
    ledger: Ledger, connect: Connect, clock: Clock, env: Mapping[str, str] = os.environ
) -> list[View]:
    """Reconcile the ledger with every provider that it names, and with RunPod where a key is."""
    opened: dict[tuple[str, str], Entry | None] = {
        (e.provider, place(e)): e for e in ledger.entries() if e.open
    }
    if ("runpod", "") not in opened and keys.find("RUNPOD_API_KEY", env=env):
        opened["runpod", ""] = None
    return [_ask(*where, opened[where], ledger, connect, clock) for where in sorted(opened)]


def _ask(
    name: str, where: str, entry: Entry | None, ledger: Ledger, connect: Connect, clock: Clock
) -> View:
    try:
        provider = connect(name, entry)
        found = reconcile(ledger, provider, clock, lambda e: place(e) == where)
        return View(name, where, provider, found)
    except AtlasError as error:
        return View(name, where, None, None, str(error))


def place(entry: Entry) -> str:
    """Name the machine that a pod is a folder of; "" where the provider's name says all."""
    if entry.pod is not None:
        return entry.pod.rpartition("/")[0]
    if folder := folder_of(entry):
        with suppress(AtlasError):
            return state.read(folder).request.host or ""
    return ""


def rows(views: Iterable[View], ledger: Ledger, now: datetime) -> list[Row]:
    """Return what runs: known pods, pods that no job of this machine made, planned ones."""
    found = []
    for view in views:
        if view.found is None:
            entries = [e for e in ledger.entries() if e.open and e.provider == view.name]
            found += [_row(e, "not asked", now) for e in entries if place(e) == view.place]
            continue
        found += [_row(entry, pod.status, now) for entry, pod in view.found.running]
        found += [_row(entry, "planned", now) for entry in view.found.waiting]
        found += [_stranger(view.name, pod, now) for pod in view.found.unknown]
    return found


def _row(entry: Entry, status: str, now: datetime) -> Row:
    return Row(entry.name, entry.job, entry.run, entry.provider, entry.pod, entry.gpu, entry.gpus,
               entry.price, status, entry.created, cost_at_most(entry, now))  # fmt: skip


def _stranger(provider: str, pod: Pod, now: datetime) -> Row:
    return Row(pod.name, "", "", provider, pod.id, pod.gpu, pod.gpus, pod.price,
               f"{pod.status}, not made here", pod.created,
               dollars(pod.price, pod.created or now, now))  # fmt: skip


def totals(ledger: Ledger, now: datetime) -> dict[str, Any]:
    """Sum what every pod cost, by run and by month of its creation; open ones up to now.

    ``at_most`` is true where a part was computed from price and time and not told by the provider.
    """
    runs: dict[str, float] = defaultdict(float)
    months: dict[str, float] = defaultdict(float)
    estimated = False
    for entry in ledger.entries():
        cost = entry.cost if entry.cost is not None else cost_at_most(entry, entry.ended or now)
        estimated = estimated or entry.estimated or entry.cost is None
        runs[entry.run or entry.job] += cost
        months[(entry.created or entry.planned).strftime("%Y-%m")] += cost
    return {
        "total": sum(runs.values()),
        "at_most": estimated,
        "runs": dict(runs),
        "months": dict(sorted(months.items())),
    }


def end(provider: Provider, ledger: Ledger, clock: Clock, pod_id: str, reason: str) -> float | None:
    """Terminate a pod that may have no job here, write it down, and return its cost."""
    pod = provider.pod(pod_id)
    provider.terminate(pod_id)
    entry = next((e for e in ledger.entries() if e.pod == pod_id), None)
    if entry is not None and not entry.open:
        return entry.cost
    now = clock.now()
    begun = (entry.created if entry else pod.created) or now
    price = entry.price if entry else pod.price
    ran = pod.status in ("starting", "running")
    cost, computed = bill(provider.cost(pod), price, begun, now, ran=ran)
    name = entry.name if entry else pod.name
    ledger.ended(name, now, cost=cost, reason=reason, estimated=computed,
                 pod=None if entry else pod_id)  # fmt: skip
    return cost


def folder_of(entry: Entry) -> Path | None:
    """Return the run folder of an entry, where it lies on this machine."""
    folder = Path(entry.run)
    return folder if entry.run and (folder / ".remote").is_dir() else None
