"""atlas export."""

from __future__ import annotations

from pathlib import Path

import click

from atlas.errors import OptionError

from ._options import run_or_released

_path = click.Path(path_type=Path)


@click.command()
@run_or_released
@click.option("--onnx", type=_path, metavar="FILE", help="Write imputer and decoder as ONNX.")
def export(run: Path | None, onnx: Path | None) -> None:
    """Write the model of RUN for other programs.

    Without RUN, the released model.
    """
    if onnx is None:
        raise OptionError("name what to write: --onnx FILE")
    from atlas import export as writer
    from atlas.inference import Atlas

    atlas = Atlas.load(run)
    writer.write_onnx(atlas, onnx)
    click.echo(onnx)
