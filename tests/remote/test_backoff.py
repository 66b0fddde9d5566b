"""Pauses: how many, how long, and which errors are tried again."""

from __future__ import annotations

import random

import pytest

from atlas.errors import AtlasError
from atlas.remote.backoff import STUBBORN, Backoff
from atlas.remote.errors import NoBalance, ProviderDown
from tests.remote.double import FakeClock


def _failing(times: int, error: Exception) -> tuple[list[int], object]:
    calls: list[int] = []

    def action() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return calls, action


def test_pauses_double_with_jitter_up_to_the_most() -> None:
    pauses = list(Backoff(attempts=8, first=1, most=10).pauses(random.Random(0)))
    assert len(pauses) == 7
    for pause, full in zip(pauses, (1, 2, 4, 8, 10, 10, 10)):
        assert full / 2 <= pause <= full
    assert list(Backoff().pauses(random.Random(1))) != list(Backoff().pauses(random.Random(2)))


def test_only_what_may_pass_is_tried_again() -> None:
    clock = FakeClock()
    calls, action = _failing(3, ProviderDown("down"))
    assert Backoff().call(action, clock, random.Random(0)) == "done"  # type: ignore[arg-type]
    assert (len(calls), len(clock.slept)) == (4, 3)
    calls, action = _failing(99, ProviderDown("down"))
    with pytest.raises(ProviderDown, match="down"):
        Backoff().call(action, clock, random.Random(0))  # type: ignore[arg-type]
    assert len(calls) == 6
    for error in (NoBalance("no money"), AtlasError("bad"), KeyError("bug")):
        calls, action = _failing(99, error)
        with pytest.raises(type(error)):
            Backoff().call(action, clock, random.Random(0))  # type: ignore[arg-type]
        assert len(calls) == 1


def test_retry_after_is_honoured_unless_it_is_too_long() -> None:
    clock = FakeClock()
    _, action = _failing(1, ProviderDown("busy", retry_after=40))
    Backoff().call(action, clock, random.Random(0))  # type: ignore[arg-type]
    assert clock.slept == [40]
    calls, action = _failing(1, ProviderDown("busy", retry_after=4000))
    with pytest.raises(ProviderDown):
        Backoff().call(action, clock, random.Random(0))  # type: ignore[arg-type]
    assert len(calls) == 1 and clock.slept == [40]


def test_ending_a_pod_is_tried_for_minutes() -> None:
    assert 300 < sum(STUBBORN.pauses(random.Random(0))) < 900
