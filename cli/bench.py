"""atlas bench: predict, impute."""

from __future__ import annotations

from pathlib import Path

import click

from atlas.files import write_text

from ._options import data_option, json_option, print_json, run_argument, split_option

_path = click.Path(path_type=Path)


@click.group()
def bench() -> None:
    """Measure models beside honest peers."""


@bench.command()
@click.argument("runs", nargs=-1, type=_path, metavar="[RUN]...")
@click.option("--data", type=_path, required=True, help="Dataset whose splits are used.")
@click.option("--tasks", default="a,b,c,d", show_default=True, help="Which of a, b, c, d.")
@split_option
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Codes of the prior that a run's density averages over; of the posterior an eighth.",
)
@click.option("--count-studies", type=click.IntRange(2), help="(d) scores so many; default: all.")
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Codes of the posterior that (d) decodes, study by study.",
)
@click.option("--out", type=_path, help="Also write the result to this JSON file.")
@json_option
def predict(
    runs: tuple[Path, ...],
    data: Path,
    tasks: str,
    split: str,
    samples: int,
    count_studies: int | None,
    draws: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score RUNs beside linear peers: unseen studies, half to half, reconstruction, counts."""
    import json

    from atlas.data.dataset import read
    from atlas.evaluation.benchmark import check_tasks, run
    from atlas.evaluation.run_predictor import RunPredictor
    from atlas.evaluation.table import print_benchmark

    wanted = check_tasks(tasks.split(","))
    predictors = [RunPredictor(folder, samples) for folder in runs]
    results = run(read(data), predictors, wanted, split, count_studies, draws)
    if out:
        write_text(out, json.dumps(results, indent=1))
    if as_json:
        print_json(results)
    else:
        print_benchmark(results)


@bench.command()
@run_argument
@click.option("--folds", type=_path, required=True, help="CSV of pmid, n, fold (hand labels).")
@data_option
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
