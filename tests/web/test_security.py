"""Who may ask, how much they may send, what the page may load."""

from __future__ import annotations

import re

import anyio
import pytest

from atlas.web.app import NOT_BUILT, STATIC, create_app
from atlas.web.security import (
    BODIES,
    COOKIE,
    LOOPBACK,
    MAX_BODY,
    MAX_IMAGE,
    Guard,
    host_name,
    most_bytes,
)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000"])
def test_this_machine_may_ask(client, host):
    assert client.get("/api/model", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "example.org",
        "example.org:8000",
        "127.0.0.1.example.org",
        "localhost.example.org",
        "",
        "[::1.example.org]",
        "127.0.0.1@example.org",
    ],
)
def test_a_name_bound_to_this_machine_by_someone_else_may_not(client, host):
    for response in (
        client.get("/api/model", headers={"Host": host}),
        client.get("/", headers={"Host": host}),
        client.post("/api/decode", json={}, headers={"Host": host}),
    ):
        assert response.status_code == 400
        assert response.json()["detail"] == "this server answers on this machine only"


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 400), ("same-site", 400), ("same-origin", 422), ("none", 422), (None, 422)],
)
def test_pages_of_other_sites_give_no_work(client, site, status):
    """They cannot read the answer, but a file takes a browser no leave to send."""
    headers = {"Sec-Fetch-Site": site} if site else {}
    assert client.post("/api/encode-file", content=b"-", headers=headers).status_code == status
    assert client.get("/", headers=headers).status_code == 200  # a link may lead here


def test_host_name():
    assert [host_name(h) for h in ("a:1", "[::1]:2", "::1", "A")] == ["a", "::1", "", "a"]


def test_a_long_body_is_refused(client):
    response = client.post("/api/decode", content=b" " * (MAX_BODY + 1))
    assert response.status_code == 413


def test_a_long_body_without_a_length_is_refused(client):
    response = client.post("/api/decode", content=(b" " * 1024 for _ in range(200)))
    assert response.status_code == 413


@pytest.mark.parametrize("path", ["/", "/api/model", "/api/nothing", "/../api.py"])
def test_every_answer_has_the_headers(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_refusals_have_the_headers_too(client):
    for response in (
        client.get("/", headers={"Host": "example.org"}),
        client.post("/api/decode", content=b" " * (MAX_BODY + 1)),
        client.post("/api/decode", json={"zz": 1}),
    ):
        assert "content-security-policy" in response.headers


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/assets/../../app.py", "//etc/passwd"]
)
def test_nothing_beside_the_built_page_is_served(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(("path", "start"), [("/", "./"), ("/docs", "/")])
def test_no_page_loads_scripts_from_elsewhere(client, path, start):
    assert client.get("/redoc").status_code == 404
    page = client.get(path).text
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(start) and source[:2] != "//" for source in sources)
    for source in sources:
        assert client.get(source.removeprefix(".")).status_code == 200
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page)  # nothing inline


def test_lock_file_names_no_host_but_the_public_registry():
    lock = (STATIC.parent / "frontend" / "package-lock.json").read_text()
    hosts = set(re.findall(r'"resolved": "https?://([^/"]*)', lock))
    assert hosts <= {"registry.npmjs.org"}


def test_a_page_that_is_not_built_says_how(served_atlas, client_of, tmp_path):
    response = client_of(create_app(served_atlas, static=tmp_path)).get("/")
    assert response.status_code == 404
    assert response.text == NOT_BUILT
    assert "make frontend" in NOT_BUILT


# ------------------------------------------------------------------ bodies


@pytest.mark.parametrize(
    ("path", "query", "most"),
    [
        ("/api/decode", b"", MAX_BODY),
        ("/api/encode", b"", BODIES["/api/encode"]),
        ("/api/encode-file", b"", 4 << 20),
        ("/api/encode-file", b"name=a.tsv", 4 << 20),
        ("/api/encode-file", b"name=a.nii.gz", MAX_IMAGE),
        ("/api/encode-file", b"name=A.NII", MAX_IMAGE),
        ("/api/decode", b"name=a.nii.gz", MAX_BODY),
        ("/api/nothing", b"", MAX_BODY),
        ("/", b"", MAX_BODY),
    ],
)
def test_each_route_has_its_limit(path, query, most):
    assert most_bytes({"path": path, "query_string": query}) == most


def test_a_file_may_be_larger_than_a_request(client):
    line = b"1 2 3\n"
    large = client.post("/api/encode-file", content=line * 40_000)
    assert large.json()["detail"] == "a study has more than 5000 peaks"  # read, at 240 kB
    assert client.post("/api/encode-file", content=line * 700_000).status_code == 413


async def upload(guard, statuses):
    """Send one large body; the status goes to `statuses`."""
    scope = {
        "type": "http",
        "path": "/api/encode-file",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "method": "POST",
    }

    async def receive():
        return {"type": "http.request", "body": bytes(MAX_BODY + 1), "more_body": False}

    async def send(message):
        statuses.extend([message["status"]] if "status" in message else [])

    await guard(scope, receive, send)


def test_large_bodies_are_held_a_few_at_a_time():
    """Four uploads stay open: the fifth is refused, and there is room when one ends."""
    statuses, held = [], []

    async def app(scope, receive, send):
        held.append(anyio.Event())
        await held[-1].wait()

    async def opened(count):
        while len(held) < count:
            await anyio.sleep(0)

    async def everything():
        guard = Guard(app)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(upload, guard, statuses)
            await opened(4)
            await upload(guard, statuses)
            assert statuses == [429]
            held[0].set()
            await anyio.sleep(0.01)
            group.start_soon(upload, guard, statuses)
            await opened(5)
            for event in held:
                event.set()
        assert statuses == [429]

    anyio.run(everything)


# ------------------------------------------------------------------ tokens

TOKEN = "0123456789abcdefABCDEF_-"


@pytest.fixture
def locked(served_atlas, client_of):
    return client_of(create_app(served_atlas, hosts=None, token=TOKEN))


PATHS = ["/", "/api/model", "/docs", "/openapi.json", "/assets/", "/favicon.svg", "/api/nothing"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"{COOKIE}=wrong"},
        {"Cookie": f"other={TOKEN}"},
        {"Cookie": "\x00;=;;"},
        {"Authorization": "Bearer \xe9"},
    ],
)
def test_nobody_comes_in_without_the_token(locked, path, headers):
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    response = locked.get(path, headers=headers)
    assert response.status_code == 401
    assert "token is needed" in response.json()["detail"]
    assert "content-security-policy" in response.headers
    assert TOKEN not in response.text


def test_the_token_in_the_address_becomes_a_cookie(locked):
    first = locked.get(f"/?token={TOKEN}&view=slider", follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, "/?view=slider")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert locked.get("/api/model").status_code == 200  # the client keeps the cookie
    locked.cookies.clear()
    assert locked.get("/api/model").status_code == 401
    assert locked.get("/?token=wrong").status_code == 401
    assert locked.get(f"/api/model?token={TOKEN}").status_code == 401  # only the page's address


def test_programs_bring_the_token_in_a_header(locked):
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "any.name:8000"}
    assert locked.get("/api/model", headers=headers).status_code == 200
    assert locked.post("/api/decode", json={}, headers=headers).status_code == 200


def test_a_named_host_is_one_more(served_atlas, client_of):
    client = client_of(create_app(served_atlas, hosts=(*LOOPBACK, "lab.example"), token=TOKEN))
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for host, status in (("lab.example:80", 200), ("127.0.0.1", 200), ("evil.example", 400)):
        response = client.get("/api/model", headers={**bearer, "Host": host})
        assert response.status_code == status
