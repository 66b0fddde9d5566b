"""What a job knows of itself: OUT/.remote/job.json, enough for any client to take it up."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from atlas.errors import AtlasError
from atlas.files import write_text

from .ledger import Ledger, dollars
from .plan import Plan, Request
from .provider import Clock, Offer, Pod, Provider

Say = Callable[[str, str], None]
FOLDER, FILE, LOG, KEY = ".remote", "job.json", "job.log", "key"
PACKED = "sent"  # code and configuration, for each of the job's pods
RESERVE_S, RESERVE = 60.0, 0.01  # of the ceiling, kept for ending the pod


@dataclass
class Machine:
    """One pod of a job. Times are UTC; `log` is where its log begins in OUT/.remote/job.log."""

    name: str
    offer: Offer
    price: float
    planned: datetime
    id: str | None = None
    created: datetime | None = None
    ended: datetime | None = None
    cost: float | None = None
    estimated: bool = False
    log: int = 0


@dataclass
class State:
    """The whole of it.

    Attributes
    ----------
    step : what is being done: create, wait, send, install, train, fetch, ended
    ended : the job's exit code, once it is over and no pod is left
    """

    id: str
    request: Request
    offers: list[Offer]
    disk: int
    image: str
    begun: datetime
    commit: str | None = None
    wandb: str = ""
    step: str = "create"
    machines: list[Machine] = field(default_factory=list)
    probed: bool = True
    commands: list[list[str]] | None = None  # instead of training and evaluating
    pulled: dict[str, str] = field(default_factory=dict)  # sha256 there of what is here
    ended: int | None = None
    why: str = ""

    @property
    def machine(self) -> Machine:
        """The pod at work."""
        return self.machines[-1]

    def spent(self, now: datetime) -> float:
        """USD of all pods, those that run up to `now`."""
        return sum(m.cost if m.cost is not None else self.running_cost(m, now)
                   for m in self.machines)  # fmt: skip

    @staticmethod
    def running_cost(machine: Machine, now: datetime) -> float:
        """USD of one pod from its price and time."""
        return dollars(machine.price, machine.created, now) if machine.created else 0.0

    def end_of(self, machine: Machine) -> datetime | None:
        """When this pod must be gone, by the ceilings of the whole job; None without any."""
        begun, limits = machine.created or machine.planned, []
        request = self.request
        if request.max_cost is not None and machine.price > 0:
            others = sum(m.cost or 0.0 for m in self.machines if m is not machine)
            seconds = (request.max_cost - others) / machine.price * 3600
            limits.append(begun + timedelta(seconds=seconds * (1 - RESERVE) - RESERVE_S))
        if request.max_hours is not None:
            limits.append(self.begun + timedelta(hours=request.max_hours))
        return min(limits, default=None)


@dataclass
class Job:
    """A job at work: its state, and what it works with."""

    state: State
    out: Path
    provider: Provider
    ledger: Ledger
    clock: Clock
    say: Say

    @property
    def folder(self) -> Path:
        """OUT/.remote."""
        return self.out / FOLDER

    def save(self, step: str | None = None) -> None:
        """Write the state; a step is one that begins now."""
        self.state.step = step or self.state.step
        write_text(self.folder / FILE, json.dumps(_plain(self.state), indent=1))

    def known_hosts(self) -> Path:
        """Host keys of the pod at work; each pod has its own file."""
        return self.folder / f"known_hosts-{len(self.state.machines)}"


def begin(
    plan: Plan, provider: Provider, ledger: Ledger, clock: Clock, say: Say, image: str
) -> Job:
    """Make the job's folder and its state."""
    request, now = plan.request, clock.now()
    state = State(
        id=f"{_slug(request.out.resolve().name)}-{secrets.token_hex(3)}",
        request=request,
        offers=[choice.offer for choice in plan.choices],
        disk=plan.disk,
        image=image,
        begun=now,
        commit=plan.commit,
        probed=not plan.choices or plan.choices[0].source != "probe",
    )
    state.wandb = _wandb_id(request) or state.id
    out = request.out.resolve()
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    (out / FOLDER).chmod(0o700)  # the job's key lies there
    return Job(state, out, provider, ledger, clock, say)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")[:24] or "run"


def _wandb_id(request: Request) -> str | None:
    """Return the id that a run to be resumed has at W&B: its last folder's name ends with it."""
    if not request.resume:
        return None
    try:
        return str(json.loads((request.out / "remote.json").read_text())["wandb"])
    except (OSError, ValueError, KeyError):
        found = sorted((request.out / "wandb").glob("*run-*-*"), key=lambda p: p.stat().st_mtime)
        return found[-1].name.partition("run-")[2].partition("-")[2] if found else None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Let one client at a time lead a job."""
    if not (out / FOLDER).is_dir():
        raise AtlasError(f"{out}: holds no remote job")
    with (out / FOLDER / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AtlasError(f"{out}: another atlas follows this job now") from None
        yield


def read(out: Path) -> State:
    """Read the state of the job in a run folder."""
    path = out.resolve() / FOLDER / FILE
    try:
        return _state(json.loads(path.read_text()))
    except FileNotFoundError:
        raise AtlasError(f"{out}: holds no remote job") from None
    except (ValueError, KeyError, TypeError):
        raise AtlasError(f"{path}: damaged") from None


def _plain(state: State) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(json.dumps(asdict(state), default=_text))
    return out


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else os.fspath(value)


def _state(tree: dict[str, Any]) -> State:
    request = dict(tree["request"])
    request |= {name: Path(request[name]) for name in ("data", "out")}
    request |= {name: tuple(request[name]) for name in ("overrides", "gpu")}
    machines = [
        Machine(**dict(m, offer=_offer(m["offer"]), **_times(m, "planned", "created", "ended")))
        for m in tree["machines"]
    ]
    known = {f.name for f in fields(State)}
    return State(
        **{name: value for name, value in tree.items() if name in known}
        | {
            "request": Request(**request),
            "offers": [_offer(o) for o in tree["offers"]],
            "machines": machines,
            "begun": datetime.fromisoformat(tree["begun"]),
        }
    )


def _offer(tree: dict[str, Any]) -> Offer:
    return Offer(**dict(tree, regions=tuple(tree["regions"])))


def _times(tree: dict[str, Any], *names: str) -> dict[str, datetime | None]:
    return {n: datetime.fromisoformat(tree[n]) if tree[n] else None for n in names}


def open_job(out: Path, provider: Provider, ledger: Ledger, clock: Clock, say: Say) -> Job:
    """Take up the job of a run folder."""
    return Job(read(out), out.resolve(), provider, ledger, clock, say)


def pod_of(machine: Machine) -> Pod:
    """Return a pod as it was when it was made, for a provider that has forgotten it."""
    return Pod(machine.id or "", machine.name, "gone", machine.price, machine.offer.gpu,
               created=machine.created)  # fmt: skip
