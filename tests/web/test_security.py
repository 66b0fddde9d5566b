"""Who may ask, how much they may send, what the page may load."""

from __future__ import annotations

import re

import pytest

from atlas.web.app import NOT_BUILT, STATIC, create_app
from atlas.web.security import MAX_BODY, host_name


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


def test_no_page_loads_scripts_from_elsewhere(client):
    assert client.get("/redoc").status_code == 404
    page = client.get("/").text
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("./") for source in sources)
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
