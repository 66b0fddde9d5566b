"""The desk where maps are made: one at a time, in a line of bounded length, the newest wins."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import anyio

T = TypeVar("T")


class Full(Exception):
    """The line is as long as it may get; come again."""


class Superseded(Exception):
    """A newer request of the same client has taken this one's place in the line."""


class _Ticket:
    """A place in the line: woken when its turn has come, or when a newer one takes it."""

    def __init__(self) -> None:
        self.turn, self.superseded = anyio.Event(), False


class Desk:
    """Runs work in a thread, one piece at a time: torch uses all cores for one map already.

    Parameters
    ----------
    most : int
        Requests that may wait; further ones get `Full`.
    """

    def __init__(self, most: int) -> None:
        self._most, self._busy = most, False
        self._line: dict[Hashable, _Ticket] = {}  # in order; a newer one keeps the older's place

    @property
    def busy(self) -> bool:
        """Whether something is being made."""
        return self._busy

    async def do(self, work: Callable[[], T], key: Hashable | None = None) -> T:
        """Run `work` when its turn comes.

        Parameters
        ----------
        key : hashable, optional
            Who asks for what. A waiting request of the same key is dropped; one that runs is not.

        Raises
        ------
        Full, Superseded
            The line is full; a newer request of the same key came while this one waited.
        """
        if self._busy:
            await self._wait(key)
        self._busy = True
        try:
            return await anyio.to_thread.run_sync(work)
        finally:
            self._next()

    async def _wait(self, key: Hashable | None) -> None:
        ticket = _Ticket()
        key = ticket if key is None else key
        older = self._line.get(key)
        if older is not None:
            older.superseded = True
            older.turn.set()
        elif len(self._line) >= self._most:
            raise Full
        self._line[key] = ticket
        try:
            await ticket.turn.wait()
        except BaseException:  # the server stops, or gave the client up
            if self._line.get(key) is ticket:
                del self._line[key]
            elif not ticket.superseded:
                self._next()  # its turn had come already: hand it on
            raise
        if ticket.superseded:
            raise Superseded

    def _next(self) -> None:
        """Wake who is first in line; the desk stays busy until the line is empty."""
        self._busy = bool(self._line)
        if self._line:
            self._line.pop(next(iter(self._line))).turn.set()
