"""atlas generate."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import parse_settings, run_or_released, set_option


@click.command()
@run_or_released
@set_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="map.nii.gz to write.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Draw the code from the prior; default: the prior's centre.",
)
def generate(run: Path | None, settings: tuple[str, ...], out: Path, seed: int | None) -> None:
    """Decode a map, its uncertainty and a JSON sidecar for given metadata.

    Without RUN, the released model.
    """
    import numpy as np

    from atlas import maps_file
    from atlas.inference import Atlas

    atlas = Atlas.load(run)
    metadata = parse_settings(settings, atlas)
    draw = np.random.default_rng(seed).standard_normal(atlas.latent) if seed is not None else None
    maps = atlas.decode(draw, metadata)
    for path in maps_file.write(out, maps, atlas, metadata, seed=seed):
        click.echo(path)
    if maps.extrapolated:
        click.echo(f"extrapolated beyond the training data: {', '.join(maps.extrapolated)}")
