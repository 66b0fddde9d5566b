"""Trying again: pauses that double, with jitter, under the injected clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .errors import ProviderDown
from .provider import Clock

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """How often and how long; the pause is drawn from half of it to all of it.

    Attributes
    ----------
    attempts : calls in all
    first, most : seconds of the first pause, and of the longest that we choose ourselves
    longest_wait : seconds of a Retry-After that is honoured; a longer one is given up on
    """

    attempts: int = 6
    first: float = 1.0
    most: float = 30.0
    longest_wait: float = 300.0

    def pauses(self, rng: random.Random) -> Iterator[float]:
        """Seconds between one attempt and the next."""
        for n in range(self.attempts - 1):
            yield min(self.first * 2**n, self.most) * rng.uniform(0.5, 1.0)

    def call(self, action: Callable[[], T], clock: Clock, rng: random.Random) -> T:
        """Call until it succeeds; only ProviderDown is tried again, the last one is raised."""
        for pause in self.pauses(rng):
            try:
                return action()
            except ProviderDown as error:
                if (error.retry_after or 0) > self.longest_wait:
                    raise
                clock.sleep(max(pause, error.retry_after or 0))
        return action()


# A pod that is not confirmed gone costs money: ten minutes of trying before a person is asked.
STUBBORN = Backoff(attempts=16, most=60.0, longest_wait=600.0)
