"""atlas evaluate."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import data_option, json_option, print_json, run_argument, split_option


@click.command()
@run_argument
@data_option
@split_option
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Codes of the prior that an unseen study's density averages over.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="RUN2",
    help="Run of the baseline VAE on the same data, for the criteria; evaluated too.",
)
@click.option(
    "--unreversed",
    type=click.Path(path_type=Path),
    metavar="RUN3",
    help="Run trained with year.ramp=[1,1]: how well the year is read from its codes, beside.",
)
@click.option("--report/--no-report", default=True, help="Also write RUN/report/.")
@json_option
def evaluate(
    run: Path,
    data: Path | None,
    split: str,
    samples: int,
    baseline: Path | None,
    unreversed: Path | None,
    report: bool,
    as_json: bool,
) -> None:
    """Score RUN on held-out studies, beside mean map, PCA and ridge on the metadata."""
    from atlas.data.dataset import read
    from atlas.evaluation import report as pages
    from atlas.evaluation.evaluate import evaluate as score
    from atlas.evaluation.table import print_table

    results = score(run, read(data) if data else None, split, samples, baseline, unreversed)
    if report:
        pages.write(run, results)
    if as_json:
        print_json(results)
    else:
        print_table(results)
