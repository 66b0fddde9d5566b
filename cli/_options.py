"""What several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atlas.errors import AtlasError

if TYPE_CHECKING:
    from atlas.inference import Atlas
    from atlas.metadata import Value

run_argument = click.argument("run", type=click.Path(path_type=Path))
run_or_released = click.argument("run", required=False, type=click.Path(path_type=Path))
dataset_argument = click.argument("dataset", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Dataset, if not the run's own."
)
split_option = click.option(
    "--split", type=click.Choice(["val", "test"]), default="test", show_default=True
)
set_option = click.option(
    "--set",
    "settings",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Metadata, e.g. n=40, task=language, task=language:2,memory:1. Repeat for more fields.",
)


def parse_settings(settings: Sequence[str], atlas: Atlas) -> dict[str, Value]:
    """Turn ``--set`` options into metadata of a model; a mistake is a usage error (exit code 2)."""
    out: dict[str, Value] = {}
    try:
        for setting in settings:
            name, equals, value = setting.partition("=")
            if not equals:
                raise AtlasError(f"{setting!r}: expected FIELD=VALUE")
            if name in out:
                raise AtlasError(f"{name}: set twice")
            out[name] = atlas.field(name).parse(value)
    except AtlasError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None
    return out


def print_json(value: Any) -> None:
    """Write a result for machines to standard output."""
    click.echo(json.dumps(value, indent=1))
