"""atlas counterfactual."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import parse_settings, run_or_released, set_option


@click.command()
@run_or_released
@click.option("--study", required=True, help="Identifier of a study in the dataset.")
@set_option
@click.option("--data", type=click.Path(path_type=Path), help="Dataset, if not the run's own.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
def counterfactual(
    run: Path | None, study: str, settings: tuple[str, ...], data: Path | None, out: Path
) -> None:
    """Decode a study's code as it is and with other metadata; write maps and difference.

    Without RUN, the released model; --data then names the dataset.
    """
    from atlas import maps_file
    from atlas.data.dataset import read
    from atlas.evaluation.evaluate import find_dataset
    from atlas.inference import Atlas

    atlas = Atlas.load(run)
    changes = parse_settings(settings, atlas)
    if not changes:
        raise click.UsageError("give at least one --set FIELD=VALUE to change")
    if data is not None:
        dataset = read(data)
    elif run is not None:
        dataset = find_dataset(run)
    else:
        raise click.UsageError("the released model comes without studies: name a dataset, --data")
    row = dataset.study_row(study)
    metadata = atlas.usable(dataset.metadata[row])
    result = atlas.counterfactual(atlas.encode(dataset.peaks(row), metadata), metadata, changes)
    for path in maps_file.write_counterfactual(out, result, atlas, study, metadata, changes):
        click.echo(path)
    extrapolated = result.counterfactual.extrapolated
    if extrapolated:
        click.echo(f"extrapolated beyond the training data: {', '.join(extrapolated)}")
