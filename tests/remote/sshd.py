"""A real sshd on loopback as the machine that one has, and a user's way to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from atlas.remote.provider import Endpoint
from atlas.remote.shell import SshShell, job_options, make_key, pin
from tests.remote.double.machines import SshMachine


class Lab:
    """One machine; `endpoint` has its true host key."""

    def __init__(self, folder: Path) -> None:
        self.key, self.known_hosts = folder / "key", folder / "known_hosts"
        body = {"env": {"PUBLIC_KEY": make_key(self.key)}}
        self.machine = SshMachine(SimpleNamespace(id="lab", body=body))
        address = self.machine.start({})
        self.endpoint = Endpoint(address.host, address.port, address.user, address.host_key)
        pin(self.known_hosts, self.endpoint)

    @property
    def host(self) -> str:
        return f"{self.endpoint.user}@{self.endpoint.host}:{self.endpoint.port}"

    def crash(self) -> None:
        """Kill the server and its sessions; what they started goes on, new connections fail."""
        sshd = self.machine._sshd
        assert sshd is not None
        self.machine.cut()
        sshd.kill()
        sshd.wait()

    def restart(self) -> None:
        """Start the server again, on its port and with its host key."""
        sshd = self.machine._sshd
        assert sshd is not None
        self.machine._sshd = subprocess.Popen(
            sshd.args,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"]},
            start_new_session=True,
        )

    def shell(self) -> SshShell:
        return SshShell(self.endpoint, "job", job_options(self.key, self.known_hosts))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.machine.stop()
