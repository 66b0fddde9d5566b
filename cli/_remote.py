"""What `atlas train --remote` and `atlas remote` share: options, lines with their time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from atlas.errors import OptionError
from atlas.remote import PROVIDERS

if TYPE_CHECKING:
    from atlas.remote.provider import Clock, Provider

_positive = click.FloatRange(min=0, min_open=True)
_OPTIONS = (
    click.option("--remote", type=click.Choice([*PROVIDERS]), help="Train there, fetch the run."),
    click.option("--gpu", multiple=True, metavar="NAME",
                 help="RTX 4090, A100; repeat it: the next one where none is left."),
    click.option("--gpus", type=click.IntRange(1), default=1, help="GPUs of one machine."),
    click.option("--max-cost", type=_positive, metavar="USD", help="The pod ends itself there."),
    click.option("--max-hours", type=_positive, metavar="H", help="As --max-cost, in hours."),
    click.option("--region", help="Data centre (runpod)."),
    click.option("--volume", help="Network volume, by its id (runpod)."),
    click.option("--host", metavar="[USER@]HOST[:PORT]", help="The machine (ssh)."),
    click.option("--transport", type=click.Choice(["rest", "sdk"]), default="rest",
                 help="How RunPod is spoken to; the SDK needs the extra runpod-sdk."),
    click.option("--detach", is_flag=True, help="Leave it running; atlas remote logs, pull."),
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.option("--dry-run", is_flag=True, help="Show the plan; create nothing."),
    click.option("--json", "as_json", is_flag=True, help="The plan of --dry-run as JSON."),
)  # fmt: skip
_LOCAL = ("config", "overrides", "data", "out", "resume", "force", "remote")
_OF = {"region": "runpod", "volume": "runpod", "transport": "runpod", "host": "ssh"}


def remote_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `atlas train --remote`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_options(context: click.Context, remote: str | None) -> None:
    """Refuse options that this run has no use for."""
    for option in context.command.params:
        given = context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        if not given or option.name in _LOCAL:
            continue
        flag = option.opts[0]
        if remote is None:
            raise OptionError(f"{flag}: only together with --remote")
        if remote != _OF.get(str(option.name), remote):
            raise OptionError(f"{flag}: only with --remote {_OF[str(option.name)]}")
    if remote == "ssh" and context.params["host"] is None:
        raise OptionError("--host: --remote ssh needs the machine's name")
    if context.params["as_json"] and not context.params["dry_run"]:
        raise OptionError("--json: only together with --dry-run")


class Teller:
    """Prints each step with the time since the beginning; log lines of the job as they are."""

    def __init__(self, clock: Clock, quiet: bool = False) -> None:
        self._clock, self._begun, self._quiet = clock, clock.now(), quiet

    def __call__(self, step: str, text: str) -> None:
        """Print one line on standard error, so that standard output stays for results."""
        if self._quiet:
            return
        if step == "log":
            click.echo(text.rstrip("\n"), err=True)
            return
        click.echo(f"{elapsed(self._clock.now() - self._begun)}  {text}", err=True)


def elapsed(time: timedelta) -> str:
    """Write minutes and seconds, hours where there are any: 00:42, 1:02:03."""
    minutes, seconds = divmod(max(int(time.total_seconds()), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def connect(
    name: str, clock: Clock, *, transport: str = "rest", host: str | None = None
) -> Provider:
    """Open a provider; what it needs here, a key say, is asked for when it is first called."""
    return PROVIDERS[name](clock=clock, transport=transport, host=host)
