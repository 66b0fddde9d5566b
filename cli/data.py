"""atlas data: prepare, cache, report, show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atlas.data.sources import SOURCES

from ._options import dataset_argument, json_option, print_json

if TYPE_CHECKING:
    from atlas.data.dataset import Dataset

_path = click.Path(path_type=Path)


@click.group()
def data() -> None:
    """Prepare, look at and cache datasets."""


@data.command()
@click.option("--source", type=click.Choice(list(SOURCES)), required=True, help="Where from.")
@click.option("--data-dir", type=_path, help="Folder (nimads: or file) of the source.")
@click.option("--out", type=_path, required=True, help="Dataset folder.")
@click.option(
    "--stage",
    type=click.Choice(["fetch", "clean", "validate", "split"]),
    help="Run one stage, reading and writing OUT.stages; by default all four at once.",
)
@click.option("--subset", type=click.IntRange(1), metavar="N", help="Draw N studies, stratified.")
@click.option("--splits", type=_path, help="Inherit a split: splits.json or a CSV of id,split.")
@click.option(
    "--join",
    "join_texts",
    metavar="FILE:KEY:FIELD",
    multiple=True,
    help="Fill a field from a table; FIELD=COLUMN where the column has another name. Repeat.",
)
@click.option(
    "--space-policy",
    type=click.Choice(["label", "none"]),
    default="label",
    show_default=True,
    help="Convert peaks labelled Talairach to MNI, or nothing.",
)
@click.option(
    "--duplicates",
    type=click.Choice(["study", "table", "none"]),
    default="study",
    show_default=True,
    help="Where a peak that repeats an earlier one is removed.",
)
@click.option(
    "--tolerance",
    "tolerance_mm",
    type=click.FloatRange(0, 20),
    default=0.0,
    show_default=True,
    metavar="MM",
    help="How near a repeat lies; 0: equal after rounding to 1 mm.",
)
@click.option(
    "--max-distance",
    "max_distance_mm",
    type=click.FloatRange(0),
    metavar="MM",
    help="Remove peaks farther than this from the brain mask; by default they stay.",
)
@click.option(
    "--min-peaks",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Drop studies with fewer peaks.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of subset and split."
)
@json_option
def prepare(
    out: Path, stage: str | None, join_texts: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Read a source, clean it, validate it, split it, write a dataset folder."""
    from atlas.data.joins import Join
    from atlas.data.prepare import Settings, prepare, run_stage

    settings = Settings(joins=tuple(map(Join.parse, join_texts)), **options)
    if stage:
        click.echo(run_stage(stage, settings, out))
        return
    dataset = prepare(settings, out)
    if as_json:
        print_json(dataset.info)
    else:
        _tell(dataset)


def _tell(dataset: Dataset) -> None:
    for row in dataset.info["funnel"]:
        changed = f"  ({row['changed']:,})" if row["changed"] else ""
        click.echo(f"{row['studies']:8,} studies {row['peaks']:9,} peaks  {row['step']}{changed}")
    for name, count in dataset.coverage().items():
        if name != "fwhm":  # known: the kernel's, not the study's
            click.echo(f"{count:8,} studies with {name}")
    sizes = ", ".join(f"{split} {len(ids)}" for split, ids in dataset.splits.items())
    click.echo(f"{dataset.path}: {sizes}")


@data.command()
@dataset_argument
@click.option("--resolution", type=click.Choice(["2", "4"]), default="4", show_default=True)
@click.option("--fwhm", type=float, multiple=True, default=[10.0], help="Kernel widths in mm.")
@click.option("--url", help="Elsewhere: file:///FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER.")
def cache(dataset: Path, resolution: str, fwhm: tuple[float, ...], url: str | None) -> None:
    """Splat every study once into a TensorStore volume cache, by default inside the dataset."""
    from atlas.data import cache as stage
    from atlas.data.dataset import read

    if any(not 2 <= width <= 40 for width in fwhm):
        raise click.BadParameter("widths must lie between 2 and 40 mm", param_hint="--fwhm")
    click.echo(stage.build(read(dataset), int(resolution), fwhm, url))


@data.command()
@dataset_argument
@click.option("--out", type=_path, help="The page; by default DATASET/report.html.")
def report(dataset: Path, out: Path | None) -> None:
    """Write one HTML page: funnel, repeats, bounds, coverage, years, peak density, examples."""
    from atlas.data.dataset import read
    from atlas.data.report import write

    click.echo(write(read(dataset), out))


@data.command()
@dataset_argument
@click.argument("study")
@click.option("--out", type=_path, help="The picture; by default STUDY.png here.")
def show(dataset: Path, study: str, out: Path | None) -> None:
    """Draw one study: its peaks, its map, what is known of it."""
    from atlas.data.dataset import read
    from atlas.data.show import show as draw

    found = read(dataset)
    found.study_row(study)
    click.echo(draw(found, study, out or Path(f"{study}.png")))
