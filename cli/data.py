"""atlas data: prepare, cache."""

from __future__ import annotations

from pathlib import Path

import click

from atlas.data.sources import SOURCES

from ._options import dataset_argument, json_option, print_json


@click.group()
def data() -> None:
    """Prepare and cache datasets."""


@data.command()
@click.option("--source", type=click.Choice(list(SOURCES)), required=True, help="Where from.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the source's files.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Dataset folder.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split.")
@click.option(
    "--space-policy",
    type=click.Choice(["label", "none"]),
    default="label",
    show_default=True,
    help="Convert peaks labelled Talairach to MNI, or nothing.",
)
@json_option
def prepare(
    source: str, data_dir: Path | None, out: Path, seed: int, space_policy: str, as_json: bool
) -> None:
    """Read a source, clean it, split it, write a dataset folder."""
    from atlas.data import prepare as stage

    dataset = stage.prepare(source, out, data_dir, seed, space_policy)  # type: ignore[arg-type]
    if as_json:
        print_json(dataset.info)
        return
    for step, count in dataset.info["funnel"].items():
        click.echo(f"{count:8,}  {step.replace('_', ' ')}")
    for name, count in dataset.coverage().items():
        if name != "fwhm":  # known: the kernel's, not the study's
            click.echo(f"{count:8,}  studies with {name}")
    sizes = ", ".join(f"{split} {len(ids)}" for split, ids in dataset.splits.items())
    click.echo(f"{out}: {sizes}")


@data.command()
@dataset_argument
@click.option("--resolution", type=click.Choice(["2", "4"]), default="4", show_default=True)
@click.option("--fwhm", type=float, multiple=True, default=[10.0], help="Kernel widths in mm.")
def cache(dataset: Path, resolution: str, fwhm: tuple[float, ...]) -> None:
    """Splat every study once into a TensorStore volume cache beside the dataset."""
    from atlas.data import cache as stage
    from atlas.data.dataset import read

    if any(not 2 <= width <= 40 for width in fwhm):
        raise click.BadParameter("widths must lie between 2 and 40 mm", param_hint="--fwhm")
    click.echo(stage.build(read(dataset), int(resolution), fwhm))
