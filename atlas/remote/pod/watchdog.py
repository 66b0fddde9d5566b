"""The dead man's switch: ends the job, and a rented pod, when time is up or its client is silent.

It goes by this machine's clock and needs nobody. The checkpoint is left: it kills the job, which
writes its files by rename, and only then lets the pod go.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

from . import files

DEADLINE = "deadline"  # when the ceiling is reached, by this machine's clock
EVERY_S, PATIENCE_S = 5, 15
MARK = "ATLAS_JOB_ROOT"  # in the environment of every process of the job


def arm(root: str, now: float) -> None:
    """Start the watchdog; called again it neither starts a second one nor moves the deadline."""
    if not files.read(root, DEADLINE):
        files.write(root, DEADLINE, repr(now + float(files.job(root).get("seconds") or 1e12)))
    beat(root, now)
    if files.alive(files.read(root, files.WATCHDOG_PID)):
        return
    with open(os.path.join(root, files.WATCHDOG_LOG), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __package__ + ".watchdog", root],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    files.write(root, files.WATCHDOG_PID, str(process.pid))


def beat(root: str, now: float) -> None:
    """Note that the client was heard; needs no space on a full disk once the file is there."""
    path = os.path.join(root, files.HEARTBEAT)
    try:
        os.utime(path, (now, now))
    except FileNotFoundError:
        with open(path, "w"):
            pass
        os.utime(path, (now, now))


def verdict(root: str, now: float) -> tuple[str, bool] | None:
    """Say why the job must end and whether the pod must go too: (reason, pod), or None.

    `grace` seconds before the ceiling the job ends, so that its client can still pull.
    """
    job = files.job(root)
    deadline = float(files.read(root, DEADLINE) or "inf")
    if now >= deadline:
        return "ceiling", True
    silence = job.get("silence")
    try:
        heard = os.stat(os.path.join(root, files.HEARTBEAT)).st_mtime
    except FileNotFoundError:
        heard = now
    if silence and now - heard > silence:
        return "silence", True
    if now >= deadline - float(job.get("grace") or 0):
        return "ceiling", False
    return None


def check(root: str, now: float, end: Callable[[str], None] | None = None) -> bool:
    """Look once; end what must end. True when there is nothing left to watch."""
    found = verdict(root, now)
    rented = bool(files.job(root).get("delete"))
    if found is None:
        return bool(files.read(root, files.EXIT)) and not rented
    reason, pod = found
    if not files.read(root, files.VERDICT):
        _note("{}: {}".format(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)), reason))
        with contextlib.suppress(OSError):  # a full disk: it is ended without a word
            files.write(root, files.VERDICT, reason)
        (end or stop)(root)
    if pod and rented:
        return release()
    return pod or not rented


def stop(root: str) -> None:
    """End every process of the job: ask, wait, then kill."""
    with contextlib.suppress(OSError):  # a full disk
        files.write(root, files.STOPPING, "")
    for number in (signal.SIGTERM, signal.SIGKILL):
        waited = 0.0
        processes = of_job(root)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while waited < PATIENCE_S and any(files.alive(pid) for pid in processes):
            time.sleep(0.1)
            waited += 0.1


def of_job(root: str) -> list[int]:
    """Return the processes whose environment names this job, whoever their parent is now."""
    mark = (f"{MARK}={os.path.abspath(root)}").encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0") and files.alive(name):
                    found.append(int(name))
        except OSError:
            continue
    return found


def release() -> bool:
    """Let a rented pod delete itself, with the key that it was given for that; True if it may."""
    pod, key = _given("RUNPOD_POD_ID"), _given("RUNPOD_API_KEY")
    base = _given("ATLAS_RUNPOD_URL") or "https://api.runpod.io"
    if not (pod and key):
        _note("no key of its own: cannot end this pod")
        return True
    request = urllib.request.Request(
        "{}/v2/pods/{}".format(base.rstrip("/"), pod),
        method="DELETE",
        headers={"Authorization": "Bearer " + key, "User-Agent": "atlas-watchdog"},
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except OSError as error:  # tried again at the next look
        _note(f"cannot end this pod yet: {error}")
        return False
    return True


def _given(name: str) -> str:
    """Return a variable of the container; a session over ssh does not inherit them."""
    if os.environ.get(name):
        return os.environ[name]
    try:
        with open("/proc/1/environ", "rb") as file:
            for pair in file.read().split(b"\0"):
                if pair.startswith(name.encode() + b"="):
                    return pair.decode().partition("=")[2]
    except OSError:
        pass
    return ""


def _note(text: str) -> None:
    """Write a line to the watchdog's log, if the disk has room for it."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def main(root: str) -> None:
    """Look every few seconds until there is nothing left to watch."""
    while os.path.isdir(root):
        try:
            if check(root, time.time()):
                return
        except (OSError, ValueError) as error:  # a full disk must not end the watch
            _note(f"watchdog: {error}")
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main(sys.argv[1])
