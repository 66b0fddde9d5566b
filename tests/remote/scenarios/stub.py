"""A pod that speaks the job's file protocol without processes: its time is the injected clock's."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from atlas.remote.errors import ShellLost
from atlas.remote.pod import files, runner, watchdog
from atlas.remote.shell import LocalShell

NOBODY = "4194300"  # a process id that none has


@dataclass
class Script:
    """What a training does there: its epochs, and how it fails.

    Attributes
    ----------
    fails, vanishes, fills : the epoch in which it ends with an error, without an exit code, or with
        the disk full; 0: never. Once, in whichever pod gets there first.
    """

    epochs: int = 4
    epoch_s: float = 120.0
    fails: int = 0
    vanishes: int = 0
    fills: int = 0


@dataclass
class StubJob:
    """The training in one pod; `catch_up` writes what it would have written by now."""

    root: Path
    script: Script
    begun: float | None = None
    first: int = 0
    done: int = 0
    full: bool = False

    def start(self, now: float) -> str:
        if (self.root / files.STARTED).exists():
            return "already started"
        (self.root / files.STARTED).touch()
        files.write(self.root, files.PID, str(os.getpid()))
        last = self.run / "checkpoints" / "last.ckpt"
        self.first = self.done = json.loads(last.read_text())["epoch"] if last.exists() else 0
        (self.run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (self.run / "config.yaml").write_text("epochs: 4\n")
        (self.run / "environment.json").write_text('{"dataset": {"path": "data"}}')
        self.begun = now
        self._log("training begins")
        return "started"

    @property
    def run(self) -> Path:
        return self.root / files.job(self.root)["run"]

    @property
    def over(self) -> bool:
        return bool(files.read(self.root, files.EXIT)) or self.begun is None

    def catch_up(self, now: float) -> None:
        while not self.over and self.root.is_dir():
            end = self.begun + (self.done + 1 - self.first) * self.script.epoch_s  # type: ignore[operator]
            if now < end:
                return
            self._epoch(self.done + 1)

    def _epoch(self, number: int) -> None:
        script = self.script
        if number > script.epochs:
            for name in ("model.json", "model.safetensors", "test_results.json"):
                (self.run / name).write_text(name)
            self._exit(0)
            return
        if number == script.fails:
            script.fails = 0
            self._log("Error: the loss is nan at step 7; lower train.lr")
            self._exit(1)
            return
        if number == script.fills:
            script.fills, self.full = 0, True
            self._log("OSError: [Errno 28] No space left on device")
            self._exit(1)
            return
        if number == script.vanishes:
            script.vanishes, self.begun = 0, None
            files.write(self.root, files.PID, NOBODY)
            return
        self.done = number
        files.write(self.run / "checkpoints", "last.ckpt", json.dumps({"epoch": number}))
        rows = "".join(f"{n},0.5\n" for n in range(1, number + 1))
        files.write(self.run, "metrics.csv", "epoch,loss\n" + rows)
        self._log(f"epoch {number}")

    def stop(self, code: int = 143) -> None:
        if not self.over:
            self._exit(code)

    def _exit(self, code: int) -> None:
        files.write(self.root, files.EXIT, str(code))

    def _log(self, line: str) -> None:
        with (self.root / files.LOG).open("a") as file:
            file.write(line + "\n")


class StubShell(LocalShell):
    """The way to a stub pod; `trouble` may raise before a call or after it was carried out."""

    def __init__(self, root: Path, job: StubJob, now: Callable[[], float],
                 trouble: Callable[[str], Callable[[], None]]):  # fmt: skip
        super().__init__(root)
        self.job, self._now, self._trouble = job, now, trouble

    def __enter__(self) -> StubShell:
        return self

    def run(self, argv: Sequence[str], *, stdin: bytes | IO[bytes] | None = None,
            timeout: float = 60) -> bytes:  # fmt: skip
        after = self._trouble(argv[-1])
        self._check()
        said = self._answer(argv, stdin)
        after()
        return said.encode()

    def _answer(self, argv: Sequence[str], stdin: Any) -> str:
        if tuple(argv[:3]) != ("python3", "-m", "pod.runner"):
            assert argv[0] == "true", argv
            return ""
        verb, root, now = argv[3], Path(self.root), self._now()
        self.job.catch_up(now)
        if verb == "arm":
            if not files.read(root, watchdog.DEADLINE):
                seconds = float(files.job(root).get("seconds") or 1e12)
                files.write(root, watchdog.DEADLINE, repr(now + seconds))
            watchdog.beat(root, now)
            return ""
        if verb == "start":
            return self.job.start(now)
        if verb == "stop":
            self.job.stop()
            return ""
        if verb == "install":
            return "environment ready"
        if verb == "secret":
            assert isinstance(stdin, bytes)
            return ""
        said = runner.VERBS[verb](str(root), now)
        if verb == "status" and self.job.full:
            said = json.dumps(json.loads(said) | {"free": 0})
        return said

    def read(self, path: str, offset: int = 0) -> bytes:
        after = self._trouble("read")
        data = super().read(path, offset)
        after()
        return data

    def push(self, source: Path, target: str) -> None:
        after = self._trouble("push")
        super().push(source, target)
        after()

    def pull(self, source: str, target: Path, names: Sequence[str]) -> None:
        after = self._trouble("pull")
        super().pull(source, target, names)
        after()


@dataclass
class Trouble:
    """Connections that drop, machines that sleep, clients that are killed; drawn from a seed."""

    rng: random.Random
    killed: type[BaseException]
    calls: int = 0
    cuts: dict[int, int] = field(default_factory=dict)  # call -> how many calls in a row are cut
    kill_at: int = 0
    sleeps: dict[int, float] = field(default_factory=dict)
    sleep: Callable[[float], None] = lambda seconds: None
    interrupt_at: int = 0
    dead: bool = False

    @classmethod
    def seeded(cls, rng: random.Random, killed: type[BaseException]) -> Trouble:
        found = cls(rng, killed)
        for _ in range(rng.choice([0, 0, 1, 2])):
            found.cuts[rng.randint(1, 40)] = rng.choice([1, 1, 3, 30])
        if rng.random() < 0.3:
            found.kill_at = rng.randint(1, 60)
        elif rng.random() < 0.15:
            found.interrupt_at = rng.randint(1, 60)
        if rng.random() < 0.2:
            found.sleeps[rng.randint(1, 40)] = 3600.0
        return found

    def __call__(self, what: str, cuts: bool = True) -> Callable[[], None]:
        """Count a call; may raise, and returns what may raise when it has been carried out."""
        self.calls += 1
        number = self.calls
        if number in self.sleeps:
            self.sleep(self.sleeps.pop(number))
        if number == self.interrupt_at:
            raise KeyboardInterrupt
        first = self.rng.random() < 0.5
        if number == self.kill_at and first:
            self.dead = True
        if self.dead:  # a killed process does nothing more, whatever its handlers say
            raise self.killed
        cut = cuts and any(at <= number < at + length for at, length in self.cuts.items())
        if cut and first:
            raise ShellLost(f"cut before {what}")

        def after() -> None:
            if number == self.kill_at:
                self.dead = True
                raise self.killed
            if cut:
                raise ShellLost(f"cut after {what}")

        return after
