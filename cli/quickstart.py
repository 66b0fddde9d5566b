"""atlas quickstart."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/quickstart"),
    show_default=True,
    help="Run folder.",
)
@click.option("--force", is_flag=True, help="Write over an older run.")
def quickstart(overrides: tuple[str, ...], out: Path, force: bool) -> None:
    """Go from the studies that NiMARE carries to a trained, evaluated atlas. No network needed."""
    import time

    from atlas.evaluation.table import print_table

    start = time.monotonic()
    from atlas.quickstart import quickstart as run

    results = run(out, overrides, force=force)
    print_table(results)
    click.echo(f"report: {out / 'report' / 'index.html'}")
    click.echo(f"done in {time.monotonic() - start:.0f} s; open the viewer with")
    click.echo(f"  atlas serve {out}")
