"""What can go wrong at the provider, by the number of a call or drawn from a seed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Answers to a call, for any operation.
REPLIES = (
    "unauthorized",  # 401
    "no_balance",  # 402; where nothing is created, as a 500
    "rate_limited",  # 429 with Retry-After: seconds
    "error",  # 500, nothing was done
    "bad_gateway",  # 502 with HTML, nothing was done
    "malformed",  # 200, JSON cut in the middle; it was done
    "slow",  # the answer comes after `seconds`; it was done
    "lost_reply",  # it was done, and the connection is cut instead of an answer
)
# What becomes of a pod; `call` counts create calls.
PODS = (
    "out_of_stock",
    "price_jump",  # twice the catalogue's price
    "never_ready",
    "late_ports",  # running, but without an address for `seconds`
    "late_listing",  # made, but in no list for `seconds`
    "vanish",  # gone `seconds` after it was made
)
CUT_LOGS = "cut_logs"  # the stream ends in the middle of its `call`-th event
KINDS = (*REPLIES, *PODS, CUT_LOGS)
OPERATIONS = ("account", "gpus", "create", "list", "get", "delete", "billing", "logs", "stop")


@dataclass(frozen=True)
class Fault:
    """One kind, at the `call`-th to (`call` + `times` - 1)-th call of an operation.

    `on` is an operation, or "*": then calls of all operations are counted together.
    """

    kind: str
    on: str = "*"
    call: int = 1
    times: int = 1
    seconds: float = 5.0

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        assert self.on == "*" or self.on in OPERATIONS, self.on

    def hits(self, operation: str, number: int, total: int) -> bool:
        count = total if self.on == "*" else number
        return self.on in ("*", operation) and self.call <= count < self.call + self.times


class Faults:
    """Counts calls, and says what befalls each. `counts` and `happened` are for the tests."""

    def __init__(self, faults: Iterable[Fault] = ()):
        self.planned = list(faults)
        self.counts: Counter[str] = Counter()
        self.happened: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()

    @classmethod
    def seeded(cls, seed: int, most: int = 3) -> Faults:
        """Draw one to `most` faults."""
        rng = random.Random(seed)
        return cls(_draw(rng) for _ in range(rng.randint(1, most)))

    def reply(self, operation: str) -> Fault | None:
        """Count a call; the fault of its answer, if any."""
        with self._lock:
            self.counts[operation] += 1
            number, total = self.counts[operation], self.counts.total()
            found = self._first(REPLIES, operation, number, total)
            return found

    def pod(self, kind: str) -> Fault | None:
        """Say what befalls the pod of the present create call."""
        with self._lock:
            number = self.counts["create"]
            return self._first((kind,), "create", number, number)

    def logs(self) -> Fault | None:
        """Say whether the present stream is cut."""
        with self._lock:
            number = self.counts["logs"]
            hits = [f for f in self.planned if f.kind == CUT_LOGS and number <= f.times]
            return hits[0] if hits else None

    def _first(self, kinds: Iterable[str], operation: str, number: int, total: int) -> Fault | None:
        for fault in self.planned:
            if fault.kind in kinds and fault.hits(operation, number, total):
                self.happened.append((operation, fault))
                return fault
        return None


def _draw(rng: random.Random) -> Fault:
    kind = rng.choice([k for k in KINDS if k != "unauthorized"])
    if kind in PODS:
        seconds = rng.choice([5.0, 40.0, 600.0])
        return Fault(
            kind, "create", call=rng.randint(1, 2), times=rng.randint(1, 2), seconds=seconds
        )
    operation = rng.choice(["*", "gpus", "create", "list", "get", "delete", "billing"])
    call = rng.randint(1, 12) if operation == "*" else rng.randint(1, 3)
    return Fault(
        kind, operation, call, times=rng.randint(1, 3), seconds=rng.choice([1.0, 5.0, 45.0])
    )
