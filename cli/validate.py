"""atlas validate."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import json_option, print_json, run_argument


@click.command()
@run_argument
@click.option("--data", type=click.Path(path_type=Path), help="Dataset, if not the run's own.")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
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
