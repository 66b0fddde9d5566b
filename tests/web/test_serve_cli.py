"""`atlas serve`: what it refuses in one line, and one real start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner

from atlas.cli.serve import _address, serve
from atlas.errors import AtlasError, OptionError
from atlas.web import app
from tests.support import heed_ctrl_c, one_line_error, run_atlas


def failure(*arguments):
    result = CliRunner().invoke(serve, [str(a) for a in arguments])
    assert isinstance(result.exception, AtlasError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org", "::"])
def test_only_this_machine(served_run, host):
    error = failure(served_run, "--host", host)
    assert isinstance(error, OptionError)
    assert f"--host {host}" in str(error)


@pytest.mark.parametrize("token", ["short", "with a space in the middle", "x" * 129, "ä" * 20])
def test_a_token_that_is_none(served_run, token):
    error = failure(served_run, "--token", token)
    assert isinstance(error, OptionError)
    assert "--token" in str(error)
    assert token not in str(error)


def test_the_token_may_come_from_the_environment(served_run, monkeypatch):
    monkeypatch.setenv("ATLAS_TOKEN", "short")
    assert "--token" in str(failure(served_run))


def test_a_dataset_that_is_none_is_refused(served_run, tmp_path):
    error = failure(served_run, "--port", "0", "--data", tmp_path / "no-such-data")
    assert "no-such-data" in str(error)


def test_damaged_topics_are_named_before_anybody_asks(served_run, tmp_path):
    run = shutil.copytree(served_run, tmp_path / "run")
    (run / "directions.json").write_text("{")
    assert "directions.json: damaged" in str(failure(run, "--port", "0"))


def test_a_host_that_is_not_here():
    assert "no address of this machine" in str(
        failure("run", "--host", "no-such-host.invalid", "--token", "0123456789abcdef")
    )


def test_addresses_are_what_a_browser_takes():
    assert _address("127.0.0.1", 8000, None) == "http://127.0.0.1:8000"
    assert _address("::1", 8000, "t") == "http://[::1]:8000/?token=t"
    assert _address("0.0.0.0", 80, "t") == f"http://{socket.gethostname()}:80/?token=t"


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none(served_run, port):
    result = CliRunner().invoke(serve, [str(served_run), "--port", port])
    assert result.exit_code == 2


def test_port_in_use_shows_before_the_model_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = failure(tmp_path / "no-such-run", "--port", port)
    assert f"port {port} cannot be used" in str(error)
    assert "--port" in str(error)


def test_a_run_that_is_not_there_frees_the_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "no-such-run" in str(failure(tmp_path / "no-such-run", "--port", port))
    socket.create_server(("127.0.0.1", port)).close()


def test_page_not_built(served_run, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "STATIC", tmp_path)
    assert "make frontend" in str(failure(served_run))


@pytest.mark.parametrize("module", ["fastapi", "uvicorn"])
def test_extra_not_installed(served_run, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'generative-brain-atlas[web]'" in str(failure(served_run))


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["no-such-run", "--host", "0.0.0.0"], 2, "give a --token"),
        (["no-such-run", "--port", "0"], 1, "no-such-run"),
    ],
)
def test_exit_codes(arguments, code, line):
    done = run_atlas("serve", *arguments)
    assert line in one_line_error(done, code)
    assert done.stdout == ""


def test_importing_the_command_is_cheap():
    code = "import sys, atlas.cli.serve; print({'torch', 'fastapi', 'uvicorn'} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "set()"


def test_it_serves_and_stops(served_run):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "atlas.cli", "serve", str(served_run), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=heed_ctrl_c,
    )
    try:
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(f"{address}/api/model", timeout=30) as response:
            assert response.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert output.strip() == "stopped"
