"""What every provider owes a job. A provider's test gives the bench and takes these tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from atlas.remote.ledger import new_name
from atlas.remote.provider import Clock, Pod, PodSpec, Provider


@dataclass
class Bench:
    """A provider to be tested, and what the test may know that a job does not."""

    provider: Provider
    clock: Clock
    running: Callable[[], int]  # machines of ours that there are, seen from behind
    key: Path
    known_hosts: Path
    public_key: str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIContract atlas"
    remembers: bool = True  # create under a name that exists gives that pod

    def spec(self, name: str | None = None) -> PodSpec:
        return PodSpec(
            name=name or new_name("contract"),
            offer=self.provider.offers()[0],
            gpus=1,
            image="image@sha256:0",
            disk=20,
            public_key=self.public_key,
        )

    def ready(self, pod: Pod) -> Pod:
        for _ in range(100):
            seen = self.provider.pod(pod.id)
            if seen.status == "running" and (seen.endpoint or not self.provider.bills):
                return seen
            self.clock.sleep(2)
        raise AssertionError(f"never ready: {seen}")


class Contract:
    """Subclasses give a fixture `bench`."""

    def test_knows_whose_it_is_and_what_it_has(self, bench: Bench) -> None:
        assert bench.provider.account().user
        offers = bench.provider.offers()
        assert offers
        prices = [offer.price for offer in offers]
        assert prices == sorted(prices)
        assert all(price > 0 for price in prices) == bench.provider.bills
        assert {offer.stock for offer in offers} <= {"high", "medium", "low", "none"}

    def test_a_pod_from_create_to_gone(self, bench: Bench) -> None:
        provider, spec = bench.provider, bench.spec()
        pod = provider.create(spec)
        try:
            assert pod.name == spec.name and pod.id
            assert pod.price == pytest.approx(spec.offer.price)
            assert pod.id in {p.id for p in provider.pods()}
            seen = bench.ready(pod)
            assert (seen.id, seen.name) == (pod.id, spec.name)
            cost = provider.cost(seen)
            assert cost is None or cost >= 0
        finally:
            provider.terminate(pod.id)
        assert provider.pod(pod.id).status == "gone"
        assert pod.id not in {p.id for p in provider.pods()}
        assert bench.running() == 0

    def test_terminate_is_repeatable_and_takes_any_id(self, bench: Bench) -> None:
        pod = bench.provider.create(bench.spec())
        bench.provider.terminate(pod.id)
        bench.provider.terminate(pod.id)
        bench.provider.terminate("podnosuch1")
        assert bench.provider.pod("podnosuch1").status == "gone"

    def test_what_is_still_written_keeps_no_pod(self, bench: Bench, tmp_path: Path) -> None:
        """A process of the job that ends late writes into the folder while that is taken away."""
        pod = bench.ready(bench.provider.create(bench.spec()))
        late = "for i in $(seq 2000); do echo > file$i; done"
        with bench.provider.shell(pod, bench.key, bench.known_hosts) as shell:
            shell.run(["sh", "-c", f"({late}) >/dev/null 2>&1 &"])
        bench.provider.terminate(pod.id)
        assert bench.provider.pod(pod.id).status == "gone"
        assert pod.id not in {p.id for p in bench.provider.pods()}
        time.sleep(0.5)
        bench.provider.terminate(pod.id)  # any later one takes away what was left
        assert bench.running() == 0

    def test_one_name_is_one_pod(self, bench: Bench) -> None:
        spec = bench.spec()
        first = bench.provider.create(spec)
        second = bench.provider.create(spec)
        assert second.id == first.id
        assert bench.running() == 1
        bench.provider.terminate(first.id)
        assert bench.running() == 0

    def test_commands_and_files(self, bench: Bench, tmp_path: Path) -> None:
        pod = bench.ready(bench.provider.create(bench.spec()))
        source, back = tmp_path / "a", tmp_path / "b"
        source.mkdir()
        (source / "x.txt").write_text("one\ntwo\n")
        try:
            with bench.provider.shell(pod, bench.key, bench.known_hosts) as shell:
                assert shell.run(["printf", "%s", "a b$HOME"]) == b"a b$HOME"
                shell.push(source, "data")
                assert shell.read("data/x.txt", 4) == b"two\n"
                assert shell.read("data/none.txt") == b""
                shell.pull("data", back, ["x.txt"])
                assert (back / "x.txt").read_text() == "one\ntwo\n"
        finally:
            bench.provider.terminate(pod.id)
