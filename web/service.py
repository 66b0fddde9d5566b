"""What the routes share: the model, its studies, the desks, the answers given before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import Header, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel

from atlas.errors import AtlasError
from atlas.explore import directions
from atlas.inference import Atlas

from .desk import Desk, Full, Superseded
from .library import Library
from .recent import Answer, Recent
from .schemas import Problem

T = TypeVar("T")

WAITING, WAITING_LONG = 32, 8  # requests in the two lines
RECENT_BYTES = 64 << 20
PATIENCE = 60.0  # seconds that a request waits for the studies to be read

Client = Annotated[
    str | None, Header(alias="X-Atlas-Client", max_length=64, pattern="^[A-Za-z0-9_.:-]*$")
]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {
        "model": Problem,
        "description": "not a request, or of a host or site that may not ask",
    },
    401: {"model": Problem, "description": "the token is missing"},
    409: {"model": Problem, "description": "superseded by a newer request of the same client"},
    413: {"model": Problem, "description": "the body is too long"},
    422: {"model": Problem, "description": "a value is refused; `detail` says which in one line"},
    429: {"model": Problem, "description": "too many wait; come again after Retry-After seconds"},
}
MISSING: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "there is none; `detail` says why"}
}
BINARY: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "description": "volumes one after another, float16, little endian, x fastest; "
        "value = raw * scale, see the headers X-Atlas-*",
    },
}


class Service:
    """One loaded model behind the routes.

    Attributes
    ----------
    atlas : Atlas
    run : Path or None
        The model's folder; None for the released one.
    library : Library
    quick, long : Desk
        Single maps; and what takes many of them, which must not hold the sliders up.
    """

    def __init__(self, atlas: Atlas, run: Path | None, library: Library) -> None:
        self.atlas, self.run, self.library = atlas, run, library
        self.quick, self.long = Desk(WAITING), Desk(WAITING_LONG)
        self._recent = Recent(RECENT_BYTES)
        self._topics = directions.stored(run)  # AtlasError at the start, not at a request

    async def do(self, work: Callable[[], T], key: Hashable | None = None, long: bool = False) -> T:
        """Run work at a desk; what it refuses becomes 422, a full line 429, an older one 409."""
        try:
            return await (self.long if long else self.quick).do(work, key)
        except AtlasError as error:
            raise HTTPException(422, str(error)) from None
        except Superseded:
            raise HTTPException(409, "superseded by a newer request") from None
        except Full:
            raise HTTPException(429, "too many requests wait", {"Retry-After": "1"}) from None

    async def kept(
        self,
        asked: Hashable,
        work: Callable[[], Answer],
        key: Hashable | None = None,
        long: bool = False,
    ) -> Answer:
        """Return what was made before, else make it and keep it."""
        answer = self._recent.get(asked)
        if answer is None:
            answer = await self.do(work, key, long)
            self._recent.put(asked, answer)
        return answer

    async def answer(
        self,
        body: BaseModel,
        work: Callable[[], Answer],
        client: str | None,
        media_type: str = "application/octet-stream",
        long: bool = False,
    ) -> Response:
        """Answer a request; the class of its body stands for its route."""
        route = type(body).__name__
        # Not the question itself: 5,000 peaks are a hundred times as long as their code.
        asked = (route, hashlib.sha256(body.model_dump_json().encode()).digest())
        answer = await self.kept(asked, work, (client, route) if client else None, long)
        return Response(answer.body, media_type=media_type, headers=answer.headers)

    @property
    def topics(self) -> directions.Topics | None:
        """What the directions go along with: as the model's folder says, or once it is computed."""
        return self._topics or self.library.topics

    def open_library(self) -> None:
        """Begin to read the studies, and to name the directions where nobody has."""
        find = None if self._topics else lambda studies: directions.topics(self.atlas, studies)
        self.library.open(find, lambda: self.quick.busy or self.long.busy)

    async def studies(self) -> Any:
        """Return the studies once they are read; None where there are none."""
        self.open_library()
        with anyio.move_on_after(PATIENCE):
            while not self.library.ready:
                await anyio.sleep(0.05)
        if not self.library.ready:
            raise HTTPException(429, "the studies are still being read", {"Retry-After": "10"})
        return self.library.studies


def unless_cached(
    request: Request,
    body: bytes,
    media_type: str = "application/json",
    headers: dict[str, str] | None = None,
) -> Response:
    """Return the body with its ETag, or 304 where the browser has it already."""
    headers = {
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",  # keep it, but ask: another run may be served here next
        **(headers or {}),
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
