"""The ledger: two writers, a writer that is killed, a torn line; and the provider beside it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atlas.errors import AtlasError
from atlas.remote import ledger as ledgers
from atlas.remote import overview
from atlas.remote.ledger import GRACE, Ledger, cost_unseen, new_name, reconcile
from atlas.remote.provider import Pod, PodSpec
from atlas.remote.runpod import RunPod, connect
from tests.remote.double import API_KEY, Double, Fault, Faults

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "new" / "ledger.jsonl")


def _provider(double: Double) -> RunPod:
    env = {"RUNPOD_API_KEY": API_KEY}
    return connect(clock=double.clock, env=env, http=double.client(), rng=random.Random(0))


def _create(provider: RunPod, ledger: Ledger, double: Double, *, note: bool = True) -> Pod:
    spec = PodSpec(new_name("run"), provider.offers()[0], 1, "image", 20, "ssh-ed25519 AAAA a")
    ledger.plan(spec.name, job="j", provider="runpod", time=double.clock.now(), price=0.25)
    pod = provider.create(spec)
    if note:
        ledger.created(spec.name, pod, double.clock.now())
    return pod


def test_names_are_ours_and_never_twice() -> None:
    names = {new_name("Été / my RUN__1" * 9) for _ in range(1000)}
    assert len(names) == 1000
    assert all(ledgers.is_ours(name) and len(name) < 60 for name in names)
    assert ledgers.is_ours(new_name("///"))
    for foreign in (
        "atlas",
        "atlas-x",
        "my-atlas-x-01234567",
        "atlas-x-0123456",
        "atlas-X-01234567",
    ):
        assert not ledgers.is_ours(foreign)


def test_an_entry_from_plan_to_end(ledger: Ledger) -> None:
    assert ledger.entries() == []
    ledger.plan("n", job="j", provider="runpod", time=NOW, run="/r", gpu="RTX 4090", price=0.69)
    (entry,) = ledger.entries()
    assert (entry.open, entry.pod, entry.planned, entry.run) == (True, None, NOW, "/r")
    ledger.created("n", Pod("p1", "n", "starting", 0.7, created=NOW), NOW)
    ledger.ended("n", NOW + timedelta(hours=1), cost=0.7, reason="done")
    (entry,) = ledger.entries()
    assert (entry.pod, entry.price, entry.cost, entry.open) == ("p1", 0.7, 0.7, False)
    assert entry == ledger.find("n") and entry.reason == "done"
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_two_processes_at_once(ledger: Ledger) -> None:
    code = textwrap.dedent("""
        import sys
        from datetime import UTC, datetime
        from pathlib import Path
        from atlas.remote.ledger import Ledger
        from atlas.remote.provider import Pod
        ledger, who = Ledger(Path(sys.argv[1])), sys.argv[2]
        for n in range(100):
            name, now = f"{who}-{n}", datetime.now(UTC)
            ledger.plan(name, job=who, provider="runpod", time=now, run="x" * 3000)
            ledger.created(name, Pod(name, name, "starting", 1.0), now)
    """)
    spawn = [
        subprocess.Popen([sys.executable, "-c", code, str(ledger.path), who]) for who in ("a", "b")
    ]
    assert [process.wait(60) for process in spawn] == [0, 0]
    entries = ledger.entries()
    assert len(entries) == 200 and all(e.pod == e.name for e in entries)
    assert {e.job for e in entries} == {"a", "b"}
    assert len(ledger.path.read_text().splitlines()) == 400


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_the_create_call(ledger: Ledger, tmp_path: Path, when: str) -> None:
    double = Double()
    code = textwrap.dedent("""
        import os, signal, sys
        from datetime import UTC, datetime
        from pathlib import Path
        from atlas.remote.ledger import Ledger, new_name
        from atlas.remote.provider import PodSpec
        from atlas.remote.clock import SystemClock
        from atlas.remote.runpod import connect
        provider, name = connect(clock=SystemClock()), new_name("killed")
        spec = PodSpec(name, provider.offers()[0], 1, "image", 20, "ssh-ed25519 AAAA a")
        now = datetime.fromisoformat(sys.argv[3])
        Ledger(Path(sys.argv[1])).plan(name, job="j", provider="runpod", time=now)
        if sys.argv[2] == "after":
            provider.create(spec)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    with double.serve() as url:
        env = os.environ | {"RUNPOD_API_KEY": API_KEY, "ATLAS_RUNPOD_URL": url}
        argv = [sys.executable, "-c", code, str(ledger.path), when, double.clock.now().isoformat()]
        done = subprocess.run(argv, env=env, timeout=60, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    provider = _provider(double)
    (entry,) = ledger.entries()
    assert entry.open and entry.pod is None
    first = reconcile(ledger, provider, double.clock)
    if when == "after":
        ((known, pod),) = first.running
        assert known.pod == pod.id and ledger.entries()[0].pod == pod.id
        provider.terminate(pod.id)
        (ended,) = reconcile(ledger, provider, double.clock).ended
        assert ended.cost == pytest.approx(double.total()) and not ended.estimated
    else:
        assert [e.name for e in first.waiting] == [entry.name]
        double.clock.advance(GRACE.total_seconds() + 1)
        (ended,) = reconcile(ledger, provider, double.clock).ended
        assert (ended.reason, ended.cost) == ("never seen", 0.0)  # no price was planned
    assert not ledger.entries()[0].open and double.running() == []


def test_a_pod_that_may_have_ended_itself_unseen_is_on_the_bill_at_most() -> None:
    planned = datetime(2026, 11, 1, 12, tzinfo=UTC)
    for hours, cost in ((0.5, 1.0), (1, 2.0), (5, 2.0)):
        assert cost_unseen(2.0, planned, planned + timedelta(hours=hours)) == cost


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_hides_no_other(ledger: Ledger, cut: int) -> None:
    for name in ("a", "b"):
        ledger.plan(name, job="j", provider="runpod", time=NOW)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-cut])
    before = [e.name for e in ledger.entries()]
    assert before == (["a", "b"] if cut == 1 else ["a"])
    ledger.plan("c", job="j", provider="runpod", time=NOW)
    assert [e.name for e in ledger.entries()] == [*before, "c"]


@pytest.mark.parametrize(
    "line", ["[]", "3", "{}", '{"event": "planned"}', "\x00\x00", '{"name": 1}']
)
def test_foreign_lines_are_passed_over(ledger: Ledger, line: str) -> None:
    ledger.plan("a", job="j", provider="runpod", time=NOW)
    with ledger.path.open("a") as file:
        file.write(line + "\n")
    assert [e.name for e in ledger.entries()] == ["a"]


def test_no_ledger_no_pod(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AtlasError, match="no pod is made without it"):
        Ledger(tmp_path / "file" / "ledger.jsonl").plan("n", job="j", provider="r", time=NOW)


def test_reconcile_names_what_the_ledger_does_not_know(ledger: Ledger, tmp_path: Path) -> None:
    double = Double()
    provider = _provider(double)
    mine = _create(provider, ledger, double)
    elsewhere = _create(provider, Ledger(tmp_path / "other.jsonl"), double)
    ended = _create(provider, ledger, double)
    ledger.ended(ended.name, double.clock.now(), cost=0.0, reason="said to be gone, but is not")
    double.create({"name": "somebody-else"}, "NVIDIA L40S", 1)
    seen = reconcile(ledger, provider, double.clock)
    assert [pod.id for _, pod in seen.running] == [mine.id]
    assert {pod.id for pod in seen.unknown} == {elsewhere.id, ended.id}


def test_a_second_pod_under_a_known_name_is_unknown(ledger: Ledger) -> None:
    double = Double()
    provider = _provider(double)
    pod = _create(provider, ledger, double)
    twin = double.create({"name": pod.name}, "NVIDIA L40S", 1)
    seen = reconcile(ledger, provider, double.clock)
    assert [p.id for _, p in seen.running] == [pod.id]
    assert [p.id for p in seen.unknown] == [twin.id]


def test_a_pod_that_vanished_is_closed_with_the_providers_bill(ledger: Ledger) -> None:
    double = Double(faults=Faults([Fault("vanish", "create", seconds=600)]))
    provider = _provider(double)
    _create(provider, ledger, double)
    double.clock.advance(3600)
    (ended,) = reconcile(ledger, provider, double.clock).ended
    assert ended.cost == pytest.approx(0.25 * 600 / 3600) == pytest.approx(double.total())
    assert reconcile(ledger, provider, double.clock).ended == ()


def test_a_bill_that_lags_behind_is_not_taken_for_the_whole(ledger: Ledger) -> None:
    double = Double()
    provider = _provider(double)
    pod = _create(provider, ledger, double)
    double.clock.advance(600)
    true = double.bill(pod.id)
    double.bill = lambda pod: true / 2  # type: ignore[method-assign]
    overview.end(provider, ledger, double.clock, pod.id, "stopped")
    (entry,) = ledger.entries()
    assert entry.cost == pytest.approx(true) and entry.estimated


def test_a_key_that_may_read_no_bills_ends_pods_all_the_same(ledger: Ledger) -> None:
    double = Double(faults=Faults([Fault("unauthorized", "billing", times=99)]))
    provider = _provider(double)
    pod = _create(provider, ledger, double)
    double.clock.advance(600)
    overview.end(provider, ledger, double.clock, pod.id, "stopped")
    (entry,) = ledger.entries()
    assert entry.cost == pytest.approx(double.bill(pod.id)) and entry.estimated
    assert not entry.open and not double.running()
