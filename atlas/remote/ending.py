"""How a job ends: everything fetched, its pod terminated, the bill, remote.json."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from atlas.errors import AtlasError
from atlas.files import write_text

from . import fetch
from .errors import ProviderDown
from .follow import End, Follower
from .ledger import bill, cost_unseen
from .preflight import money
from .reach import Ceiling, PodLost, Way
from .state import KEY, PACKED, Job, pod_of

TRY_FOR = timedelta(hours=1)  # to write here, where no ceiling ends it sooner


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let no Ctrl-C, SIGTERM or closed terminal keep a pod from being ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wishes = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Not SIG_IGN, which processes that are started meanwhile would inherit.
    before = {number: signal.signal(number, lambda *_: None) for number in wishes}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bring_home(way: Way) -> list[str]:
    """Fetch the whole run folder; a full disk here is waited for, the pod's copy is the only one.

    Raises
    ------
    AtlasError
        What keeps it from being written here, when the time for trying is over.
    """
    job, since = way.job, way.job.clock.now()
    machine = job.state.machine
    end = job.state.end_of(machine) or since + TRY_FOR
    told = False
    while True:
        try:
            job.save("fetch")
            names = fetch.everything(way)
        except (PodLost, Ceiling):
            raise
        except (AtlasError, OSError) as error:
            if job.clock.now() >= end:
                raise
            if not told:
                job.say("fetch", f"not fetched yet, trying again until the ceiling: {error}")
            told = True
            _beat(way)
            job.clock.sleep(30)
        else:
            job.say("fetch", f"{len(names)} files, each checked against its sha256")
            return names


def _beat(way: Way) -> None:
    with suppress(AtlasError):
        way.ask("status")


def what_there_is(way: Way) -> None:
    """Stop the job there and fetch what it wrote; a pod that cannot be reached is let go."""
    job = way.job
    if job.state.machine.id is None or job.state.step in ("create", "wait", "send", "install"):
        return
    try:
        way.call("stop")
        told = way.ask("status")
        Follower(way).log(told["log"])
        names = fetch.everything(way)
        job.say("fetch", f"{len(names)} files, each checked against its sha256")
    except (AtlasError, OSError) as error:
        job.say("fetch", f"not all could be fetched: {error}")


def end_pod(job: Job, reason: str) -> None:
    """Terminate the pod at work, and write down what it cost."""
    if not job.state.machines or job.state.machine.ended is not None:
        return
    with uninterrupted():
        machine = job.state.machine
        if machine.id is None:
            found = [p for p in job.provider.pods() if p.name == machine.name]
            if not found:  # the ledger's reconciliation looks for it again later
                machine.cost = cost_unseen(machine.price, machine.planned, job.clock.now())
                machine.estimated = machine.price > 0
                return
            machine.id, machine.price = found[0].id, found[0].price
            machine.created = found[0].created or machine.planned
            job.ledger.created(machine.name, found[0], job.clock.now())
        ran = _runs(job, machine.id)
        job.provider.terminate(machine.id)
        now = job.clock.now()
        try:
            told = job.provider.cost(pod_of(machine))
        except ProviderDown:
            told = None
        begun = machine.created or machine.planned
        machine.cost, machine.estimated = bill(told, machine.price, begun, now, ran=ran)
        machine.ended = now
        job.ledger.ended(machine.name, now, cost=machine.cost, reason=reason,
                         estimated=machine.estimated)  # fmt: skip
        job.save()


def _runs(job: Job, pod_id: str) -> bool:
    """Whether it costs something still; so it is taken where the provider does not say."""
    try:
        return job.provider.pod(pod_id).status in ("starting", "running")
    except AtlasError:
        return True


def finish(job: Job, end: End) -> int:
    """Terminate, write remote.json, print the bill; the last line says how it went."""
    if job.state.machines:
        end_pod(job, end.why or ("done" if end.code == 0 else "failed"))
    state = job.state
    state.ended, state.why = end.code, end.why
    write_text(job.out / "remote.json", json.dumps(summary(job), indent=1))
    for name in (KEY, f"{KEY}.pub"):
        (job.folder / name).unlink(missing_ok=True)
    (job.folder / "stop").unlink(missing_ok=True)
    shutil.rmtree(job.folder / PACKED, ignore_errors=True)
    job.save("ended")
    _bill(job)
    for folder in sorted((job.out / "wandb").glob("offline-run-*")):
        job.say("wandb", f"send it to W&B with: wandb sync {folder}")
    if end.code == 0:
        job.say("done", f"{job.state.request.out}: trained and evaluated")
    else:
        kept = "checkpoints/last.ckpt" in state.pulled
        more = "; what it wrote is here, go on with --resume" if kept else ""
        job.say("failed", f"{end.why or f'exit code {end.code}'}{more}")
    return 0 if end.code == 0 else 1


def _bill(job: Job) -> None:
    if not job.provider.bills:
        return
    machines = job.state.machines
    total = sum(m.cost or 0.0 for m in machines)
    most = " at most" if any(m.estimated for m in machines) else ""
    pods = f"{len(machines)} pods" if len(machines) != 1 else "1 pod"
    job.say("bill", f"{money(total)}{most}, {pods}, terminated" if machines else "no pod was made")


def summary(job: Job) -> dict[str, Any]:
    """Return what remote.json holds."""
    state, now = job.state, job.clock.now()
    return {
        "provider": job.provider.name,
        "job": state.id,
        "gpu": state.machines[-1].offer.gpu if state.machines else None,
        "gpus": state.request.gpus,
        "begun": state.begun.isoformat(timespec="seconds"),
        "ended": now.isoformat(timespec="seconds"),
        "cost": sum(m.cost or 0.0 for m in state.machines),
        "estimated": any(m.estimated for m in state.machines),
        "image": state.image or None,
        "commit": state.commit,
        "wandb": state.wandb,
        "exit": state.ended,
        "why": state.why,
        "pods": [
            {
                "id": m.id,
                "gpu": m.offer.gpu,
                "price": m.price,
                "created": m.created.isoformat() if m.created else None,
                "ended": m.ended.isoformat() if m.ended else None,
                "cost": m.cost,
            }
            for m in state.machines
        ],
    }
