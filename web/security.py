"""What stands before every route: who may ask, how much they may send, what the page may load.

The server has no users and no secrets, but any web site the user visits can send requests to a
port of this machine. The Host check stops DNS rebinding, the missing CORS headers keep answers
from other origins, and the Content-Security-Policy keeps the page from asking anybody else.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY = 64 * 1024  # bytes; a request with 1000 latent values has 20 kB

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
    """ASGI middleware: check the host, bound the body, add the headers.

    Parameters
    ----------
    app : ASGI application
    hosts : sequence of str
        Names under which this server may be addressed, without a port.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = LOOPBACK) -> None:
        self.app = app
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it with 400 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if host_name(Headers(scope=scope).get("host", "")) not in self.hosts:
            refusal = JSONResponse({"detail": "this server answers on this machine only"}, 400)
            await refusal(scope, receive, send_with_headers)
            return
        messages = await _read_body(receive)
        if messages is None:
            refusal = JSONResponse({"detail": f"a request has at most {MAX_BODY} bytes"}, 413)
            await refusal(scope, receive, send_with_headers)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send_with_headers)


def host_name(host: str) -> str:
    """Return the name in a Host header: ``[::1]:8000`` gives ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _read_body(receive: Receive) -> list[Message] | None:
    """Collect the messages of a body; None if it is too long."""
    messages: list[Message] = []
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            return None
        messages.append(message)
        if not message.get("more_body", False):
            return messages
