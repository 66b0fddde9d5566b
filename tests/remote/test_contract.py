"""The contract over every provider and transport that this interpreter has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas.remote import PROVIDERS
from atlas.remote.provider import Pod
from atlas.remote.runpod import RunPod, connect
from atlas.remote.shell import LocalShell, SshShell, job_options, make_key, pin
from atlas.remote.ssh import Ssh
from tests.remote.contract import Bench, Contract
from tests.remote.double import API_KEY, Double, FakeClock, SshMachine
from tests.remote.double.clock import RealClock


def _bench(double: Double, provider: RunPod, folder: Path) -> Bench:
    running = lambda: len(double.running())  # noqa: E731
    return Bench(provider, double.clock, running, folder / "key", folder / "known_hosts")


def _folder_shell(double: Double) -> Any:
    return lambda pod, key, known_hosts: LocalShell(double.machine(pod.id).root)


class TestRest(Contract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        double = Double()
        options: dict[str, Any] = {"rng": random.Random(1), "open_shell": _folder_shell(double)}
        env = {"RUNPOD_API_KEY": API_KEY}
        provider = connect(clock=double.clock, env=env, http=double.client(), **options)
        yield _bench(double, provider, tmp_path)
        double.close()


class TestRestOverHttpAndSsh(Contract):
    """The same with nothing pretended: HTTP on loopback, and a real sshd with its own host key."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        double = Double(RealClock(), machine=SshMachine, provisioning=0.1, booting=0.1)
        with double.serve() as url:
            env = {"RUNPOD_API_KEY": API_KEY, "ATLAS_RUNPOD_URL": url}

            def shell(pod: Pod, key: Path, known_hosts: Path) -> SshShell:
                assert pod.endpoint is not None and pod.endpoint.host_key is not None
                pin(known_hosts, pod.endpoint)
                root = double.machine(pod.id).root / "home" / "job"
                return SshShell(pod.endpoint, str(root), job_options(key, known_hosts))

            provider = connect(clock=_Impatient(), env=env, open_shell=shell)
            bench = _bench(double, provider, tmp_path)
            bench.clock = _Impatient()
            bench.public_key = make_key(bench.key)
            yield bench
            double.close()


class _Impatient(RealClock):
    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, 0.1))


class TestLocal(Contract):
    @pytest.fixture
    def bench(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
        monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
        provider = PROVIDERS["local"](clock=FakeClock())
        jobs = tmp_path / "home" / "remote" / "local"
        running = lambda: len(list(jobs.glob("*")))  # noqa: E731
        return Bench(provider, FakeClock(), running, tmp_path / "key", tmp_path / "known_hosts")


class TestSsh(Contract):
    """A machine that one has: a real sshd; its host key is taken on first use."""

    @pytest.fixture
    def bench(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
        monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
        key = tmp_path / "key"
        body = {"env": {"PUBLIC_KEY": make_key(key)}}
        machine = SshMachine(SimpleNamespace(id="lab", body=body))
        address = machine.start({})
        where = f"{address.user}@{address.host}:{address.port}"
        provider = Ssh(FakeClock(), where, (f"IdentityFile={key}",))
        jobs = machine.home / ".atlas" / "jobs"
        running = lambda: len(list(jobs.glob("*")))  # noqa: E731
        yield Bench(provider, FakeClock(), running, key, tmp_path / "known_hosts")
        machine.stop()


class _Sdk(Contract):
    """Runs where the SDK is installed: test_runpod_sdk.py finds or builds such an environment."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        double = Double()
        with double.serve() as url:
            env = {"RUNPOD_API_KEY": API_KEY, "ATLAS_RUNPOD_URL": url}
            provider = connect(
                clock=double.clock, transport="sdk", env=env, open_shell=_folder_shell(double)
            )
            yield _bench(double, provider, tmp_path)
            double.close()


if find_spec("runpod"):

    class TestSdk(_Sdk):
        pass
