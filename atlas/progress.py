"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S, _SHORT_S = 15.0, 3.0  # what ends sooner needs no line
quiet = False  # set by the command line's --quiet


def console() -> Console:
    """Where people are spoken to: standard error, so that standard output stays for data."""
    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


class Ticker:
    """Handle of one running bar: `advance` it, and give it a note to show."""

    def __init__(self, what: str, total: int, bar: Progress | None) -> None:
        self._what, self._total, self._bar = what, total, bar
        self._task = bar.add_task(what, total=total, note="") if bar else None
        self._done, self._start, self._last = 0, time.monotonic(), time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done."""
        self._done += steps
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=steps, note=note)
            return
        now = time.monotonic()
        ended = self._done == self._total and now - self._start >= _SHORT_S
        if now - self._last >= _LINE_EVERY_S or ended:
            self._last = now
            left = (now - self._start) / self._done * (self._total - self._done)
            console().print(f"{self._what}: {self._done}/{self._total}, {left:.0f} s left {note}")


@contextmanager
def track(what: str, total: int) -> Iterator[Ticker]:
    """Show the progress of `total` steps of `what` while the block runs."""
    if quiet or not sys.stderr.isatty():
        yield Ticker(what, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console(), transient=False) as bar:
        yield Ticker(what, total, bar)
