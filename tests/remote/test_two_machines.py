"""Two machines, each with its own network, train one model: two jobs over ssh, gloo between."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from atlas.data.dataset import Dataset
from atlas.remote.shell import make_key
from atlas.remote.ssh import Ssh
from tests.remote.double.machines import Address, SshMachine
from tests.remote.jobs import Bench, Impatient
from tests.remote.test_ssh import planned, run, seed_kernels
from tests.support import skip
from tests.training.conftest import small

__all__ = ["small"]
MESH = "10.77.3"


def ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


class Namespaced(SshMachine):
    """A machine whose sshd lives in a network namespace, reached at 10.77.N.2."""

    def __init__(self, number: int, public_key: str) -> None:
        super().__init__(
            SimpleNamespace(id=f"ns{number}", body={"env": {"PUBLIC_KEY": public_key}})
        )
        self.number, self.space = number, f"atlas{os.getpid()}n{number}"

    def connect(self) -> None:
        outer, inner = f"at{self.number}o", f"at{self.number}i"
        ip("netns", "add", self.space)
        ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", self.space)
        ip("addr", "add", f"10.77.{self.number}.1/24", "dev", outer)
        ip("link", "set", outer, "up")
        self.inside("addr", "add", f"10.77.{self.number}.2/24", "dev", inner)
        for device in (inner, "lo"):
            self.inside("link", "set", device, "up")

    def inside(self, *words: object) -> None:
        ip("-n", self.space, *words)

    def start_inside(self) -> Address:
        key, config = self.root / "host_key", self.root / "sshd_config"
        make_key(key)
        authorized = self.root / "authorized_keys"
        authorized.write_text(self._public_key + "\n")
        authorized.chmod(0o600)
        config.write_text(self._config({}).replace("127.0.0.1", f"10.77.{self.number}.2"))
        command = [
            "ip",
            "netns",
            "exec",
            self.space,
            "/usr/sbin/sshd",
            "-D",
            "-e",
            "-f",
            str(config),
        ]
        Path("/run/sshd").mkdir(exist_ok=True)
        with (self.root / "sshd.log").open("wb") as log:
            self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                          start_new_session=True)  # fmt: skip
        time.sleep(0.5)
        return Address(f"10.77.{self.number}.2", self._port, "root", "")

    def disconnect(self) -> None:
        self.stop()
        subprocess.run(["ip", "netns", "del", self.space], check=False, capture_output=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Namespaced]]:
    public = make_key(tmp_path / "key")
    found = [Namespaced(number, public) for number in (1, 2)]
    try:
        try:
            for machine in found:
                machine.connect()
            ip("link", "add", "mesh", "netns", found[0].space, "type", "veth",
               "peer", "name", "mesh", "netns", found[1].space)  # fmt: skip
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            skip(f"no network namespaces here: {error}")
        for machine in found:
            machine.inside("addr", "add", f"{MESH}.{machine.number}/24", "dev", "mesh")
            machine.inside("link", "set", "mesh", "up")
        yield found
    finally:
        for machine in found:
            machine.disconnect()


@pytest.mark.slow
def test_two_machines_train_one_model(
    machines: list[Namespaced], small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATLAS_REMOTE_PYTHON", sys.executable)
    codes: dict[int, int] = {}
    benches = []
    for rank, machine in enumerate(machines):
        address = machine.start_inside()
        seed_kernels(machine.home / ".cache")
        host = f"{address.user}@{address.host}:{address.port}"
        folder = tmp_path / f"node{rank}"
        folder.mkdir()
        provider = Ssh(Impatient(), host, (f"IdentityFile={tmp_path / 'key'}",))
        benches.append(Bench(provider, folder))
    options = ("train.epochs=1", "train.threads=1", "train.accelerator=cpu", "train.strategy=ddp")

    def lead(rank: int) -> None:
        bench = benches[rank]
        torchrun = ["env", "GLOO_SOCKET_IFNAME=mesh", "{python}", "-m", "torch.distributed.run",
                    "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1",
                    "--rdzv-backend", "static", "--master-addr", f"{MESH}.1",
                    "--master-port", "29517"]  # fmt: skip
        train = [*torchrun, "-m", "atlas.cli", "train", "config.yaml", "--data", "data",
                 "--out", f"run/{bench.out.name}"]  # fmt: skip
        codes[rank] = run(bench, planned(bench, small.path, options), [train])

    other = threading.Thread(target=lead, args=(1,))
    other.start()
    lead(0)
    other.join()
    assert codes == {0: 0, 1: 0}, [bench.lines for bench in benches]
    first, second = (bench.out for bench in benches)
    assert (first / "model.safetensors").exists()
    assert not (second / "model.safetensors").exists()  # the first machine alone writes
    header, row = (first / "metrics.csv").read_text().splitlines()
    assert row.split(",")[header.split(",").index("step")] == "1"  # 28 studies, 2 batches of 16
