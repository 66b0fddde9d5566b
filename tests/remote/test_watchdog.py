"""The dead man's switch: when it ends the job, how, and that a rented pod deletes itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from atlas.remote.pod import files, runner, watchdog
from tests.support import skip


def root_with(tmp_path: Path, **job: Any) -> str:
    (tmp_path / files.JOB).write_text(json.dumps(job))
    return str(tmp_path)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog.subprocess, "Popen", lambda *a, **k: type("P", (), {"pid": 1})())


@pytest.mark.usefixtures("quiet")
def test_when_it_ends(tmp_path: Path) -> None:
    root = root_with(tmp_path, seconds=1000, grace=100, silence=60)
    watchdog.arm(root, 5000.0)
    assert watchdog.verdict(root, 5050.0) is None
    assert watchdog.verdict(root, 5061.0) == ("silence", True)
    watchdog.beat(root, 5899.0)
    assert watchdog.verdict(root, 5899.0) is None
    assert watchdog.verdict(root, 5900.0) == ("ceiling", False)  # the client may still pull
    assert watchdog.verdict(root, 6000.0) == ("ceiling", True)
    watchdog.arm(root, 5950.0)
    assert watchdog.verdict(root, 6000.0) == ("ceiling", True)  # another client moves no deadline


@pytest.mark.usefixtures("quiet")
def test_detached_it_is_never_silent(tmp_path: Path) -> None:
    root = root_with(tmp_path, seconds=1e6, grace=0, silence=None)
    watchdog.arm(root, 0.0)
    assert watchdog.verdict(root, 9e5) is None


@pytest.mark.usefixtures("quiet")
def test_it_ends_the_job_once_and_the_pod_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(watchdog, "release", lambda: order.append("pod") or len(order) > 2)
    root = root_with(tmp_path, seconds=10, grace=0, delete=True)
    watchdog.arm(root, 0.0)
    assert not watchdog.check(root, 9.0, end=lambda r: order.append("job"))
    assert not watchdog.check(root, 10.0, end=lambda r: order.append("job"))  # did not go
    assert watchdog.check(root, 15.0, end=lambda r: order.append("job"))
    assert order == ["job", "pod", "pod"]
    assert files.read(root, files.VERDICT) == "ceiling"


@pytest.mark.usefixtures("quiet")
def test_a_machine_that_one_has_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "release", lambda: pytest.fail("never"))
    root = root_with(tmp_path, seconds=10)
    watchdog.arm(root, 0.0)
    assert watchdog.check(root, 11.0, end=lambda r: None)


def test_it_kills_what_has_another_parent_and_session_too(tmp_path: Path) -> None:
    """torchrun's workers have sessions of their own, and a dead torchrun leaves orphans."""
    root = root_with(tmp_path)
    script = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal, time\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(100)'], start_new_session=True)"
    )
    env = {**os.environ, watchdog.MARK: root}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
    other = subprocess.Popen(["sleep", "100"], env={**os.environ, watchdog.MARK: root + "2"})
    time.sleep(0.3)
    assert len(watchdog.of_job(root)) == 1
    patience, watchdog.PATIENCE_S = watchdog.PATIENCE_S, 1
    try:
        watchdog.stop(root)
    finally:
        watchdog.PATIENCE_S = patience
    assert watchdog.of_job(root) == []
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_pod_deletes_itself_with_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, str | None]] = []
    answers = [500, 204]

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            seen.append((self.command, self.path, self.headers["Authorization"]))
            self.send_response(answers.pop(0))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("RUNPOD_POD_ID", "pod7")
    monkeypatch.setenv("RUNPOD_API_KEY", "pod-scoped")
    monkeypatch.setenv("ATLAS_RUNPOD_URL", f"http://127.0.0.1:{server.server_port}")
    assert watchdog.release() is False  # tried again at the next look
    assert watchdog.release() is True
    assert seen == [("DELETE", "/v2/pods/pod7", "Bearer pod-scoped")] * 2
    server.shutdown()
    server.server_close()


def test_the_process_watches_by_itself(tmp_path: Path) -> None:
    root = root_with(tmp_path, seconds=0.5, grace=0)
    (tmp_path / "pod").symlink_to(Path(watchdog.__file__).parent)
    subprocess.run([sys.executable, "-m", "pod.runner", "arm"], cwd=root, check=True)
    job = subprocess.Popen(["sleep", "100"], env={**os.environ, watchdog.MARK: root})
    assert job.wait(20) == -15
    assert files.read(root, files.VERDICT) == "ceiling"


def test_a_full_disk_does_not_end_the_watch(tmp_path: Path) -> None:
    """Neither its log nor the verdict can be written; the job is ended all the same."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        skip("cannot mount a small file system here")
    try:
        root = root_with(disk, seconds=1.5, grace=0)
        (disk / "pod").symlink_to(Path(watchdog.__file__).parent)
        subprocess.run([sys.executable, "-m", "pod.runner", "arm"], cwd=root, check=True)
        job = subprocess.Popen(["sleep", "100"], env={**os.environ, watchdog.MARK: root})
        with contextlib.suppress(OSError), (disk / "filler").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        assert job.wait(30) == -15
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_job_starts_once_and_leaves_its_exit_code(tmp_path: Path) -> None:
    root = root_with(tmp_path, run="run/a", commands=[["sh", "-c", "echo $KEY; exit 7"], ["true"]])
    (tmp_path / "pod").symlink_to(Path(watchdog.__file__).parent)
    call = [sys.executable, "-m", "pod.runner"]
    subprocess.run([*call, "secret"], cwd=root, input=b'{"KEY": "s3cret"}', check=True)
    place = Path(runner._secrets(root))
    assert place.stat().st_mode & 0o777 == 0o600
    for expected in (b"started\n", b"already started\n"):
        assert subprocess.check_output([*call, "start"], cwd=root) == expected
    assert not place.exists()
    for _ in range(200):
        told = json.loads(subprocess.check_output([*call, "status"], cwd=root))
        if told["exit"] is not None:
            break
        time.sleep(0.05)
    assert told["exit"] == 7 and not told["lost"]
    assert files.read(root, files.LOG) == "s3cret"


def test_a_job_that_vanished_is_told(tmp_path: Path) -> None:
    root = root_with(tmp_path, run="run/a")
    files.write(root, files.STARTED, "")
    files.write(root, files.PID, "4194300")
    assert json.loads(runner.status(root, time.time()))["lost"]


def test_without_a_way_to_wandb_the_run_is_offline(tmp_path: Path) -> None:
    """A wait for the server would end the run; the folder comes home instead."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        base = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
        assert runner._reaches_wandb(base)
    assert not runner._reaches_wandb(base)
    commands = [["sh", "-c", f"echo ${name},"] for name in ("WANDB_MODE", "WANDB_API_KEY")]
    root = root_with(tmp_path, run="run/a", env=base, commands=commands)
    (tmp_path / "pod").symlink_to(Path(watchdog.__file__).parent)
    command = [sys.executable, "-m", "pod.runner", "work"]
    subprocess.run(command, cwd=root, input=b'{"WANDB_API_KEY": "k"}', check=True)
    assert files.read(root, files.LOG) == "offline,\n,"  # and the evaluation has no key
