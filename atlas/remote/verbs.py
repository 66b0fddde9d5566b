"""What other clients ask of a job: its log, what there is of its run, its end, a way there."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from atlas.errors import AtlasError

from . import ending, fetch, state
from .follow import End, Follower
from .ledger import Ledger
from .provider import Clock, Provider
from .reach import Ceiling, PodLost, Way
from .shell import SshShell
from .state import LOG, Say, locked, open_job, read


def log(out: Path, provider: Provider, ledger: Ledger, clock: Clock, offset: int = 0) -> bytes:
    """Return the job's log from an offset on, with what came since a client last looked."""
    folder = out.resolve() / state.FOLDER
    job = open_job(out, provider, ledger, clock, lambda step, text: None)
    if job.state.ended is None and job.state.step in ("train", "fetch"):
        with suppress(AtlasError), locked(job.out), Way(job) as way:
            told = way.ask("status")
            Follower(way).log(told["log"], told["exit"] is not None)
    path = folder / LOG
    return path.read_bytes()[offset:] if path.exists() else b""


def pull(out: Path, provider: Provider, ledger: Ledger, clock: Clock, say: Say) -> list[str]:
    """Fetch what there is; of a job that has ended everything, and then its pod is ended."""
    with locked(out.resolve()):
        job = open_job(out, provider, ledger, clock, say)
        if job.state.ended is not None:
            return []
        if job.state.step not in ("train", "fetch"):
            raise AtlasError(f"{out}: has not begun to train; atlas remote logs {out} --follow")
        before = set(job.state.pulled.items())
        try:
            with Way(job) as way:
                follower = Follower(way)
                end = follower.look()
                if end is None:
                    return fetch.checkpoint(way) or sorted(
                        n for n, _ in set(job.state.pulled.items()) - before
                    )
                names = ending.bring_home(way)
        except (PodLost, Ceiling) as error:
            say("lost", f"{error}; what was fetched is here")
            ending.finish(job, End(1, str(error)))
            return []
        ending.finish(job, end)
        return names


def stop(out: Path, provider: Provider, ledger: Ledger, clock: Clock, say: Say) -> None:
    """Fetch what there is and end the pod; a client that follows the job is told to do it."""
    job = open_job(out, provider, ledger, clock, say)
    if job.state.ended is not None:
        return
    (job.folder / "stop").touch()
    since: datetime = clock.now()
    while True:
        try:
            with locked(job.out):
                job = open_job(out, provider, ledger, clock, say)
                if job.state.ended is None:
                    with Way(job) as way:
                        ending.what_there_is(way)
                    ending.finish(job, End(1, "stopped"))
                return
        except AtlasError:
            if (clock.now() - since).total_seconds() > 120:
                raise
            clock.sleep(2)


def ssh_command(out: Path, provider: Provider) -> list[str]:
    """Return the ssh command line for the job's pod, its host key checked."""
    found = read(out)
    if not found.machines or found.machine.id is None or found.machine.ended is not None:
        raise AtlasError(f"{out}: has no pod running")
    pod = provider.pod(found.machine.id)
    if pod.endpoint is None:
        raise AtlasError(f"{out}: its pod has no address for SSH")
    folder = out.resolve() / state.FOLDER
    hosts = folder / f"known_hosts-{len(found.machines)}"
    way = provider.shell(pod, folder / state.KEY, hosts)
    if not isinstance(way, SshShell):
        raise AtlasError(f"{out}: its pod is not reached by SSH")
    try:
        return way.login()
    finally:
        way.close()
