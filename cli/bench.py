"""atlas bench: predict."""

from __future__ import annotations

from pathlib import Path

import click

from atlas.files import write_text

from ._options import json_option, print_json

_path = click.Path(path_type=Path)


@click.group()
def bench() -> None:
    """Measure models beside honest peers."""


@bench.command()
@click.argument("runs", nargs=-1, type=_path, metavar="[RUN]...")
@click.option("--data", type=_path, required=True, help="Dataset whose splits are used.")
@click.option("--tasks", default="a,b,c", show_default=True, help="Which of a, b, c.")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Codes of the prior that a run's density averages over; of the posterior an eighth.",
)
@click.option("--out", type=_path, help="Also write the result to this JSON file.")
@json_option
def predict(
    runs: tuple[Path, ...],
    data: Path,
    tasks: str,
    split: str,
    samples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score RUNs beside linear peers: unseen studies, half to half, reconstruction."""
    import json

    from atlas.data.dataset import read
    from atlas.evaluation.benchmark import check_tasks, run
    from atlas.evaluation.run_predictor import RunPredictor
    from atlas.evaluation.table import print_benchmark

    wanted = check_tasks(tasks.split(","))
    predictors = [RunPredictor(folder, samples) for folder in runs]
    results = run(read(data), predictors, wanted, split)
    if out:
        write_text(out, json.dumps(results, indent=1))
    if as_json:
        print_json(results)
    else:
        print_benchmark(results)
