"""What a remote run will take: its estimate, its ceiling in dollars, and what goes there.

Made before any money is spent; whatever is wrong is one clear line here and nothing was created.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atlas.config import Config
from atlas.data import dataset as datasets
from atlas.errors import AtlasError, OptionError

from . import estimate, preflight, shell
from .errors import NoBalance
from .preflight import money
from .provider import Offer, Provider

DISK_GB = 40  # of a pod's own disk
PROBE_STEPS = 50  # timed at the start of a run that no table knows


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    config: str | None
    overrides: tuple[str, ...]
    data: Path
    out: Path
    provider: str
    gpu: tuple[str, ...] = ()  # names in order of preference; (): the cheapest there is
    gpus: int = 1
    max_cost: float | None = None  # USD; needed where something is billed
    max_hours: float | None = None
    region: str | None = None
    volume: str | None = None
    detach: bool = False
    resume: bool = False
    force: bool = False
    transport: str = "rest"
    host: str | None = None


@dataclass(frozen=True)
class Choice:
    """One GPU that may be taken, in order; prices of all its GPUs together.

    Attributes
    ----------
    step_s : seconds of a step, None where no table knows it
    source : "measured", "computed", or "probe" where the first steps there are timed
    hours, dollars : the estimate; None before a probe
    ceiling_hours : when the pod is ended at the latest
    """

    offer: Offer
    price: float
    step_s: float | None
    source: str
    hours: float | None
    dollars: float | None
    ceiling_hours: float | None


@dataclass(frozen=True)
class Plan:
    """What `show` prints and a job carries out."""

    request: Request
    choices: tuple[Choice, ...]
    steps: int
    ceiling: float | None  # USD over all pods of this job
    balance: float | None
    commit: str | None
    changed: int  # tracked files that differ from the commit; they go as a diff
    left_here: tuple[str, ...]  # untracked files; they do not go
    data_bytes: int
    disk: int  # GB


def make(
    request: Request,
    provider: Provider,
    say: Callable[[str, str], None] = lambda _step, _text: None,
) -> Plan:
    """Ask the provider and look around here; every refusal is raised before anything is created.

    `say` hears of each step as it is done.

    Raises
    ------
    AtlasError
        One clear line: no or a wrong key, no balance, unknown GPU, none in stock, an estimate above
        the ceiling, a folder that cannot be written to or resumed, sources that would not go, a
        dataset larger than the disk, no ssh or rsync here.
    """
    if provider.bills and request.max_cost is None:
        raise OptionError(f"--max-cost: --remote {provider.name} needs one, e.g. --max-cost 5")
    if provider.name != "local":
        shell.require_tools()
    config = preflight.resolve(request)
    preflight.check_out(request, config)
    preflight.check_wandb(config, provider.bills)
    data = datasets.read(request.data)
    commit, changed, untracked = preflight.tree()
    size = sum(p.stat().st_size for p in request.data.rglob("*") if p.is_file())
    preflight.check_disk(request, provider.bills, size, DISK_GB)
    account = provider.account()
    if provider.bills:
        say("key", f"{provider.name} accepts the key")
    catalogue = provider.offers(request.gpus)
    offers = preflight.pick(request, catalogue)
    if provider.bills:
        say(
            "catalogue", f"{len(catalogue)} kinds of GPU with price and stock, {len(offers)} to try"
        )
    steps = estimate.steps_of(config, len(data.rows("train")), request.gpus)
    choices = tuple(_choice(request, config, steps, offer) for offer in offers)
    _check_money(request, choices, account.balance)
    return Plan(
        request=request,
        choices=choices,
        steps=steps,
        ceiling=request.max_cost,
        balance=account.balance,
        commit=commit,
        changed=changed,
        left_here=untracked,
        data_bytes=size,
        disk=DISK_GB,
    )


def _choice(request: Request, config: Config, steps: int, offer: Offer) -> Choice:
    price = offer.price * request.gpus
    known = estimate.step_time(config, offer.gpu)
    step_s, source = known or (None, "probe" if price else "unknown")
    hours = None if step_s is None else estimate.hours_of(config, steps, step_s)
    limits = [request.max_hours]
    if price and request.max_cost is not None:
        limits.append(request.max_cost / price)
    return Choice(
        offer=offer,
        price=price,
        step_s=step_s,
        source=source,
        hours=hours,
        dollars=None if hours is None else hours * price,
        ceiling_hours=min((x for x in limits if x is not None), default=None),
    )


def _check_money(request: Request, choices: Sequence[Choice], balance: float | None) -> None:
    first = choices[0]
    if balance is not None and first.price and balance < first.price:
        raise NoBalance(
            f"the account's balance is {money(balance)}; an hour of {first.offer.gpu} takes "
            f"{money(first.price)}"
        )
    if first.dollars is None or first.hours is None:
        return
    refuse_over(request.max_cost if first.price else None, first.dollars, first.hours,
                request.max_hours)  # fmt: skip
    if balance is not None and balance < first.dollars:
        raise NoBalance(
            f"estimated {money(first.dollars)}, above the account's balance of {money(balance)}: "
            "its pods end at $0, and what they hold is lost"
        )


def refuse_over(
    ceiling: float | None, dollars: float, hours: float, max_hours: float | None
) -> None:
    """Refuse an estimate above a ceiling; also what a probe on the pod is held against."""
    if ceiling is not None and dollars > ceiling:
        raise AtlasError(
            f"estimated {money(dollars)} ({hours:.1f} h), above the ceiling of {money(ceiling)}; "
            "raise --max-cost, train fewer epochs, or take another --gpu"
        )
    if max_hours is not None and hours > max_hours:
        raise AtlasError(
            f"estimated {hours:.1f} h, above --max-hours {max_hours:g}; raise it, train fewer "
            "epochs, or take another --gpu"
        )


def lines(plan: Plan) -> list[str]:
    """Return the plan as people read it."""
    request = plan.request
    gpus = f"{request.gpus} x " if request.gpus > 1 else ""
    told = ["plan", f"  provider  {request.provider}" + _balance(plan.balance)]
    for number, choice in enumerate(plan.choices[:5]):
        label = "GPU" if number == 0 else "else"
        told.append(f"  {label:9} {gpus}{choice.offer.gpu}{_terms(choice)}")
    if plan.commit:
        told.append(f"  code      commit {plan.commit[:10]}" + _changes(plan.changed))
    else:
        told.append("  code      the installed version of atlas")
    if plan.left_here:
        told.append(f"  stays     not tracked, does not go: {preflight.some(plan.left_here)}")
    told.append(f"  data      {request.data}, {plan.data_bytes / 1e6:,.1f} MB")
    told.append(f"  run       {plan.steps:,} steps into {request.out}")
    told.append(f"  ceiling   {_ceiling(plan)}")
    return told


def _balance(balance: float | None) -> str:
    return "" if balance is None else f", balance {money(balance)}"


def _changes(changed: int) -> str:
    return f" and the changes to {changed} tracked file{'s'[: changed != 1]}" if changed else ""


def _terms(choice: Choice) -> str:
    price = f", {money(choice.price)}/h, stock {choice.offer.stock}" if choice.price else ""
    if choice.hours is None or choice.step_s is None:
        if choice.source == "probe":
            return f"{price}, no step time known: the first {PROBE_STEPS} steps there are timed"
        return price
    cost = f", {money(choice.dollars or 0.0)}" if choice.price else ""
    return (
        f"{price}: about {choice.hours:.1f} h{cost} ({choice.step_s * 1e3:.0f} ms a step, "
        f"{choice.source})"
    )


def _ceiling(plan: Plan) -> str:
    first = plan.choices[0]
    hours = "" if first.ceiling_hours is None else f"{first.ceiling_hours:.1f} h"
    if plan.ceiling is None or not first.price:
        return hours or "none: nothing is billed"
    return f"{money(plan.ceiling)}: the pod ends itself after {hours} at the latest"


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan for machines; paths are strings, the tables plain."""
    value = asdict(plan)
    for name in ("data", "out"):
        value["request"][name] = str(value["request"][name])
    return value
