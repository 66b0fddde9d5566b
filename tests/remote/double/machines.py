"""What a pod of the double is: a folder, or a real sshd on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.support import require_tool


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    user: str
    host_key: str


class Machine(Protocol):
    root: Path  # the home folder; it dies with the pod

    def start(self, environment: Mapping[str, str]) -> Address: ...

    def stop(self) -> None: ...


class Folder:
    """A plain folder: LocalShell(double.machine(pod.id).root) is the way there."""

    def __init__(self, pod: Any):
        self.root = Path(tempfile.mkdtemp(prefix=f"double-{pod.id}-"))
        self.environment: Mapping[str, str] = {}

    def start(self, environment: Mapping[str, str]) -> Address:
        self.environment = environment
        return Address("127.0.0.1", 9, "root", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDouble")

    def stop(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


class SshMachine:
    """A real sshd on a port of its own, with its own host key, home folder and environment."""

    def __init__(self, pod: Any):
        self.root = Path(tempfile.mkdtemp(prefix=f"double-{pod.id}-"))
        self.home = self.root / "home"
        self.home.mkdir()
        self._public_key = pod.body.get("env", {}).get("PUBLIC_KEY", "")
        self._port = _free_port()
        self._sshd: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str]) -> Address:
        key = self.root / "host_key"
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
        authorized = self.root / "authorized_keys"
        authorized.write_text(self._public_key + "\n")
        authorized.chmod(0o600)
        config = self.root / "sshd_config"
        config.touch(0o600)
        config.write_text(self._config(environment))
        sshd = shutil.which("sshd") or require_tool("/usr/sbin/sshd")
        Path("/run/sshd").mkdir(exist_ok=True)
        with (self.root / "sshd.log").open("wb") as log:
            self._sshd = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
                start_new_session=True,
            )
        _wait_for(self._port, self._sshd)
        kind, public = key.with_suffix(".pub").read_text().split()[:2]
        return Address("127.0.0.1", self._port, _me(), f"{kind} {public}")

    def _config(self, environment: Mapping[str, str]) -> str:
        mine = {k: v for k, v in environment.items() if k != "PUBLIC_KEY" and '"' not in v}
        mine["HOME"] = str(self.home)  # ForceCommand goes there: sessions start in the user's own
        pairs = " ".join(f'"{name}={value}"' for name, value in mine.items())
        return "\n".join(
            [
                f"Port {self._port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {self.root / 'host_key'}",
                f"AuthorizedKeysFile {self.root / 'authorized_keys'}",
                f"PidFile {self.root / 'sshd.pid'}",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "PermitRootLogin prohibit-password",
                "UsePAM no",
                "StrictModes no",
                "PrintMotd no",
                "MaxStartups 100",
                f"SetEnv {pairs}",
                'ForceCommand cd "$HOME" && eval "$SSH_ORIGINAL_COMMAND"',
                "",
            ]
        )

    def stop(self) -> None:
        """The machine is gone: its server, all that its sessions started, and its disk."""
        if self._sshd is not None:
            for pid in _of(self.root, self._sshd.pid):
                _kill(pid)
            self._sshd.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def cut(self) -> None:
        """The network goes away; what runs there goes on."""
        assert self._sshd is not None
        children = _of(self.root, self._sshd.pid, sessions_only=True)
        with suppress(ProcessLookupError):  # its pod has been ended
            os.kill(self._sshd.pid, signal.SIGSTOP)
        for pid in children:
            _kill(pid)

    def mend(self) -> None:
        """The network is back."""
        assert self._sshd is not None
        with suppress(ProcessLookupError):
            os.kill(self._sshd.pid, signal.SIGCONT)


def _of(root: Path, sshd: int, *, sessions_only: bool = False) -> list[int]:
    """Return this sshd's processes; without `sessions_only` also all that have its HOME."""
    needle, found = f"HOME={root / 'home'}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        if parent == sshd or (not sessions_only and (pid == sshd or needle in environment)):
            found.append(pid)
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _me() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"sshd did not come up on port {port}")
