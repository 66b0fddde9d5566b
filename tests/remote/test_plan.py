"""atlas train --remote up to the create call: the plan, and what is refused before any money."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas import config
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.remote import estimate, plan, preflight
from atlas.remote.provider import Offer
from tests.remote.double import API_KEY, Double
from tests.remote.double.clock import RealClock
from tests.support import ROOT, one_line_error, run_atlas


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    """The double on loopback, the key in the environment, a clean tree, a ledger of its own."""
    monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(preflight, "tree", lambda: ("0" * 40, 2, ("notes.txt",)))
    monkeypatch.chdir(tmp_path)
    double = Double(RealClock())
    with double.serve() as url:
        monkeypatch.setenv("ATLAS_RUNPOD_URL", url)
        yield double
    double.close()


def planned(data: Dataset, tmp_path: Path, *more: object, name: str = "smoke"):
    return run_atlas("train", name, "--data", data.path, "--out", tmp_path / "run",
                     "--remote", "runpod", "--dry-run", *more)  # fmt: skip


def test_a_dry_run_shows_the_plan_and_creates_nothing(
    account: Double, bundled: Dataset, tmp_path: Path
) -> None:
    done = planned(bundled, tmp_path, "--max-cost", 5, "--gpu", "rtx 4090", "--gpu", "A100")
    assert done.returncode == 0, done.stderr
    for text in ("RTX 4090, $0.69/h, stock high", "computed", "else", "A100 PCIe", "0" * 10,
                 "2 tracked files", "notes.txt", "$5.00: the pod ends itself"):  # fmt: skip
        assert text in done.stdout
    assert account.faults.counts["create"] == 0 and not account.everything
    assert not (tmp_path / "run").exists() and not (tmp_path / "home").exists()


def test_the_plan_as_json(account: Double, bundled: Dataset, tmp_path: Path) -> None:
    done = planned(bundled, tmp_path, "--max-cost", 5, "--gpu", "RTX 4090", "--gpus", 2, "--json")
    said = json.loads(done.stdout)
    first = said["choices"][0]
    assert first["source"] == "computed" and first["price"] == pytest.approx(1.38)
    assert first["dollars"] == pytest.approx(first["hours"] * 1.38)
    assert first["ceiling_hours"] == pytest.approx(5 / 1.38)
    studies = len(bundled.rows("train"))
    assert said["steps"] == -(-studies // 32) * 2  # two processes of 16, two epochs
    assert API_KEY not in done.stdout + done.stderr


def test_without_a_row_the_first_steps_are_timed_there(
    account: Double, bundled: Dataset, tmp_path: Path
) -> None:
    done = planned(bundled, tmp_path, "--max-cost", 5, "--gpu", "L40S")
    assert "no step time known: the first 50 steps there are timed" in done.stdout
    done = planned(bundled, tmp_path, "--max-cost", 5, "--gpu", "RTX 4090", "train.batch=3")
    assert "no step time known" in done.stdout  # another batch than the table's


REFUSED = {
    "no ceiling": ((), 2, "--max-cost: --remote runpod needs one"),
    "unknown GPU": (("--gpu", "RTX 9000", "--max-cost", 5), 1, "RTX 4090 ($0.69/h)"),
    "low ceiling": (("--gpu", "RTX 4090", "--max-cost", 0.02), 1, "above the ceiling of $0.02"),
    "no key of W&B": (("logging.wandb=online", "--max-cost", 5), 1, "no WANDB_API_KEY here"),
    "few hours": (("--max-cost", 5, "--gpu", "RTX 4090", "--max-hours", 0.1), 1, "--max-hours 0.1"),
    "region": (("--gpu", "L40S", "--region", "EU", "--max-cost", 5), 1, "they are in US-KS-2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_money(
    account: Double, bundled: Dataset, tmp_path: Path, case: str
) -> None:
    arguments, code, message = REFUSED[case]
    done = run_atlas("train", "smoke", "--data", bundled.path, "--out", tmp_path / "run",
                     "--remote", "runpod", "--yes", *arguments)  # fmt: skip
    assert message in one_line_error(done, code)
    assert account.faults.counts["create"] == 0 and not (tmp_path / "run").exists()


def test_no_key_and_a_wrong_one(
    account: Double, bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_wrong")
    said = one_line_error(planned(bundled, tmp_path, "--max-cost", 5))
    assert "environment" in said and "rpa_wrong" not in said
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert "no RUNPOD_API_KEY" in one_line_error(planned(bundled, tmp_path, "--max-cost", 5))


def test_out_of_stock_says_what_there_is(account: Double, bundled: Dataset, tmp_path: Path) -> None:
    account.gpu("RTX 4090").stock = 0
    said = one_line_error(planned(bundled, tmp_path, "--max-cost", 5, "--gpu", "RTX 4090"))
    assert "RTX 4090: out of stock now" in said and "H100 SXM ($2.99/h)" in said


def test_a_dataset_larger_than_the_disk(account: Double, bundled: Dataset, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bundled.path, tmp_path / "data"))
    os.truncate(data / "twins.json", 30 * 10**9)  # a hole, nothing on the disk
    done = run_atlas("train", "smoke", "--data", data, "--out", tmp_path / "run",
                     "--remote", "runpod", "--max-cost", 5, "--dry-run")  # fmt: skip
    assert "30.0 GB, but the pod's disk has 25 GB" in one_line_error(done)


@pytest.mark.parametrize("tool", ["ssh", "rsync"])
def test_a_machine_without_the_tools(
    account: Double, bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else found(name))
    assert f"{tool} is not on this machine" in one_line_error(
        planned(bundled, tmp_path, "--max-cost", 5)
    )


def test_a_taken_folder_and_one_without_a_checkpoint(
    account: Double, bundled: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert "no checkpoint to resume" in one_line_error(
        planned(bundled, tmp_path, "--max-cost", 5, "--resume")
    )
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"x")
    assert "holds a run already" in one_line_error(planned(bundled, tmp_path, "--max-cost", 5))
    assert planned(bundled, tmp_path, "--max-cost", 5, "--force").returncode == 0
    (run / "config.yaml").write_text(config.load("quickstart").to_yaml())
    said = one_line_error(planned(bundled, tmp_path, "--max-cost", 5, "--resume"))
    assert "another model" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "L4"), "--gpu: only together with --remote"),
        (("--yes",), "--yes: only together with --remote"),
        (("--remote", "runpod", "--host", "x"), "--host: only with --remote ssh"),
        (("--remote", "runpod", "--json"), "--json: only together with --dry-run"),
    ],
)
def test_options_that_mean_nothing_here(
    account: Double, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run_atlas("train", "smoke", "--data", tmp_path, "--out", tmp_path / "r", *arguments)
    assert message in one_line_error(done, 2)


def test_no_torch_is_imported_here(account: Double, bundled: Dataset, tmp_path: Path) -> None:
    code = (
        "import sys; from atlas.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'nimare', 'pytorch_lightning', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "smoke", "--data", bundled.path, "--out",
         tmp_path / "run", "--remote", "local", "--dry-run", "--remote", "runpod",
         "--max-cost", "5"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    tracked = "not tracked, so it would not go" in done.stderr  # this very checkout may be dirty
    assert done.returncode == 0 or tracked, done.stderr


def test_untracked_sources_are_refused_and_the_rest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "atlas" / "remote"
    package.mkdir(parents=True)
    (package / "preflight.py").write_text("x\n")
    (tmp_path / "README.md").write_text("x\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(preflight, "__file__", str(package / "preflight.py"))
    assert preflight.tree()[1:] == (0, ())
    (tmp_path / "README.md").write_text("y\n")
    (tmp_path / "notes and\nmore.txt").write_text("x")
    commit, changed, left = preflight.tree()
    assert len(commit or "") == 40 and changed == 1 and left == ("notes and\nmore.txt",)
    (package / "new.py").write_text("x\n")
    with pytest.raises(AtlasError, match="not tracked, so it would not go: atlas/remote/new.py"):
        preflight.tree()
    subprocess.run([*git, "add", "atlas"], check=True)
    assert preflight.tree()[1] == 2


def offer(gpu: str, price: float, stock: str = "high", memory: float = 24.0) -> Offer:
    return Offer(gpu, f"NVIDIA {gpu}", memory, price, stock)  # type: ignore[arg-type]


def test_which_gpus_are_taken(tmp_path: Path) -> None:
    offers = [offer("RTX 3070", 0.1, memory=8), offer("L4", 0.4), offer("A100 PCIe", 1.2),
              offer("A100 SXM", 1.4), offer("A1000", 0.2)]  # fmt: skip

    def picked(*gpu: str) -> list[str]:
        request = plan.Request(None, (), tmp_path, tmp_path, "runpod", gpu=gpu)
        return [o.gpu for o in preflight.pick(request, offers)]

    assert picked() == ["L4", "A100 PCIe", "A100 SXM", "A1000"]
    assert picked("A100", "L4") == ["A100 PCIe", "A100 SXM", "L4"]
    assert picked("nvidia l4") == ["L4"]
    assert picked("A100 SXM", "A100") == ["A100 SXM", "A100 PCIe"]


def test_every_shipped_configuration_has_its_rows() -> None:
    rows = {(r["gpu"], r["config"]): r for r in estimate.table()}
    for name in config.shipped():
        for gpu in ("RTX 4090", "A100 PCIe", "H100 PCIe"):
            assert rows[gpu, name]["source"] in ("measured", "computed")
            assert estimate.step_time(config.load(name), gpu) is not None
    assert estimate.step_time(config.load("smoke", ["model.width=16"]), "RTX 4090") is None
    assert estimate.step_time(config.load("smoke", ["train.lr=1e-5"]), "RTX 4090") is not None


def test_steps_are_those_that_training_makes(bundled: Dataset) -> None:
    from atlas.data.batches import EpochSampler

    for batch, gpus in ((16, 1), (7, 2), (64, 3)):
        loaded = config.load("smoke", [f"train.batch={batch}", "train.epochs=1"])
        rows = bundled.rows("train")
        dealt = len(list(EpochSampler(rows, batch, rank=0, world=gpus)))
        assert estimate.steps_of(loaded, len(rows), gpus) == dealt
