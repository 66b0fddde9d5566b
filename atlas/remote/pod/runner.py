"""Starts the job detached, keeps its log and its exit code, and answers the client's questions.

python3 -m pod.runner VERB, in the job's root folder. Every verb may be repeated: a client that
lost the connection does not know what had arrived.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse

from . import environment, files, manifest, watchdog

SECRETS = "secrets.json"


def arm(root: str, now: float) -> str:
    """Start the dead man's switch."""
    watchdog.arm(root, now)
    return ""


def secret(root: str, now: float) -> str:
    """Take keys from standard input into memory that only this user reads, until the start."""
    path = _secrets(root)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return ""


def _secrets(root: str) -> str:
    name = "atlas-{}-{}".format(files.job(root).get("id", "job"), SECRETS)
    return os.path.join("/dev/shm" if os.access("/dev/shm", os.W_OK) else root, name)


def _take_secrets(root: str) -> dict[str, str]:
    path = _secrets(root)
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, str] = json.load(file)
            return found
    except (FileNotFoundError, ValueError):
        return {}
    finally:
        if os.path.exists(path):
            os.unlink(path)


def install(root: str, now: float) -> str:
    """Unpack the code and find or make the environment it runs in; return a line about it."""
    return environment.install(root)


def start(root: str, now: float) -> str:
    """Start the job, once: a second call finds it started."""
    try:
        os.close(os.open(os.path.join(root, files.STARTED), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return "already started"
    secrets = json.dumps(_take_secrets(root)).encode()
    process = subprocess.Popen(
        [sys.executable, "-m", __package__ + ".runner", "work"],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    files.write(root, files.PID, str(process.pid))
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(secrets)
    return "started"


def work(root: str, now: float) -> str:
    """Run the job's commands one after the other, until one fails; runs detached."""
    secrets = json.load(sys.stdin)
    if secrets.get("WANDB_API_KEY") and not _reaches_wandb(files.job(root).get("env", {})):
        secrets["WANDB_MODE"] = "offline"  # the folder comes home; a wait for W&B would end the run
    job, code = files.job(root), 0
    common = dict(os.environ, **job.get("env", {}))
    common.pop("RUNPOD_API_KEY", None)  # the pod's own; the watchdog's business alone
    common[watchdog.MARK] = os.path.abspath(root)
    common["PYTHONPATH"] = os.path.join(os.path.abspath(root), "code")
    common["PYTHONUNBUFFERED"] = "1"
    with open(os.path.join(root, files.LOG), "ab", buffering=0) as log:
        for number, argv in enumerate(job["commands"]):
            words = {"{python}": files.read(root, environment.PYTHON) or sys.executable}
            argv = [words.get(word, word) for word in argv]
            keys = secrets if number == 0 else {}  # only training writes to W&B
            try:
                code = subprocess.call(
                    argv,
                    cwd=root,
                    env=dict(common, **keys),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            except OSError as error:
                log.write((f"{argv[0]}: {error}\n").encode())
                code = 127
            if os.path.exists(os.path.join(root, files.STOPPING)):
                code = code or 143
            if code:
                break
    files.write(root, files.EXIT, str(code if code >= 0 else 128 - code))
    return ""


def _reaches_wandb(env: dict[str, str]) -> bool:
    """Whether W&B's server, or one of the two that its own releases have used, can be reached."""
    hosts = ["https://api.wandb.ai", "https://api.forge.coreweave.com"]
    for url in [env["WANDB_BASE_URL"]] if env.get("WANDB_BASE_URL") else hosts:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with contextlib.suppress(OSError):
            socket.create_connection((parts.hostname or "", port), timeout=5).close()
            return True
    return False


def status(root: str, now: float) -> str:
    """Tell how the job is, as JSON; asking is the heartbeat."""
    with contextlib.suppress(OSError):  # a full disk; the answer says so
        watchdog.beat(root, now)
    code = files.read(root, files.EXIT)
    started = os.path.exists(os.path.join(root, files.STARTED))
    gone = started and not code and not files.alive(files.read(root, files.PID))
    code = code or files.read(root, files.EXIT)  # it may have ended between the two looks
    run = files.job(root).get("run", "run")
    log = os.path.join(root, files.LOG)
    return json.dumps(
        {
            "started": started,
            "exit": int(code) if code else None,
            "lost": bool(gone and not code),  # ended without leaving an exit code
            "log": os.path.getsize(log) if os.path.exists(log) else 0,
            "verdict": files.read(root, files.VERDICT),
            "kept": manifest.signature(root, run),
            "free": shutil.disk_usage(root).free,
            "deadline": float(files.read(root, watchdog.DEADLINE) or 0) - now,
        }
    )


def snapshot(root: str, now: float) -> str:
    """Hold checkpoints and metrics still and return their manifest."""
    return json.dumps(manifest.snapshot(root, files.job(root)["run"]))


def whole(root: str, now: float) -> str:
    """Return the manifest of the whole run folder, and keep it as manifest.json."""
    found = manifest.whole(root, files.job(root)["run"])
    try:
        return manifest.write(root, found)
    except OSError:  # a full disk
        return json.dumps(found)


def stop(root: str, now: float) -> str:
    """End the job; what it has written stays."""
    watchdog.stop(root)
    return ""


VERBS = {f.__name__: f for f in (arm, secret, install, start, work, status, snapshot, whole, stop)}


def main(argv: list[str]) -> None:
    """Call one verb on the folder that this runs in."""
    said = VERBS[argv[0]](os.getcwd(), time.time())
    if said:
        print(said)


if __name__ == "__main__":
    main(sys.argv[1:])
