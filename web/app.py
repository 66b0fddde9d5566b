"""The application: the API, and the built front end beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from atlas import __version__
from atlas.inference import Atlas

from .api import create_router
from .security import LOOPBACK, Guard

STATIC = Path(__file__).parent / "static"
NOT_BUILT = "the page is not built; run `make frontend` in the source tree"


def create_app(atlas: Atlas, *, static: Path = STATIC, hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """Build the application over one loaded model.

    Parameters
    ----------
    atlas : Atlas
        The model to show.
    static : Path
        Folder of the built front end.
    hosts : sequence of str
        Names under which the server may be addressed.
    """
    # No /docs: its page loads scripts from elsewhere. /openapi.json describes the API.
    app = FastAPI(title="atlas", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, hosts=hosts)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.include_router(create_router(atlas))
    if (static / "index.html").is_file():
        app.mount("/", StaticFiles(directory=static, html=True), name="static")
    else:
        app.add_api_route("/", _not_built, include_in_schema=False)
    return app


def _not_built() -> PlainTextResponse:
    return PlainTextResponse(NOT_BUILT, 404)


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer with one line. The offending value stays out: NaN, for one, is not JSON."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        status, line = 422, f"{where}: {first['msg']}" if where else first["msg"]
    else:
        assert isinstance(error, HTTPException)
        status, line = error.status_code, str(error.detail)
    line = " ".join(line.encode("utf-8", "replace").decode().split())
    return JSONResponse({"detail": line}, status)
