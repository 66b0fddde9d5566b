"""The viewer's server: one map over HTTP beside the decoder alone, and sixteen hands on sliders."""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from atlas.inference import Atlas

CLIENTS, BURST = 16, 200
SECONDS = 60 if os.environ.get("ATLAS_SOAK") == "1" else 15
WARM = 0.3  # share of the time after which the kept answers have filled their memory
GROWTH = 1.05


class Server(NamedTuple):
    """`atlas serve` in a process of its own, with the released model."""

    address: str
    pid: int

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1024


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    command = [sys.executable, "-m", "atlas.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield Server(found[0], process.pid)
        process.terminate()


def test_serve_one_map(measure: Callable[..., float], server: Server) -> None:
    atlas = Atlas.load()
    codes = np.random.default_rng(0).normal(size=(100_000, atlas.latent)).round(4)
    ours, alone = itertools.cycle(codes), itertools.cycle(codes)
    with httpx.Client(base_url=server.address) as client:
        first = client.post("/api/decode", json={"z": codes[0].tolist()})
        raw = np.frombuffer(first.content, "<f2").astype(np.float32)
        scale = json.loads(first.headers["X-Atlas-Scales"])[0]
        expected = atlas.decode_array(codes[0])[0].ravel(order="F")
        assert np.allclose(raw * scale, expected, atol=1e-3 * scale)
        measure(
            lambda: client.post("/api/decode", json={"z": next(ours).tolist()}),
            decode=lambda: atlas.decode_array(next(alone)),
        )


def test_sixteen_clients_drag_sliders(
    benchmark: Any, report: Callable[..., None], server: Server
) -> None:
    """Each asks for its next place once the last one is on its screen; nobody waits for ever."""
    seen: list[tuple[float, float]] = []  # when answered, how long it took
    rss: list[float] = []

    def drag(number: int, start: float) -> set[int]:
        rng, statuses = np.random.default_rng(number), set()
        z = rng.normal(size=64)
        with httpx.Client(base_url=server.address, timeout=30) as client:
            while (now := time.perf_counter()) < start + SECONDS:
                z[int(now) % 64] += 0.02  # a slider moves; another one each second
                body = {"z": z.round(5).tolist(), "metadata": {}}
                headers = {"X-Atlas-Client": str(number)}
                statuses.add(client.post("/api/decode", json=body, headers=headers).status_code)
                done = time.perf_counter()
                seen.append((done - start, done - now))
                if number == 0:
                    rss.append(server.rss_mb())
        return statuses

    def everybody() -> set[int]:
        start = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            return set().union(*pool.map(lambda k: drag(k, start), range(CLIENTS)))

    statuses = benchmark.pedantic(everybody, rounds=1)
    assert statuses == {200}
    warm = rss[int(WARM * len(rss)) :]
    growth = statistics.mean(warm[-10:]) / statistics.mean(warm[:10])
    assert growth < GROWTH
    waits = [took for at, took in seen if at > 1]
    p95 = float(np.quantile(waits, 0.95))
    report(
        SECONDS,
        maps_per_second=round(len(seen) / SECONDS, 1),
        median_ms=round(1e3 * statistics.median(waits)),
        p95_ms=round(1e3 * p95),
        rss_mb=round(warm[-1]),
        rss_growth=round(growth, 3),
    )


@pytest.mark.parametrize("client_id", [None, "one hand"])
def test_a_burst_past_capacity_is_answered(server: Server, client_id: str | None) -> None:
    """Everybody hears something soon: a map, or 429, or that a newer request came."""
    headers = {"X-Atlas-Client": client_id.replace(" ", "-")} if client_id else {}
    codes = np.random.default_rng(1).normal(size=(BURST, 64)).round(4)

    def ask(z: np.ndarray) -> int:
        with httpx.Client(base_url=server.address, timeout=30) as client:
            answer = client.post("/api/decode", json={"z": z.tolist()}, headers=headers)
            return answer.status_code

    with ThreadPoolExecutor(BURST) as pool:
        statuses = list(pool.map(ask, codes))
    assert set(statuses) <= {200, 429 if client_id is None else 409}
    assert 0 < statuses.count(200) < BURST
