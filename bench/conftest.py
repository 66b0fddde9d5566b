"""What the benchmarks share: the data, a model, how a ratio is measured, the table at the end.

Seconds say more about a machine than about this code, so every benchmark records ratios: the median
time of ours divided by that of something else, larger is worse. A round of ours alternates with one
of each of the others, so that a machine that slows down for a while slows both sides.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line; before torch is loaded

import ctypes
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning

from atlas import config
from atlas.data.dataset import Dataset
from atlas.data.prepare import Settings, prepare
from atlas.inference import Atlas
from atlas.training.run import train

Call = Callable[[], Any]
SMALL = ["model.width=8", "model.growth=8"]  # of the default network, with convolutions
SECONDS, ROUNDS = 3.0, (7, 3000)  # aim of one benchmark; fewest and most rounds
SHORT = 0.02  # seconds
# glibc would give large blocks back to the system when they are freed, and every call would wait
# for fresh pages: ours and what it is compared with alike keep them.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, 2**30
if hasattr(libc := ctypes.CDLL(None), "mallopt"):
    libc.mallopt(M_MMAP_THRESHOLD, NEVER)
    libc.mallopt(M_TRIM_THRESHOLD, NEVER)
ROWS = pytest.StashKey[list[tuple[str, ...]]]()


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Prepare the bundled studyset once."""
    return prepare(Settings(), tmp_path_factory.mktemp("data") / "bundled")


@pytest.fixture(scope="session")
def atlas(bundled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Load a small network at 4 mm; one epoch is as fast as twelve."""
    resolved = config.load(None, [*SMALL, "train.epochs=1"])
    return Atlas.load(train(resolved, bundled, tmp_path_factory.mktemp("runs") / "model"))


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., float]:
    """Return a function that times `ours` beside named others and returns our median in seconds."""

    def measure(ours: Call, **others: Call) -> float:
        # The first calls warm up, the second ones say how many rounds there is time for.
        calls = {"": ours, **others}
        once = [{name: _seconds(call) for name, call in calls.items()} for _ in range(2)][1]
        rounds = min(max(int(SECONDS / sum(once.values())), ROUNDS[0]), ROUNDS[1])
        times: dict[str, list[float]] = {name: [] for name in others}

        def warm(name: str) -> None:
            """Let a short call find its buffers and threads as it left them, as in a loop."""
            if once[name] < SHORT:
                calls[name]()

        def time_others() -> None:
            for name, other in others.items():
                warm(name)
                times[name].append(_seconds(other))
            warm("")

        benchmark.pedantic(ours, setup=time_others, rounds=rounds)
        if benchmark.disabled:  # --benchmark-disable: run once, check, measure nothing
            return once[""]
        median: float = benchmark.stats["median"]
        ratios = {name: median / statistics.median(taken) for name, taken in times.items()}
        benchmark.extra_info["ratio"] = {name: float(f"{r:.3g}") for name, r in ratios.items()}
        listed = [f"{ratio:.3g} x {name}" for name, ratio in ratios.items()]
        request.config.stash[ROWS].append((benchmark.name, _readable(median), ", ".join(listed)))
        return median

    return measure


# The peak that rusage tells would be this process's where the child was forked from it.
_OBSERVED = """
import atexit, re, sys
from atlas.cli import main
status = lambda: re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
atexit.register(lambda: print(status(), file=sys.stderr))
main()
"""


@pytest.fixture
def once(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that runs one command of ours and notes its seconds and peak memory."""

    def once(*arguments: object) -> None:
        def run() -> float:
            command = [sys.executable, "-c", _OBSERVED, *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return int(done.stderr.split()[-1]) / 2**20

        peak: float = benchmark.pedantic(run, rounds=1)
        if not benchmark.disabled:
            benchmark.extra_info["peak_gb"] = round(peak, 2)
            seconds = _readable(benchmark.stats["median"])
            request.config.stash[ROWS].append((benchmark.name, seconds, f"{peak:.2g} GB at most"))

    return once


@pytest.fixture
def report(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that notes what was timed elsewhere, as in a browser: seconds, facts."""

    def report(seconds: float, ratio: dict[str, float] | None = None, **facts: object) -> None:
        if benchmark.disabled:
            return
        if benchmark.stats is None:  # pytest-benchmark wants a round of its own
            benchmark.pedantic(lambda: None)
        benchmark.extra_info.update(facts, seconds=float(f"{seconds:.3g}"), ratio=ratio or {})
        listed = [f"{value:.3g} x {name}" for name, value in (ratio or {}).items()]
        listed += [f"{name} {value}" for name, value in facts.items()]
        row = (benchmark.name, _readable(seconds), ", ".join(listed))
        request.config.stash[ROWS].append(row)

    return report


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _readable(seconds: float) -> str:
    scale, unit = next((s, u) for s, u in ((1, "s"), (1e3, "ms"), (1e6, "us")) if seconds * s >= 1)
    return f"{seconds * scale:.3g} {unit}"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.option.benchmark_quiet = True  # one table is enough: the one below
    # That a failed benchmark measured nothing is no error of its own, which would hide the cause:
    # neither in the tests (first line) nor at the session's end (second).
    config.addinivalue_line(
        "filterwarnings", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"
    )
    warnings.simplefilter("ignore", PytestBenchmarkWarning)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash[ROWS]
    if not rows:
        return
    width = max(len(row[0]) for row in rows)
    terminalreporter.section("benchmarks: median, and its ratio to others (larger is worse)")
    for name, median, ratios in rows:
        terminalreporter.write_line(f"{name:{width}}  {median:>8}  {ratios}")


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Keep what the speed depends on; no names of hosts."""
    cpu = machine_info["cpu"].get("brand_raw") or platform.machine()
    machine_info.clear()
    machine_info.update(
        cpu=f"{cpu}, {os.cpu_count()} cores",
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
    )


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep what `bench.compare` and a reader need, a few kilobytes, fit to be committed."""
    output_json.pop("commit_info")
    output_json["command"] = " ".join(["python -m pytest", *config.invocation_params.args])
    output_json["benchmarks"] = [
        {
            "name": row["name"],
            "extra_info": row["extra_info"],
            "stats": {key: row["stats"][key] for key in ("median", "rounds")},
        }
        for row in output_json["benchmarks"]
    ]
