"""A job that runs: its log line by line, its checkpoints as they appear, its ceilings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from atlas.errors import AtlasError

from . import fetch, plan
from .preflight import money
from .reach import Ceiling, PodLost, Way
from .state import LOG

POLL_S = 3.0
PULL_S, PULL_SHARE = 60.0, 0.2  # at most every minute, and at most a fifth of the time
FULL_BYTES = 50e6
_PROGRESS = re.compile(rb"training: (\d+)/(\d+), (\d+) s left")


@dataclass(frozen=True)
class End:
    """How the job ended: its exit code, and why where it did not end by itself."""

    code: int
    why: str = ""


class Follower:
    """Looks at the job every few seconds until it has ended."""

    def __init__(self, way: Way) -> None:
        self.way, self.job = way, way.job
        self._kept: str | None = None
        self._next = self.job.clock.now()
        self._over = self._told = False

    def to_the_end(self) -> End:
        """Follow; every look is a sign of life to the pod's watchdog."""
        while True:
            end = self.look()
            if end is not None:
                return end
            self.job.clock.sleep(POLL_S)

    def look(self) -> End | None:
        """Look once: new lines, a new checkpoint, the end."""
        told = self.way.ask("status")
        with self._going_on(OSError):
            self.log(told["log"], told["exit"] is not None or told["lost"])
        if told["lost"] or told["exit"] is not None:
            return self._end(told)
        self._checkpoint(told)
        end = self.job.state.end_of(self.job.state.machine)
        self._over = end is not None and self.job.clock.now() >= end - timedelta(seconds=30)
        if self._over or (self.job.folder / "stop").exists():  # by another client
            self.way.call("stop")
        return None

    @contextmanager
    def _going_on(self, *failures: type[Exception]) -> Iterator[None]:
        """Say once what cannot be written here now: no reason to end the job, a later look may."""
        try:
            yield
        except (PodLost, Ceiling):
            raise
        except failures as error:
            if not self._told:
                self._told = True
                self.job.say("fetch", f"not written here yet, the job goes on: {error}")

    def _end(self, told: dict) -> End:
        code = 137 if told["lost"] else int(told["exit"])
        if told["verdict"] == "ceiling" or (code and self._over):
            return End(code or 1, "the ceiling is reached")
        if told["verdict"] == "silence":
            return End(code or 1, "the pod had not heard of its client for long and ended the job")
        if code and told["free"] < FULL_BYTES:
            return End(code, "the pod's disk is full")
        return End(code, self._last_error() if code else "")

    def _last_error(self) -> str:
        """Return the line with which `atlas train` says what was wrong."""
        path = self.job.folder / LOG  # none yet of a job that was ended before it said a word
        lines = path.read_bytes()[-20000:].splitlines() if path.exists() else []
        found = [line for line in lines if line.startswith((b"Error: ", b"atlas: "))]
        return found[-1].decode(errors="replace").removeprefix("Error: ") if found else ""

    def log(self, size: int, ended: bool = True) -> None:
        """Fetch new lines; what is kept here ends with a whole line, so none is said twice."""
        path, machine = self.job.folder / LOG, self.job.state.machine
        here = path.stat().st_size if path.exists() else 0
        offset = max(here - machine.log, 0)
        if size <= offset:
            return
        data = self.way.there(lambda shell: shell.read("job.log", offset))
        whole = data if ended else data[: data.rfind(b"\n") + 1]
        with path.open("ab", buffering=0) as file:
            for line in whole.splitlines(keepends=True):
                file.write(line)
                self.job.say("log", line.decode(errors="replace").rstrip("\r\n"))
        self._probe(whole)

    def _probe(self, data: bytes) -> None:
        """Hold the first steps' time against the ceilings, where no table knew it."""
        state = self.job.state
        if state.probed:
            return
        for done, _, left in _PROGRESS.findall(data):
            if int(done) >= plan.PROBE_STEPS:
                state.probed = True
                self.job.save()
                hours = (self._since() + timedelta(seconds=int(left))).total_seconds() / 3600
                dollars = hours * state.machine.price
                self.job.say("probe", f"about {hours:.1f} h and {money(dollars)} in all")
                request = state.request
                plan.refuse_over(request.max_cost, dollars, hours, request.max_hours)
                return

    def _since(self) -> timedelta:
        begun: datetime = self.job.state.machine.created or self.job.state.machine.planned
        return self.job.clock.now() - begun

    def _checkpoint(self, told: dict) -> None:
        """Fetch what is new, not more often than the way there bears."""
        now = self.job.clock.now()
        if not told["kept"] or told["kept"] == self._kept or now < self._next:
            return
        names: list[str] = []
        with self._going_on(AtlasError, OSError):
            names = fetch.checkpoint(self.way)
            self._kept = told["kept"]
        took = (self.job.clock.now() - now).total_seconds()
        self._next = self.job.clock.now() + timedelta(seconds=max(PULL_S, took / PULL_SHARE))
        if "checkpoints/last.ckpt" in names:
            self.job.say("fetch", "checkpoint and metrics")
