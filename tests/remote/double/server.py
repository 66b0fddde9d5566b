"""The two ways to the double: in this process, or over HTTP on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from . import rest
from .cloud import Cloud


def _dispatch(
    cloud: Cloud, method: str, target: str, headers: dict[str, str], body: bytes
) -> rest.Reply:
    parts = urlsplit(target)
    if parts.path == "/graphql":
        from . import graphql

        return graphql.handle(cloud, headers, body)
    query = dict(parse_qsl(parts.query))
    return rest.handle(cloud, method, parts.path, query, headers, body)


def in_process(cloud: Cloud, timeout: float) -> httpx.Client:
    """A slow answer lets the cloud's clock pass; one beyond the timeout is none."""

    def send(request: httpx.Request) -> httpx.Response:
        headers = {k.lower(): v for k, v in request.headers.items()}
        target = request.url.raw_path.decode()
        reply = _dispatch(cloud, request.method, target, headers, request.read())
        if reply.delay:
            cloud.clock.sleep(min(reply.delay, timeout))
            if reply.delay > timeout:
                raise httpx.ReadTimeout("too slow", request=request)
        if reply.cut and reply.type != "text/event-stream":
            raise httpx.RemoteProtocolError("cut", request=request)
        content: Any = _cut_stream(reply.body) if reply.cut else reply.body
        more = {**reply.headers, "Content-Type": reply.type}
        return httpx.Response(reply.status, headers=more, content=content)

    return httpx.Client(transport=httpx.MockTransport(send), timeout=timeout)


def _cut_stream(body: bytes) -> Iterator[bytes]:
    yield body
    raise httpx.RemoteProtocolError("cut")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: Cloud

    def _serve(self) -> None:
        headers = {k.lower(): v for k, v in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", "0")))
        reply = _dispatch(self.cloud, self.command, self.path, headers, body)
        if reply.delay:
            time.sleep(reply.delay)
        with suppress(OSError):  # the client may have given up
            if reply.body or not reply.cut:
                self._answer(reply)
            if reply.cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, reply: rest.Reply) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Type": reply.type}.items():
            self.send_header(name, value)
        if reply.status != 204:
            missing = 100 if reply.cut else 0
            self.send_header("Content-Length", str(len(reply.body) + missing))
        self.end_headers()
        self.wfile.write(reply.body)
        self.wfile.flush()

    do_GET = do_POST = do_DELETE = _serve

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(cloud: Cloud) -> Iterator[str]:
    """Serve until the block ends; yields the base URL."""
    handler = type("Handler", (_Handler,), {"cloud": cloud})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
