"""atlas validate."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import data_option, json_option, print_json, run_argument, split_option


@click.command()
@run_argument
@data_option
@split_option
@json_option
def validate(run: Path, data: Path | None, split: str, as_json: bool) -> None:
    """Hold RUN's latent space against its untrained model: PASS or FAIL each, and pictures."""
    from atlas.data.dataset import read
    from atlas.evaluation.criteria import verdict
    from atlas.evaluation.validate import validate as check

    results = check(run, read(data) if data else None, split)
    if as_json:
        print_json(results)
        return
    for one in results["checks"]:
        click.echo(f"{verdict(one)}  {one['name']}: {one['value']:.4g} ({one['bar']})")
    click.echo(run / "report" / "validation.html")
