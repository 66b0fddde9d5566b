"""atlas remote: what runs, what it cost, and how it is ended, beside the double's own account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atlas.remote import overview
from atlas.remote.ledger import Ledger, new_name
from atlas.remote.provider import Pod, PodSpec
from atlas.remote.runpod import connect
from tests.remote.double import API_KEY, Double
from tests.remote.double.clock import FakeClock, RealClock
from tests.support import one_line_error, run_atlas


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
    monkeypatch.chdir(tmp_path)
    double = Double(RealClock(), provisioning=0.0, booting=0.0)
    with double.serve() as url:
        monkeypatch.setenv("ATLAS_RUNPOD_URL", url)
        yield double
    double.close()


def create(job: str = "job-1", run: str = "", *, known: bool = True, gpu: str = "RTX 4090") -> Pod:
    """A pod as a job makes it: planned, created, written down."""
    provider = connect(clock=RealClock())
    offer = next(o for o in provider.offers() if o.gpu == gpu)
    name, ledger = new_name("test"), Ledger()
    if known:
        ledger.plan(name, job=job, provider="runpod", time=datetime.now(UTC), run=run, gpu=gpu,
                    price=offer.price)  # fmt: skip
    pod = provider.create(PodSpec(name, offer, 1, "image", 20, "ssh-ed25519 AAAA"))
    if known:
        ledger.created(name, pod, datetime.now(UTC))
    return pod


def test_list_shows_known_pods_and_strangers(account: Double) -> None:
    assert run_atlas("remote", "list").stdout == "no pods\n"
    mine, stranger = create(), create(known=False, gpu="L40S")
    done = run_atlas("remote", "list")
    assert done.returncode == 0, done.stderr
    assert "job-1" in done.stdout and mine.id in done.stdout and "0.69" in done.stdout
    assert f"atlas remote stop {stranger.id}" in done.stderr
    rows = {row["pod"]: row for row in json.loads(run_atlas("remote", "list", "--json").stdout)}
    assert rows.keys() == {mine.id, stranger.id}
    assert rows[mine.id]["status"] == "running" and rows[mine.id]["job"] == "job-1"
    assert rows[stranger.id]["status"] == "running, not made here"
    assert API_KEY not in done.stdout + done.stderr


def test_a_pod_that_is_gone_is_closed_by_any_command(account: Double) -> None:
    pod = create()
    account.kill(pod.id)
    assert run_atlas("remote", "list").stdout == "no pods\n"
    entry = Ledger().entries()[0]
    assert not entry.open and entry.cost == pytest.approx(account.bill(pod.id))


def test_stop_one_by_any_of_its_names_and_the_bill_is_true(account: Double) -> None:
    for naming in (lambda pod: "job-1", lambda pod: pod.id, lambda pod: pod.name):
        pod, other = create(), create("job-2")
        done = run_atlas("remote", "stop", naming(pod), "--json")
        assert done.returncode == 0, done.stderr
        assert {one["pod"] for one in json.loads(done.stdout)} == {pod.id}
        assert [p.id for p in account.running()] == [other.id]
        run_atlas("remote", "stop", "job-2")
        assert not account.running()
    total = json.loads(run_atlas("remote", "cost", "--json").stdout)
    assert total["total"] == pytest.approx(account.total(), abs=0.001)


def test_stop_all_asks_and_ends_strangers_too(
    account: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(), create(known=False)
    assert run_atlas("remote", "stop").returncode == 2
    assert run_atlas("remote", "stop", "--all", "job-1").returncode == 2
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: "n")
    assert run_atlas("remote", "stop", "--all").returncode == 1
    assert len(account.running()) == 2
    done = run_atlas("remote", "stop", "--all", "--yes")
    assert done.returncode == 0 and done.stdout.count(" ended, $0.00") == 2
    assert not account.running()
    assert run_atlas("remote", "stop", "--all").stdout == "no pods\n"


def test_a_stranger_is_stopped_by_its_id(account: Double) -> None:
    pod = create(known=False)
    done = run_atlas("remote", "stop", pod.id)
    assert done.stdout == f"{pod.id} ended, $0.00\n" and not account.running()


def test_an_unknown_job_is_one_line(account: Double) -> None:
    create()
    said = one_line_error(run_atlas("remote", "stop", "job-9"))
    assert said == "Error: job-9: no such job; running are job-1"
    for command in ("logs", "pull", "ssh"):
        assert "no such job" in one_line_error(run_atlas("remote", command, "job-9"))
        assert "not on this machine" in one_line_error(run_atlas("remote", command, "job-1"))
    run_atlas("remote", "stop", "--all", "--yes")


def test_without_a_key_what_is_open_is_said_and_the_code_is_1(
    account: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_atlas("remote", "list").returncode == 0
    pod = create()
    monkeypatch.delenv("RUNPOD_API_KEY")
    for command in ("list", "cost"):
        done = run_atlas("remote", command)
        assert done.returncode == 1 and "runpod: not asked: no RUNPOD_API_KEY" in done.stderr
    assert pod.id in run_atlas("remote", "list").stdout
    said = one_line_error(run_atlas("remote", "stop", "--all", "--yes"))
    assert "pods may run on" in said and len(account.running()) == 1
    monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
    assert run_atlas("remote", "stop", "--all", "--yes").returncode == 0


def test_without_a_ledger_and_a_key_nothing_is_asked(
    account: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    done = run_atlas("remote", "cost")
    assert done.returncode == 0 and "$     0.00" in done.stdout
    assert "no RUNPOD_API_KEY" in one_line_error(run_atlas("remote", "check"))


def test_costs_by_run_and_month(tmp_path: Path) -> None:
    ledger, clock = Ledger(tmp_path / "ledger.jsonl"), FakeClock()
    for number, (run, month, cost) in enumerate(
        (("/r/a", 9, 1.0), ("/r/a", 10, 2.0), ("/r/b", 10, 4.0), ("/r/b", 10, None))
    ):
        name, begun = new_name("x"), datetime(2026, month, 30, 23, tzinfo=UTC)
        ledger.plan(name, job="j", provider="runpod", time=begun, run=run, price=2.0)
        ledger.created(name, Pod(f"p{number}", name, "running", 2.0, created=begun), begun)
        if cost is not None:
            ledger.ended(name, begun + timedelta(hours=2), cost=cost, reason="stopped")
    totals = overview.totals(ledger, datetime(2026, 10, 31, 2, tzinfo=UTC))
    assert totals["runs"] == {"/r/a": 3.0, "/r/b": 4.0 + 6.0}  # three hours at $2, still open
    assert totals["months"] == {"2026-09": 1.0, "2026-10": 12.0}
    assert totals["total"] == 13.0 and totals["at_most"] is True
    assert clock.now() == FakeClock().now()


def test_help_of_the_group_imports_nothing_heavy() -> None:
    done = run_atlas("remote", "--help")
    for command in ("check", "list", "logs", "pull", "stop", "cost", "ssh", "export"):
        assert f"  {command} " in done.stdout
