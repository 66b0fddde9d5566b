"""atlas train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._remote import check_options, remote_options


@click.command()
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Dataset folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option(
    "--force",
    is_flag=True,
    help="Write over an older run; with --resume, go on with another configuration.",
)
@remote_options
@click.pass_context
def train(
    context: click.Context,
    /,
    config: str | None,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    resume: bool,
    force: bool,
    remote: str | None,
    **options: Any,
) -> None:
    """Train a model. CONFIG is a YAML file or a shipped name; KEY=VALUE overrides, train.lr=1e-3.

    With --resume and no CONFIG the run's own configuration is used. With --remote it is trained on
    another machine, for at most --max-cost, and the run folder comes back.
    """
    check_options(context, remote)
    if config and "=" in config:
        overrides, config = (config, *overrides), None
    if remote is not None:
        from atlas.remote.plan import Request

        # A client that takes the job up may be called in another folder.
        request = Request(
            config, overrides, data.resolve(), out, remote, resume=resume, force=force,
            **{name: options[name] for name in _ASKED},
        )  # fmt: skip
        context.exit(
            _train_there(request, **{n: options[n] for n in ("yes", "dry_run", "as_json")})
        )
    _train_here(config, overrides, data, out, resume, force)


_ASKED = ("gpu", "gpus", "max_cost", "max_hours", "region", "volume", "host", "transport", "detach")


def _train_here(
    config: str | None,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    resume: bool,
    force: bool,
) -> None:
    from atlas import config as configuration
    from atlas.data import dataset

    if config is None and resume and (out / "config.yaml").is_file():
        config = str(out / "config.yaml")
    resolved = configuration.load(config, overrides)
    prepared = dataset.read(data)

    from pytorch_lightning.utilities import rank_zero_only

    from atlas.training.run import train as run

    done = run(resolved, prepared, out, resume=resume, force=force)
    rank_zero_only(click.echo)(done)  # not by each process of train.devices


def _train_there(request: Any, *, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Show the plan, ask, and run the job; imports no torch."""
    from atlas import progress
    from atlas.remote import plan
    from atlas.remote.clock import SystemClock
    from atlas.remote.ledger import Ledger

    from ._options import print_json
    from ._remote import Teller, connect

    clock = SystemClock()
    provider = connect(request.provider, clock, transport=request.transport, host=request.host)
    say = Teller(clock, progress.quiet)
    made = plan.make(request, provider, say)
    if as_json:
        print_json(plan.as_dict(made))
    elif dry_run or not progress.quiet:
        click.echo("\n".join(plan.lines(made)), err=not dry_run)
    if dry_run:
        return 0
    if provider.bills and not yes:
        click.confirm("Create the pod?", abort=True, err=True)
    from atlas.remote import job

    code = job.launch(made, provider, Ledger(), clock, say)
    if code == 0:
        click.echo(request.out)
    return code
