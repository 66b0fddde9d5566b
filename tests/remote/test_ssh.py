"""Jobs on a machine that one has: a real sshd, rsync, git, torchrun and a real small training."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas.data.dataset import Dataset
from atlas.errors import AtlasError, OptionError
from atlas.inference import Atlas
from atlas.remote import job, plan, preflight
from atlas.remote.local import Local
from atlas.remote.pod import environment
from atlas.remote.reach import Way
from atlas.remote.ssh import Ssh, endpoint
from atlas.web.app import create_app
from atlas.web.library import find
from tests.remote.jobs import Bench, Impatient, later, quicken
from tests.remote.sshd import Lab, lab
from tests.support import ROOT, run_atlas, spawn_atlas
from tests.training.conftest import small
from tests.web.conftest import client_of

__all__ = ["client_of", "lab", "small"]


@pytest.fixture
def there(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
    clock = Impatient()
    yield Bench(Ssh(clock, lab.host, (f"IdentityFile={lab.key}",)), tmp_path, clock)
    for pod in Ssh(clock, lab.host, (f"IdentityFile={lab.key}",)).pods():
        Ssh(clock, lab.host, (f"IdentityFile={lab.key}",)).terminate(pod.id)


def test_how_a_machine_is_written() -> None:
    assert endpoint("me@lab.example.org:2222").port == 2222
    assert (endpoint("lab").user, endpoint("lab").port) == ("", 0)
    assert endpoint("[::1]:22").host == "::1"
    for wrong in ("-oProxyCommand=x", "a b", "me@", "lab:x", ""):
        with pytest.raises(OptionError, match="--host"):
            endpoint(wrong)


def test_a_machine_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"--host 127.0.0.1:9: .*refused"):
        Ssh(Impatient(), "127.0.0.1:9").account()


SMI = {
    "NVIDIA GeForce RTX 4090, 24564\nNVIDIA GeForce RTX 4090, 24564\n": ("RTX 4090", "high"),
    "NVIDIA A100-SXM4-80GB, 81920\n": ("A100-SXM4-80GB", "none"),  # two are asked for
    "NVIDIA GB10, [N/A]\nNVIDIA GB10, [N/A]\n": ("GB10", "high"),
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed, and running.\n\n": ("CPU", "high"),
    "No devices were found\n": ("CPU", "high"),
    "": ("CPU", "high"),
}


@pytest.mark.parametrize("said", SMI)
def test_what_a_machine_has(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ssh, "_ask", lambda machine, line: said)
    (offer,) = Ssh(Impatient(), "lab").offers(gpus=2)
    assert (offer.gpu, offer.stock) == SMI[said]


def test_a_shell_that_talks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ssh, "_ask", lambda machine, line: "Welcome to lab!\nme\n")
    with pytest.raises(AtlasError, match="'Welcome to lab! me'.*bashrc"):
        Ssh(Impatient(), "lab").account()


def test_the_connection_drops_and_no_line_is_lost_or_doubled(
    there: Bench, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)

    def drop(seconds: float) -> None:
        lab.crash()
        later(seconds, lab.restart)

    dropped: list[str] = []
    again = Way._again

    def noted(way: Way, error: AtlasError, since: Any, tries: int) -> None:
        dropped.append(str(error))
        again(way, error, since, tries)

    monkeypatch.setattr(Way, "_again", noted)
    there.at = {"epoch 2": lambda: drop(1.5), "epoch 6": lambda: drop(0.5)}
    assert there.launch(there.commands(epochs=12, pace=0.4)) == 0
    assert there.epochs_said() == list(range(1, 13))
    assert len(dropped) >= 2
    assert json.loads((there.out / "checkpoints" / "last.ckpt").read_text())["epoch"] == 12
    assert not there.provider.pods() and not list((lab.machine.home / ".atlas/jobs").iterdir())


def test_another_host_key_ends_it_before_anything_is_sent(
    there: Bench, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    there.provider.account()  # trusted on first use
    known = tmp_path / "home" / "remote" / "known_hosts"
    (tmp_path / "other").mkdir()
    other, before = Lab(tmp_path / "other"), known.read_text()
    try:
        line = before.split()
        known.write_text(f"{line[0]} {other.endpoint.host_key!s}\n")
        with pytest.raises(AtlasError, match="another host key"):
            there.launch()
        assert not (lab.machine.home / ".atlas").exists()
    finally:
        known.write_text(before)
        other.machine.stop()


def seed_kernels(home: Path) -> None:
    """As if an earlier job had built the kernels from these sources there."""
    key = environment.native_key(str(ROOT), sys.executable)
    kept = home / "atlas" / f"kernels-{key}"
    kept.mkdir(parents=True, exist_ok=True)
    for built in (ROOT / "atlas_kernels").glob("_kernels*.so"):
        shutil.copy2(built, kept)


def planned(bench: Bench, data: Path, overrides: tuple[str, ...], **more: Any) -> plan.Plan:
    asked = plan.Request("smoke", overrides, data, bench.out, bench.provider.name, **more)
    commit, changed, _ = preflight.tree()
    offer = bench.provider.offers()[0]
    choice = plan.Choice(offer, 0.0, None, "unknown", None, None, None)
    return plan.Plan(asked, (choice,), 3, None, None, commit, changed, (), 7, 40)


def run(bench: Bench, made: plan.Plan, commands: Any = None) -> int:
    return job.launch(made, bench.provider, bench.ledger, bench.clock, bench.say,
                      ask=lambda question: "stop", commands=commands)  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_there_and_back(
    there: Bench, lab: Lab, small: Dataset, client_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun here, gone on with there, used here, gone on with here."""
    monkeypatch.setenv("ATLAS_REMOTE_PYTHON", sys.executable)
    seed_kernels(lab.machine.home / ".cache")
    options = ("train.epochs=1", "train.threads=1")
    begun = spawn_atlas("train", "smoke", *options, "--data", small.path, "--out", there.out,
                        timeout=900)  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    more = ("train.epochs=2", "train.threads=1")
    assert run(there, planned(there, small.path, more, resume=True, force=True)) == 0, there.lines
    rows = (there.out / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1"]
    about = json.loads((there.out / "environment.json").read_text())
    assert about["dataset"]["path"] == str(small.path)
    card = json.loads((there.out / "model.json").read_text())
    assert card["name"] == there.out.name
    assert (there.out / "test_results.json").exists() and (there.out / "report").is_dir()

    evaluated = run_atlas("evaluate", there.out, "--no-report")
    assert evaluated.returncode == 0, evaluated.stderr
    made = run_atlas("generate", there.out, "--set", "n=40", "--out", there.folder / "map.nii.gz")
    assert made.returncode == 0, made.stderr
    study = small.splits["test"][0]
    other = run_atlas("counterfactual", there.out, "--study", study, "--set", "n=80",
                      "--out", there.folder / "counter")  # fmt: skip
    assert other.returncode == 0, other.stderr
    atlas, library = Atlas.load(there.out), find(there.out, None)
    page = client_of(create_app(atlas, run=there.out, library=library))
    assert page.get("/api/model").status_code == 200
    found = page.get("/api/studies", params={"q": study}).json()["studies"]
    assert study in {row["id"] for row in found}
    on = spawn_atlas("train", "smoke", "train.epochs=3", "train.threads=1", "--resume", "--force",
                     "--data", small.path, "--out", there.out, timeout=900)  # fmt: skip
    assert on.returncode == 0, on.stderr
    assert len((there.out / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_two_processes_through_local(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seed_kernels(tmp_path / "cache")
    bench = Bench(Local(Impatient()), tmp_path)
    options = ("train.epochs=1", "train.threads=1", "train.accelerator=cpu")
    assert run(bench, planned(bench, small.path, options, gpus=2)) == 0, bench.lines
    (row,) = (bench.out / "metrics.csv").read_text().splitlines()[1:]
    assert row.startswith("0,")
    assert "devices: 2" in (bench.out / "config.yaml").read_text()
    assert (bench.out / "test_results.json").exists()
    assert time.time() - (bench.out / "remote.json").stat().st_mtime < 600
