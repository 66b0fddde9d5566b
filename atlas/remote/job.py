"""A job from the plan to the bill, by any client that takes it up; no way out leaves a pod."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from atlas.errors import AtlasError

from . import ending, state, steps
from .follow import End, Follower
from .ledger import Ledger, home
from .plan import DISK_GB, Plan, Request
from .preflight import tree
from .provider import Clock, Offer, Provider
from .reach import Ceiling, PodLost, Way
from .state import LOG, Job, Say, locked, open_job, read
from .verbs import log, pull, ssh_command, stop

MOST_PODS = 5
# runpod/pytorch:2.8.0-py3.11-cuda12.8.1-cudnn-devel-ubuntu22.04
IMAGE = "runpod/pytorch@sha256:cb154fcca15d1d6ce858cfa672b76505e30861ef981d28ec94bd44168767d853"
Ask = Callable[[str], str]
__all__ = ["attach", "check", "launch", "log", "pull", "read", "ssh_command", "stop"]


def launch(
    plan: Plan,
    provider: Provider,
    ledger: Ledger,
    clock: Clock,
    say: Say,
    *,
    ask: Ask | None = None,
    commands: Sequence[Sequence[str]] | None = None,
) -> int:
    """Carry out a plan and return the exit code; the run folder is in its `out` then.

    Parameters
    ----------
    ask : callable, optional
        Answers what to do at Ctrl-C: "stop", "leave" or "go on". By default the terminal is asked.
    commands : sequence of argument lists, optional
        What to run there instead of training and evaluation; ``{python}`` is replaced.
    """
    out = plan.request.out.resolve()
    if (out / state.FOLDER / state.FILE).exists() and read(out).ended is None:
        raise AtlasError(f"{out}: its job has not ended; atlas remote logs {out} --follow")
    job = state.begin(plan, provider, ledger, clock, say, IMAGE if provider.bills else "")
    job.state.commands = [list(c) for c in commands] if commands else None
    with locked(out):
        for old in (LOG, "stop", "key", "key.pub"):
            (job.folder / old).unlink(missing_ok=True)
        for hosts in job.folder.glob("known_hosts-*"):
            hosts.unlink()
        steps.pack(job)  # before anything is created: it may fail
        job.save("create")
        return _lead(job, ask or _ask_terminal)


def attach(
    out: Path,
    provider: Provider,
    ledger: Ledger,
    clock: Clock,
    say: Say,
    *,
    ask: Ask | None = None,
) -> int:
    """Take up the job of a run folder, whatever became of its client, and lead it to its end."""
    with locked(out.resolve()):
        job = open_job(out, provider, ledger, clock, say)
        if job.state.ended is not None:
            say("done", f"{out}: its job has ended ({job.state.why or 'done'})")
            return min(job.state.ended, 1)
        return _lead(job, ask or _ask_terminal, attached=True)


class Told(KeyboardInterrupt):
    """The process is told to end; nobody is there to be asked."""


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Take a SIGTERM, or a terminal that closes, for a wish to stop the pod too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(*_: object) -> None:
        raise Told

    before = {n: signal.signal(n, tell) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lead(job: Job, ask: Ask, attached: bool = False) -> int:
    """Work to the end; on every other way out the pod is ended."""
    with _told_to_end():
        return _led(job, ask, attached)


def _led(job: Job, ask: Ask, attached: bool) -> int:
    while True:
        try:
            return _work(job, attached)
        except KeyboardInterrupt as wish:
            code = _interrupted(job, (lambda _: "stop") if isinstance(wish, Told) else ask)
            if code is not None:
                return code
            attached = True
        except BaseException as error:
            _give_up(job, error)
            raise


def _give_up(job: Job, error: BaseException) -> None:
    """End the pod; a folder of a machine that bills nothing keeps what could not be fetched."""
    if job.state.step == "fetch" and not job.provider.bills:
        job.say("failed", f"the run stays there; fetch it with: atlas remote pull {job.out}")
        return
    with suppress(Exception, KeyboardInterrupt), Way(job) as way:  # whatever fails, the pod ends
        ending.what_there_is(way)
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    ending.finish(job, End(1, why))


def _work(job: Job, attached: bool) -> int:
    while True:
        with Way(job) as way:
            try:
                _prepare(way)
                if job.state.request.detach and not attached:
                    return _leave(way)
                end = Follower(way).to_the_end()
                ending.bring_home(way)
            except Ceiling as error:
                end = End(1, str(error))
            except PodLost as error:
                if (job.folder / "stop").exists():
                    end = End(1, "stopped")
                else:
                    _replace(job, error)
                    continue
            if (job.folder / "stop").exists():
                end = End(end.code or 1, "stopped")
        return ending.finish(job, end)


def _prepare(way: Way) -> None:
    """Bring the job to where it trains; every step may be repeated."""
    job = way.job
    machines = job.state.machines
    if job.state.step in ("train", "fetch") and machines and machines[-1].ended is None:
        return
    if not machines or machines[-1].ended is not None or not _adopted(job):
        steps.create(job)
    steps.wait(way)
    steps.arm(way)
    steps.send(way)
    steps.install(way)
    steps.start(way)


def _adopted(job: Job) -> bool:
    """Whether the pod that was planned last exists; its client may have died in the create call."""
    machine = job.state.machine
    if machine.id is not None:
        return True
    found = [pod for pod in job.provider.pods() if pod.name == machine.name]
    if not found:
        job.state.machines.pop()
        return False
    machine.id, machine.price = found[0].id, found[0].price
    machine.created = found[0].created or machine.planned
    job.ledger.created(machine.name, found[0], job.clock.now())
    job.save("wait")
    return True


def _replace(job: Job, error: PodLost) -> None:
    """Let a lost pod go for good; the next one goes on from the last checkpoint that is here."""
    job.say("lost", str(error))
    ending.end_pod(job, "lost")
    machine, left = job.state.machine, job.state.offers
    if len(job.state.machines) >= MOST_PODS:
        raise AtlasError(f"gave up after {MOST_PODS} pods; the last one: {error}")
    if isinstance(error, steps.NotReady):  # another kind first, this one at last
        same = [o for o in left if o.gpu_id == machine.offer.gpu_id]
        job.state.offers = [o for o in left if o not in same] + same
    job.save("create")


def _leave(way: Way) -> int:
    """Tell the watchdog that nobody will be heard, and go."""
    job = way.job
    job.state.request = _detached(job.state.request)
    job.save("train")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "job.json"
        path.write_text(json.dumps(steps.describe(job), indent=1))
        way.there(lambda there: there.push(path, "job.json"))
    end = job.state.end_of(job.state.machine)
    until = f", until {end:%Y-%m-%d %H:%M} UTC at the latest" if end else ""
    job.say("left", f"it goes on there{until}; fetch it with: atlas remote pull {job.out}")
    return 0


def _detached(request: Request) -> Request:
    return Request(**{**vars(request), "detach": True})


def _interrupted(job: Job, ask: Ask) -> int | None:
    """Ask what to do; a second Ctrl-C, or no answer, stops. None: go on."""
    try:
        answer = ask(f"{job.state.id} is at work. stop it, leave it running, or go on?")
        if answer == "go on":
            return None
        if answer == "leave" and job.state.step == "train":
            with Way(job) as way:
                return _leave(way)
        with Way(job) as way:
            ending.what_there_is(way)
    except KeyboardInterrupt:
        pass
    except AtlasError as error:
        job.say("stop", str(error))
    return ending.finish(job, End(1, "stopped"))


def _ask_terminal(question: str) -> str:
    if not sys.stdin.isatty():
        return "stop"
    try:
        answer = input(f"\n{question} [S/l/g] ").strip().lower()[:1]
    except EOFError:
        return "stop"
    return {"l": "leave", "g": "go on"}.get(answer, "stop")


def check(
    offer: Offer, provider: Provider, ledger: Ledger, clock: Clock, say: Say
) -> dict[str, Any]:
    """Create one pod, run `atlas doctor` on it, terminate it; returns what it said and its cost."""
    out = home() / "remote" / f"check-{clock.now():%Y%m%dT%H%M%S}"
    request = Request(None, (), Path(), out, provider.name, gpu=(offer.gpu,),
                      max_cost=max(offer.price, 0.01), max_hours=1.0)  # fmt: skip
    plan = Plan(request, (), 0, None, None, tree()[0], 0, (), 0, DISK_GB)
    job = state.begin(plan, provider, ledger, clock, say, IMAGE if provider.bills else "")
    job.state.offers, job.state.probed = [offer], True
    job.state.commands = [["{python}", "-m", "atlas.cli", "doctor"]]
    steps.pack(job)
    job.save("create")
    code = _lead(job, lambda _: "stop")
    if code:
        raise AtlasError(f"the check failed: {job.state.why or 'see the lines above'}")
    text = (job.folder / LOG).read_text(errors="replace")
    return {"doctor": text, "cost": job.state.spent(clock.now())}
