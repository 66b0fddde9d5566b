"""`atlas serve`: show a trained atlas in the browser."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from atlas.errors import AtlasError, OptionError, require

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")


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
    help="Address to listen on; others than this machine's own need --token.",
)
@click.option(
    "--token",
    envvar="ATLAS_TOKEN",
    show_envvar=True,
    help="What every request must bring: at least 16 letters and digits, as openssl rand -hex 16.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Dataset to take studies from, if not the run's own.",
)
def serve(run: Path | None, port: int, host: str, token: str | None, data: Path | None) -> None:
    """Show the model of RUN in the browser, with a slider for every direction and field.

    Without RUN, the released model.
    """
    if host not in LOOPBACK and not token:
        raise OptionError(f"--host {host}: others could ask this server too; give a --token")
    require("fastapi", "web")
    uvicorn = require("uvicorn", "web")

    from atlas.web.app import NOT_BUILT, STATIC, create_app
    from atlas.web.library import find
    from atlas.web.security import TOKEN

    if token is not None and not TOKEN.fullmatch(token):
        raise OptionError("--token: expected 16 to 128 of A-Z a-z 0-9 _ -, as openssl rand -hex 16")
    if not (STATIC / "index.html").is_file():
        raise AtlasError(NOT_BUILT)
    # The port is taken before the model is loaded: a conflict shows at once, and nobody else can
    # take it in between.
    with _listen(host, port) as listener:
        from atlas.inference import Atlas

        # Any name in the Host header: who listens on all addresses has names that we do not know.
        hosts = None if host in ANY else (*LOOPBACK, host.lower())
        app = create_app(
            Atlas.load(run), run=run, library=find(run, data), hosts=hosts, token=token
        )
        address = _address(host, listener.getsockname()[1], token)
        click.echo(f"atlas is at {address} (Ctrl-C stops it)")
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", server_header=False)
        )
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # the usual end of a server, no failure
            click.echo("stopped")


def _address(host: str, port: int, token: str | None) -> str:
    """Where to point the browser: this machine's name where every address is listened on."""
    name = socket.gethostname() if host in ANY else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}" + (f"/?token={token}" if token else "")


def _listen(host: str, port: int) -> socket.socket:
    """Open the port, or say in one line why not."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise AtlasError(f"--host {host}: no address of this machine") from None
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as after a quick restart
        listener.bind(place)
        listener.listen()
    except OSError as error:
        listener.close()
        raise AtlasError(
            f"port {port} cannot be used ({error.strerror}): choose another with --port"
        ) from None
    return listener
