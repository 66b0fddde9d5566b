"""atlas remote: check, list, logs, pull, stop, cost, ssh, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atlas.errors import AtlasError, OptionError

from ._options import json_option, print_json
from ._remote import Teller, connect

if TYPE_CHECKING:
    from atlas.remote.ledger import Entry, Ledger
    from atlas.remote.overview import Row, View
    from atlas.remote.provider import Clock, Provider

_job = click.argument("job", metavar="JOB")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def remote() -> None:
    """Jobs that `atlas train --remote` started. JOB is a run folder, a job, or a pod.

    Each of them first holds the ledger of pods against what the provider says.
    """


class _Desk:
    """The ledger, reconciled with every provider that it names."""

    def __init__(self) -> None:
        from atlas import progress
        from atlas.remote import overview
        from atlas.remote.clock import SystemClock
        from atlas.remote.ledger import Ledger

        self.clock: Clock = SystemClock()
        self.ledger: Ledger = Ledger()
        self.say = Teller(self.clock, progress.quiet)
        self.views: list[View] = overview.look(self.ledger, self.open, self.clock)

    def open(self, name: str, entry: Entry | None = None, pod: str | None = None) -> Provider:
        """Connect to the provider of an entry, or of a pod that no job here made."""
        from atlas.remote import overview

        folder = overview.folder_of(entry) if entry else None
        asked = _asked(folder)
        where = overview.place(entry) if entry else (pod or "").rpartition("/")[0]
        return connect(name, self.clock, **asked | ({"host": where} if where else {}))

    def rows(self) -> list[Row]:
        """Return what runs now."""
        from atlas.remote import overview

        return overview.rows(self.views, self.ledger, self.clock.now())

    def warn(self) -> int:
        """Say which provider could not be asked, and what costs money unseen; an exit code."""
        for view in self.views:
            if view.failed:
                click.echo(f"{view.name}: not asked: {view.failed}", err=True)
            for pod in view.found.unknown if view.found else ():
                click.echo(
                    f"{view.name}: pod {pod.id} ({pod.name}) runs at ${pod.price:.2f}/h and no job "
                    f"here made it; end it with: atlas remote stop {pod.id}",
                    err=True,
                )
        return int(any(view.failed for view in self.views))

    def find(self, job: str) -> Entry:
        """Return the last pod of a job: by its run folder, its id, its pod's id or name."""
        entries = self.ledger.entries()
        folder = str(Path(job).resolve())
        found = [e for e in entries if job in (e.job, e.pod, e.name) or e.run == folder]
        if found:
            return found[-1]
        open_jobs = ", ".join(dict.fromkeys(e.job for e in entries if e.open)) or "none"
        raise AtlasError(f"{job}: no such job; running are {open_jobs}")

    def folder(self, job: str) -> tuple[Path, Provider]:
        """Return the run folder of a job on this machine, and its provider."""
        from atlas.remote import overview

        entry = self.find(job)
        folder = overview.folder_of(entry)
        if folder is None:
            raise AtlasError(f"{job}: its run folder {entry.run} is not on this machine")
        return folder, self.open(entry.provider, entry)


def _asked(folder: Path | None) -> dict[str, Any]:
    """Read which transport and machine a job was started with."""
    if folder is None:
        return {}
    from atlas.remote import job

    request = job.read(folder).request
    return {"transport": request.transport, "host": request.host}


@remote.command("list")
@json_option
def list_pods(as_json: bool) -> None:
    """Show every pod that costs something now."""
    desk = _Desk()
    rows = desk.rows()
    if as_json:
        print_json([_plain(asdict(row)) for row in rows])
    elif not rows:
        click.echo("no pods")
    else:
        click.echo(f"{'job':24} {'pod':16} {'GPU':16} {'$/h':>6} {'so far':>8}  status")
    for row in rows if not as_json else ():
        gpu = f"{row.gpus} x {row.gpu}" if row.gpus > 1 else row.gpu
        click.echo(
            f"{row.job or row.name:24} {row.pod or '-':16} {gpu:16} {row.price:6.2f} "
            f"{row.cost:8.2f}  {row.status}"
        )
    click.get_current_context().exit(desk.warn())


@remote.command()
@json_option
def cost(as_json: bool) -> None:
    """Total what was spent, by run and by month."""
    from atlas.remote import overview

    desk = _Desk()
    totals = overview.totals(desk.ledger, desk.clock.now())
    if as_json:
        print_json(totals)
    else:
        for title, part in (("run", totals["runs"]), ("month", totals["months"])):
            for name, dollars in part.items():
                click.echo(f"{title:6} {name:40} ${dollars:9.2f}")
        most = "  (at most: a part is computed from price and time)" if totals["at_most"] else ""
        click.echo(f"{'total':47} ${totals['total']:9.2f}{most}")
    click.get_current_context().exit(desk.warn())


@remote.command()
@_job
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends, as train does.")
@click.option("--offset", type=click.IntRange(0), default=0, help="From this byte on.")
@json_option
def logs(job: str, follow: bool, offset: int, as_json: bool) -> None:
    """Show a job's log; with --follow pick the job up where its client was lost."""
    desk = _Desk()
    folder, provider = desk.folder(job)
    from atlas.remote import job as jobs

    if follow:
        code = jobs.attach(folder, provider, desk.ledger, desk.clock, desk.say)
        if as_json:
            print_json({"run": str(folder), "exit": code})
        click.get_current_context().exit(code)
    text = jobs.log(folder, provider, desk.ledger, desk.clock, offset)
    end = offset + len(text)
    if as_json:
        print_json({"offset": offset, "next": end, "text": text.decode(errors="replace")})
    else:
        click.echo(text.decode(errors="replace"), nl=False)
    click.get_current_context().exit(desk.warn())


@remote.command()
@_job
@json_option
def pull(job: str, as_json: bool) -> None:
    """Fetch what the run has written so far; of a job that ended all of it, and end its pod."""
    desk = _Desk()
    folder, provider = desk.folder(job)
    from atlas.remote import job as jobs

    names = jobs.pull(folder, provider, desk.ledger, desk.clock, desk.say)
    print_json({"run": str(folder), "pulled": names}) if as_json else click.echo(folder)
    click.get_current_context().exit(desk.warn())


@remote.command()
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@click.option("--all", "everything", is_flag=True, help="Every pod of ours, whoever made it.")
@_yes
@json_option
def stop(jobs: tuple[str, ...], everything: bool, yes: bool, as_json: bool) -> None:
    """Fetch what there is, end the pods, and print what they cost."""
    if bool(jobs) == everything:
        raise OptionError("stop: name jobs, or --all")
    desk = _Desk()
    rows = _chosen(desk, jobs)
    if everything and rows and not yes:
        told = ", ".join(f"{r.job or r.name} (${r.price:.2f}/h, {r.status})" for r in rows)
        click.confirm(f"End {told}?", abort=True, err=True)
    ended, failed = [], [f"{v.name}: not asked: {v.failed}" for v in desk.views if v.failed]
    for row in rows:
        try:
            ended.append({"job": row.job, "pod": row.pod, "cost": _stop(desk, row)})
        except AtlasError as error:  # the others are ended all the same
            failed.append(f"{row.job or row.name}: {error}")
    if as_json:
        print_json(ended)
    elif not rows and not failed:
        click.echo("no pods")
    for one in ended if not as_json else ():
        click.echo(f"{one['job'] or one['pod']} ended, ${one['cost'] or 0.0:.2f}")
    if failed:
        raise AtlasError(f"pods may run on: {'; '.join(failed)}")


def _chosen(desk: _Desk, jobs: tuple[str, ...]) -> list[Row]:
    """Return the rows that were named; a pod that the ledger does not know goes by its id."""
    rows = [row for row in desk.rows() if row.status != "not asked"]
    if not jobs:
        return [row for row in rows if row.pod]
    chosen = []
    for job in jobs:
        matches = [r for r in rows if job in (r.pod, r.name)]
        if not matches:
            entry = desk.find(job)
            matches = [r for r in rows if r.job == entry.job]
        if not matches:
            click.echo(f"{job}: has no pod running", err=True)
        chosen += [r for r in matches if r.pod and r not in chosen]
    return chosen


def _stop(desk: _Desk, row: Row) -> float | None:
    """End one pod: through its job where that lies here, so that results come home first."""
    from atlas.remote import overview

    entry = desk.ledger.find(row.name)
    folder = overview.folder_of(entry) if entry else None
    provider = desk.open(row.provider, entry, row.pod)
    if folder is not None:
        from atlas.remote import job

        try:
            job.stop(folder, provider, desk.ledger, desk.clock, desk.say)
        except AtlasError as error:
            desk.say("stop", f"{folder}: not fetched: {error}")
    return overview.end(provider, desk.ledger, desk.clock, row.pod or "", "stopped")


@remote.command()
@_job
@click.argument("command", nargs=-1)
@json_option
def ssh(job: str, command: tuple[str, ...], as_json: bool) -> None:
    """Open a shell on a job's machine, its host key checked, or run COMMAND there."""
    import os

    desk = _Desk()
    folder, provider = desk.folder(job)
    from atlas.remote import job as jobs
    from atlas.remote.keys import keyless

    argv = [*jobs.ssh_command(folder, provider), *command]
    if as_json:
        print_json({"argv": argv})
        return
    os.execvpe(argv[0], argv, keyless())


@remote.command()
@click.option("--gpu", metavar="NAME", help="This one instead of the cheapest.")
@_yes
@json_option
def check(gpu: str | None, yes: bool, as_json: bool) -> None:
    """Prove the whole way for cents: key, pods, then the cheapest GPU pod and its kernel table."""
    from atlas.remote.preflight import money

    desk = _Desk()
    provider = desk.open("runpod")
    account = provider.account()
    balance = "" if account.balance is None else f", balance {money(account.balance)}"
    click.echo(f"key accepted: {account.user}{balance}", err=True)
    if failed := desk.warn():
        click.get_current_context().exit(failed)
    click.echo(f"{len(desk.rows())} pods of atlas run now", err=True)
    offer = _cheapest(provider, gpu)
    click.echo(f"the check takes {offer.gpu}, {money(offer.price)}/h, about ten minutes", err=True)
    if not yes:
        click.confirm("Create the pod?", abort=True, err=True)
    from atlas.remote import job as jobs

    found = jobs.check(offer, provider, desk.ledger, desk.clock, desk.say)
    if as_json:
        print_json({"account": asdict(account), **found})
    else:
        click.echo(found["doctor"])
        click.echo(f"bill {money(found['cost'])}")


def _cheapest(provider: Provider, gpu: str | None) -> Any:
    from atlas.remote import preflight
    from atlas.remote.plan import Request

    request = Request(None, (), Path(), Path(), provider.name, gpu=(gpu,) if gpu else ())
    return preflight.pick(request, provider.offers())[0]


@remote.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--format", "engine", type=click.Choice(["skypilot", "dstack", "slurm"]), required=True
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Dataset folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder there.")
@click.option("--gpu", default="RTX 4090", show_default=True)
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="A node.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--max-hours", type=click.FloatRange(0, min_open=True), default=24.0, show_default=True
)
@click.option("--file", type=click.Path(path_type=Path), help="Write it there, not to the screen.")
@json_option
def export(
    config: str, overrides: tuple[str, ...], engine: str, file: Path | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Write the job file for SkyPilot, dstack or sbatch, for who has outgrown one pod."""
    from atlas.files import write_text
    from atlas.remote import export as exports

    text = exports.write(engine, exports.Task(config, overrides, **options))
    if file is not None:
        write_text(file, text)
    if as_json:
        print_json({"format": engine, "file": str(file) if file else None, "text": text})
    else:
        click.echo(file if file else text, nl=bool(file))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "since": row["since"].isoformat() if row["since"] else None}
