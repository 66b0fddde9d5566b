"""Answers given before, kept while they fit into a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple


class Answer(NamedTuple):
    """Bytes and headers of a response."""

    body: bytes
    headers: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.body) + sum(len(text) for item in self.headers.items() for text in item)


class Recent:
    """The least recently used answer goes first; used from the event loop alone.

    Parameters
    ----------
    most : int
        Bytes of all bodies and headers together.
    """

    def __init__(self, most: int) -> None:
        self._most, self.size = most, 0
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()

    def get(self, key: Hashable) -> Answer | None:
        """Return an answer given before, or None."""
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: Hashable, answer: Answer) -> None:
        """Keep an answer."""
        old = self._answers.pop(key, None)
        self.size += answer.size - (old.size if old else 0)
        self._answers[key] = answer
        while self.size > self._most:
            _, gone = self._answers.popitem(last=False)
            self.size -= gone.size
