"""atlas export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from atlas.errors import AtlasError, OptionError

from ._options import run_or_released

if TYPE_CHECKING:
    from atlas.inference import Atlas

_path = click.Path(path_type=Path)


@click.command()
@run_or_released
@click.option("--onnx", type=_path, metavar="FILE", help="Write imputer and decoder as ONNX.")
@click.option(
    "--html", type=_path, metavar="DIR", help="Write the page as a folder for any static host."
)
def export(run: Path | None, onnx: Path | None, html: Path | None) -> None:
    """Write the model of RUN for other programs, or as a page that needs no server.

    Without RUN, the released model.
    """
    if onnx is None and html is None:
        raise OptionError("name what to write: --onnx FILE, --html DIR, or both")
    from atlas.inference import Atlas

    atlas = Atlas.load(run)
    if onnx is not None:
        from atlas.export import write_onnx

        write_onnx(atlas, onnx)
        click.echo(onnx)
    if html is not None:
        _write_html(atlas, run, html)


def _write_html(atlas: Atlas, run: Path | None, folder: Path) -> None:
    from atlas import tab
    from atlas.explore import studies
    from atlas.web.app import STATIC

    known: studies.Studies | str
    try:
        known = studies.bundled()
    except AtlasError as error:
        known = str(error)
    wire = tab.write(atlas, folder, STATIC, run, known)
    listed = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in wire.items())
    click.echo(f"{folder} ({listed} on the wire)")
    click.echo(f"look at it: python -m http.server --directory {folder}")
