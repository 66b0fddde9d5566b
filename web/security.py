"""What stands before every route: who may ask, how much they may send, what the page may load.

On this machine's own address the server has no users and no secrets, but any web site the user
visits can send requests to a port of this machine. The Host check stops DNS rebinding, the missing
CORS headers keep answers from other origins, Sec-Fetch-Site keeps their pages from giving us work,
and the Content-Security-Policy keeps the page from asking anybody else. On other addresses whoever
asks must know a token.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OWN_PAGE = ("same-origin", "none")  # of Sec-Fetch-Site, which browsers alone send; none: the user
MAX_BODY = 128 * 1024  # bytes; a request with 2 x 1000 latent values has 40 kB
BODIES = {  # routes that take more
    "/api/encode": 512 * 1024,  # 5,000 peaks
    "/api/encode-file": 4 << 20,
}
MAX_IMAGE = 32 << 20  # of /api/encode-file where the name is an image's
MAX_LARGE = 4  # bodies above MAX_BODY that are held at once
COOKIE = "atlas_token"
TOKEN = re.compile("[A-Za-z0-9_-]{16,128}")  # what a cookie and a URL hold as it is

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'self'",
            "img-src 'self' data: blob:",  # the font of the orientation letters is a data: image
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware: check host and token, bound the body, add the headers.

    Parameters
    ----------
    app : ASGI application
    hosts : sequence of str, optional
        Names under which this server may be addressed, without a port; None: any, which a token
        makes safe.
    token : str, optional
        What a request must bring: as ``Authorization: Bearer``, or in the cookie that the page
        gets when it is opened once with ``?token=``.
    """

    def __init__(
        self, app: ASGIApp, hosts: Sequence[str] | None = LOOPBACK, token: str | None = None
    ) -> None:
        self.app, self.token = app, token
        self.hosts = None if hosts is None else frozenset(hosts)
        self._large = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it with 400, 401, 413 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._stop(scope)
        if answer is not None:
            await answer(scope, receive, send_with_headers)
            return
        body = _Body(self, most_bytes(scope))
        try:
            refusal = await body.read(receive)
            await (refusal or self.app)(scope, body.replay(receive), send_with_headers)
        finally:
            body.close()

    def _stop(self, scope: Scope) -> Response | None:
        """Refuse who may not ask; let in who brings the token for the first time."""
        headers = Headers(scope=scope)
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in OWN_PAGE:
            return refuse("a page of another site may not ask", 400)
        if self.hosts is not None and host_name(headers.get("host", "")) not in self.hosts:
            return refuse("this server answers on this machine only", 400)
        if self.token is None:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        shown = dict(query).get("token")
        if scope["method"] == "GET" and scope["path"] == "/" and shown is not None:
            if not self._knows(shown):
                return refuse("the token is wrong", 401)
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            answer = RedirectResponse("/" + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(COOKIE, shown, httponly=True, samesite="strict", path="/")
            answer.headers["Cache-Control"] = "no-store"
            return answer
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._knows(bearer.strip()):
            return None
        if self._knows(_cookie(headers.get("cookie", ""))):
            return None
        line = "a token is needed: open the address that `atlas serve` printed"
        return refuse(line, 401, {"WWW-Authenticate": "Bearer"})

    def _knows(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(), str(self.token).encode())


class _Body:
    """The body of one request, read before the application sees it: never more than its limit."""

    def __init__(self, guard: Guard, most: int) -> None:
        self._guard, self._most, self._large = guard, most, False
        self._messages: list[Message] = []

    async def read(self, receive: Receive) -> Response | None:
        """Collect the messages; a response where there are too many bytes."""
        size = 0
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most:
                return refuse(f"a request has at most {self._most} bytes", 413)
            if size > MAX_BODY and not self._large:
                if self._guard._large >= MAX_LARGE:
                    return refuse("too many files at once", 429, {"Retry-After": "2"})
                self._guard._large += 1
                self._large = True
            self._messages.append(message)
            if not message.get("more_body", False):
                return None

    def replay(self, receive: Receive) -> Receive:
        """Return a `receive` that gives the messages again."""

        async def again() -> Message:
            return self._messages.pop(0) if self._messages else await receive()

        return again

    def close(self) -> None:
        """Forget the body."""
        self._messages.clear()
        self._guard._large -= self._large
        self._large = False


def refuse(line: str, status: int, headers: dict[str, str] | None = None) -> JSONResponse:
    """Say in one line why not."""
    return JSONResponse({"detail": line}, status, headers)


def most_bytes(scope: Scope) -> int:
    """Return how many bytes a request's body may have, by its route."""
    limit = BODIES.get(scope["path"], MAX_BODY)
    if scope["path"] == "/api/encode-file":
        name = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("name", "")
        if name.lower().endswith((".nii", ".nii.gz")):
            return MAX_IMAGE
    return limit


def host_name(host: str) -> str:
    """Return the name in a Host header: ``[::1]:8000`` gives ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
