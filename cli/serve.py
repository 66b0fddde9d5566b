"""`atlas serve`: show a trained atlas in the browser."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from atlas.errors import AtlasError, OptionError, require

LOOPBACK = {"127.0.0.1": socket.AF_INET, "localhost": socket.AF_INET, "::1": socket.AF_INET6}


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; only this machine's own.",
)
def serve(run: Path | None, port: int, host: str) -> None:
    """Show the model of RUN in the browser, with a slider for every direction and field.

    Without RUN, the released model.
    """
    if host not in LOOPBACK:
        raise OptionError(f"--host {host}: only this machine is served, use 127.0.0.1")
    require("fastapi", "web")
    uvicorn = require("uvicorn", "web")

    from atlas.web.app import NOT_BUILT, STATIC, create_app

    if not (STATIC / "index.html").is_file():
        raise AtlasError(NOT_BUILT)
    # The port is taken before the model is loaded: a conflict shows at once, and nobody else can
    # take it in between.
    with _listen(host, port) as listener:
        from atlas.inference import Atlas

        app = create_app(Atlas.load(run))
        address = f"[{host}]" if ":" in host else host
        click.echo(f"atlas is at http://{address}:{listener.getsockname()[1]} (Ctrl-C stops it)")
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", server_header=False)
        )
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # the usual end of a server, no failure
            click.echo("stopped")


def _listen(host: str, port: int) -> socket.socket:
    """Open the port, or say in one line why not."""
    listener = socket.socket(LOOPBACK[host])
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as after a quick restart
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise AtlasError(
            f"port {port} cannot be used ({error.strerror}): choose another with --port"
        ) from None
    return listener
