"""The line before the decoder: bounded, in order, the newest of one client wins."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import anyio
import pytest

from atlas.web.desk import Desk, Full, Superseded
from atlas.web.library import Library
from atlas.web.recent import Answer, Recent
from atlas.web.schemas import EncodeRequest
from atlas.web.service import Service


class Gate:
    """Work that waits until it is let go, and says in which order it ran."""

    def __init__(self) -> None:
        self.free, self.ran = threading.Event(), []

    def work(self, name):
        def run():
            assert self.free.wait(10)
            self.ran.append(name)
            return name

        return run


def outcomes(requests, most=2):
    """Ask for everything while the first one is being made; what became of each, and the order."""
    gate, out = Gate(), {}

    async def ask(desk, name, key):
        try:
            out[name] = await desk.do(gate.work(name), key)
        except (Full, Superseded) as error:
            out[name] = type(error).__name__

    async def everything():
        desk = Desk(most)
        async with anyio.create_task_group() as group:
            for name, key in requests:
                group.start_soon(ask, desk, name, key)
                await anyio.sleep(0.01)  # it is in the line, or refused
            assert desk.busy
            gate.free.set()
        assert not desk.busy

    anyio.run(everything)
    return out, gate.ran


def test_first_come_first_served():
    assert outcomes([("a", None), ("b", None), ("c", None)]) == (
        {"a": "a", "b": "b", "c": "c"},
        ["a", "b", "c"],
    )


def test_the_line_is_bounded():
    out, ran = outcomes([("a", None), ("b", None), ("c", None), ("d", None)])
    assert out["d"] == "Full"
    assert ran == ["a", "b", "c"]


def test_the_newest_of_one_client_takes_the_place_in_the_line():
    out, ran = outcomes([("a", 1), ("b", 1), ("c", 2), ("d", 1), ("e", 1)])
    assert out == {"a": "a", "b": "Superseded", "c": "c", "d": "Superseded", "e": "e"}
    assert ran == ["a", "e", "c"]  # what runs is not stopped


def test_failures_do_not_hold_the_line_up():
    async def everything():
        desk = Desk(2)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await desk.do(lambda: 1 / 0)
        return await desk.do(lambda: "still there")

    assert anyio.run(everything) == "still there"


def test_who_gives_up_while_waiting_leaves_the_line():
    gate = Gate()

    async def everything():
        desk = Desk(1)
        async with anyio.create_task_group() as group:
            group.start_soon(desk.do, gate.work("a"))
            await anyio.sleep(0.01)
            with anyio.move_on_after(0.01):
                await desk.do(gate.work("gives up"))
            group.start_soon(desk.do, gate.work("b"))  # there is room again
            await anyio.sleep(0.01)
            gate.free.set()

    anyio.run(everything)
    assert gate.ran == ["a", "b"]


def test_recent_answers_are_kept_within_their_bytes():
    recent = Recent(10)
    for name in "abc":
        recent.put(name, Answer(b"1234", {}))
    assert recent.get("a") is None
    assert recent.get("b") is not None
    recent.put("d", Answer(b"1234", {}))
    assert recent.get("c") is None  # b was asked for later
    recent.put("d", Answer(b"12", {}))
    assert recent.size == 6
    recent.put("big", Answer(bytes(11), {}))
    assert recent.size == 0


def test_what_is_kept_is_bounded_however_long_the_questions() -> None:
    """A short answer to a long question must not hold the question."""
    service = Service(SimpleNamespace(), None, Library.none("none"))
    body = EncodeRequest(peaks=[(0.0, 0.0, 0.0)] * 5000)
    anyio.run(service.answer, body, lambda: Answer(b"code", {"X-Name": "value"}), None)
    ((asked, kept),) = service._recent._answers.items()
    assert sum(len(part) for part in asked) < 100
    assert service._recent.size == kept.size == len("codeX-Namevalue")
