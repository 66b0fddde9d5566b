"""atlas bench impute."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import json_option, print_json, run_argument

_path = click.Path(path_type=Path)


@click.command()
@run_argument
@click.option("--folds", type=_path, required=True, help="CSV of pmid, n, fold (hand labels).")
@click.option("--data", type=_path, help="Dataset, if not the run's own.")
@json_option
def impute(run: Path, folds: Path, data: Path | None, as_json: bool) -> None:
    """Sample size from year, topics and RUN's codes: the head beside ridge, fold by fold."""
    from atlas.data.dataset import read
    from atlas.evaluation.sample_size import of_run

    results = of_run(run, folds, read(data) if data else None)
    if as_json:
        print_json(results)
        return
    skipped = f", {results['absent']} not in the dataset" if results["absent"] else ""
    click.echo(f"{results['studies']} labelled studies in {results['folds']} folds{skipped}")
    click.echo(f"{'':36}{'R2':>8}{'NLL':>8}{'MAE':>8}{'90 %':>8}")
    for name, scores in results["methods"].items():
        cells = (scores[k][0] for k in ("r2", "nll", "mae", "coverage_90"))
        click.echo(f"{name:36}" + "".join(f"{cell:8.3f}" for cell in cells))
