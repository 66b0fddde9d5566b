"""A job whose training is a script that writes what a training writes, in a real process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atlas.remote import job, plan
from atlas.remote.clock import SystemClock
from atlas.remote.ledger import Ledger
from atlas.remote.local import Local
from atlas.remote.provider import Offer, Provider

# epochs, seconds an epoch, how it ends; goes on from a checkpoint that is there.
TRAINING = """
import json, os, pathlib, sys, time
run, epochs, pace, end = sys.argv[1:]
run, epochs, pace = pathlib.Path(run), int(epochs), float(pace)
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text("train: {}\\n")
(run / "environment.json").write_text(json.dumps({"dataset": {"path": os.path.abspath("data")}}))
last = run / "checkpoints" / "last.ckpt"
def write(path, text):
    part = path.with_name(".part." + path.name); part.write_text(text); os.replace(part, path)
first = json.loads(last.read_text())["epoch"] if last.exists() else 0
print("begins after epoch", first, flush=True)
for n in range(first + 1, epochs + 1):
    time.sleep(pace)
    while end == "when seen" and n == 2 and not os.path.exists("seen"):
        time.sleep(0.1)
    write(last, json.dumps({"epoch": n, "weights": "w" * 100000}))
    write(run / "metrics.csv", "epoch\\n" + "".join(f"{i}\\n" for i in range(1, n + 1)))
    print("epoch", n, flush=True)
if end == "full":
    sys.exit("Error: [Errno 28] No space left on device")
if end == "fail":
    print("Error: the loss is not finite; lower train.lr", flush=True); sys.exit(1)
(run / "model.safetensors").write_bytes(bytes(range(256)) * 100)
(run / "model.json").write_text("{}")
"""


class Impatient(SystemClock):
    """Real time, with short pauses."""

    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, 0.1))


@dataclass
class Bench:
    """A provider, a ledger, a run folder and what was said."""

    provider: Provider
    folder: Path
    clock: Any = field(default_factory=Impatient)
    lines: list[tuple[str, str]] = field(default_factory=list)
    at: dict[str, Callable[[], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        self.out, self.data = self.folder / "OUT", self.folder / "data"
        self.data.mkdir(exist_ok=True)
        (self.data / "studies.parquet").write_text("studies")

    def say(self, step: str, text: str) -> None:
        self.lines.append((step, text))
        for what, action in list(self.at.items()):
            if what in text:
                del self.at[what]
                action()

    def said(self, step: str) -> list[str]:
        return [text for name, text in self.lines if name == step]

    def plan(self, **request: Any) -> plan.Plan:
        asked = plan.Request("smoke", (), self.data, self.out, self.provider.name, **request)
        offer = Offer("this machine", "local", 0.0, 0.0, "high")
        choice = plan.Choice(offer, 0.0, None, "unknown", None, None, None)
        return plan.Plan(asked, (choice,), 3, None, None, None, 0, (), 7, 40)

    def commands(self, epochs: int = 3, pace: float = 0.2, end: str = "done") -> list[list[str]]:
        return [["python3", "-c", TRAINING, f"run/{self.out.name}", str(epochs), str(pace), end]]

    def launch(self, commands: list[list[str]] | None = None, **request: Any) -> int:
        ask = request.pop("ask", lambda question: "stop")
        made = self.plan(**request)
        return job.launch(made, self.provider, self.ledger, self.clock, self.say, ask=ask,
                          commands=commands or self.commands())  # fmt: skip

    def attach(self) -> int:
        return job.attach(self.out, self.provider, self.ledger, self.clock, self.say)

    def epochs_said(self) -> list[int]:
        return [int(line.split()[1]) for line in self.said("log") if line.startswith("epoch ")]


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    quicken(monkeypatch)
    monkeypatch.setenv("ATLAS_HOME", str(tmp_path / "home"))
    return Bench(Local(Impatient()), tmp_path)


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no code and install nothing: the script is all there is."""
    monkeypatch.setattr("atlas.remote.bundle.make", lambda folder: [])
    monkeypatch.setattr("atlas.remote.steps.install", lambda way: None)
    monkeypatch.setattr("atlas.remote.follow.PULL_S", 0.2)


def later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer
