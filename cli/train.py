"""atlas train."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Dataset folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option(
    "--force",
    is_flag=True,
    help="Write over an older run; with --resume, go on with another configuration.",
)
def train(
    config: str | None,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    resume: bool,
    force: bool,
) -> None:
    """Train a model. CONFIG is a YAML file or a shipped name; KEY=VALUE overrides, train.lr=1e-3.

    With --resume and no CONFIG the run's own configuration is used.
    """
    from atlas import config as configuration
    from atlas.data import dataset

    if config and "=" in config:
        overrides, config = (config, *overrides), None
    if config is None and resume and (out / "config.yaml").is_file():
        config = str(out / "config.yaml")
    resolved = configuration.load(config, overrides)
    prepared = dataset.read(data)

    from pytorch_lightning.utilities import rank_zero_only

    from atlas.training.run import train as run

    done = run(resolved, prepared, out, resume=resume, force=force)
    rank_zero_only(click.echo)(done)  # not by each process of train.devices
