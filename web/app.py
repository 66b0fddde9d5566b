"""The application: the API, the built front end and the API's documentation beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from atlas import __version__
from atlas.inference import Atlas

from . import api, studies_api
from .library import Library
from .security import LOOPBACK, Guard
from .service import Service

STATIC = Path(__file__).parent / "static"
NOT_BUILT = "the page is not built; run `make frontend` in the source tree"
NO_STUDIES = "no studies: name a dataset with --data (atlas data prepare makes one)"


def create_app(
    atlas: Atlas,
    *,
    run: Path | None = None,
    library: Library | None = None,
    static: Path = STATIC,
    hosts: Sequence[str] | None = LOOPBACK,
    token: str | None = None,
) -> FastAPI:
    """Build the application over one loaded model.

    Parameters
    ----------
    atlas : Atlas
        The model to show.
    run : Path, optional
        Its folder; by default the released model's.
    library : Library, optional
        Studies beside it.
    static : Path
        Folder of the built front end.
    hosts : sequence of str, optional
        Names under which the server may be addressed; None: any.
    token : str, optional
        What every request must bring.
    """
    # FastAPI's own /docs loads scripts from elsewhere; ours comes from the built front end.
    app = FastAPI(title="atlas", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(_Compress)
    app.add_middleware(Guard, hosts=hosts, token=token)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse)
    service = Service(atlas, run, library or Library.none(NO_STUDIES))
    app.include_router(api.create_router(service))
    app.include_router(studies_api.create_router(service))
    swagger = static / "swagger" / "index.html"
    app.add_api_route("/docs", lambda: _page(swagger), include_in_schema=False)
    if (static / "index.html").is_file():
        app.mount("/", StaticFiles(directory=static, html=True), name="static")
    else:
        app.add_api_route("/", _not_built, include_in_schema=False)
    return app


class _Compress:
    """Compress for other machines, maps to a quarter: on loopback it costs more than it saves."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self._compressed = app, GZipMiddleware(app, minimum_size=1024, compresslevel=6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        pays = client is not None and client[0] not in LOOPBACK
        packed = scope.get("path", "").endswith((".gz", "/nifti"))
        await (self._compressed if pays and not packed else self.app)(scope, receive, send)


def _page(path: Path) -> Response:
    return FileResponse(path) if path.is_file() else _not_built()


def _not_built() -> PlainTextResponse:
    return PlainTextResponse(NOT_BUILT, 404)


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer with one line. The offending value stays out: NaN, for one, is not JSON."""
    headers = None
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        status, line = 422, f"{where}: {first['msg']}" if where else first["msg"]
    else:
        assert isinstance(error, HTTPException)
        status, line, headers = error.status_code, str(error.detail), error.headers
    line = " ".join(line.encode("utf-8", "replace").decode().split())
    return JSONResponse({"detail": line}, status, headers)
