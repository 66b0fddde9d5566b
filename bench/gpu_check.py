"""Everything that needs a GPU, in one call: python -m bench.gpu_check (or make gpu-check).

Runs the GPU tests, compute-sanitizer over the small ones where it is installed, then times
splat beside a fill of the same bytes and torch scatter + conv3d, group_norm_film and dense_block
beside eager PyTorch, torch.compile and a device copy, and writes
bench/results/<device>.json, which `python -m bench.compare` reads. Exit code 1 if a test fails.

Contenders take turns; the second-level cache is overwritten before each call, alike for all.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

import atlas_kernels
from atlas_kernels.group_norm_film.op import TABLE
from atlas_kernels.splat.op import TABLE as SPLATS
from tests.kernels.cases import MNI_2MM

ROOT = Path(__file__).parents[1]
COORDINATES = "neurosynth/data-neurosynth_version-7_coordinates.tsv.gz"
DEVICE, ROUNDS, CACHE = "cuda", 25, 256 * 2**20  # bytes: more than any second-level cache
TESTS = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "tests/kernels/test_gpu.py",
    "tests/kernels/test_gpu_splat.py",
]
SMALL = [
    "-k",
    "absent or wider or aligned or (shapes and not 46 and not 91 and not 70000)"
    " or cases or spheres or clamped or spoil",
]
Call = Callable[[], Any]
# The issue's own shape, then the models' at 4 and 2 mm; groups of eight channels.
NORM_SHAPES = [
    (16, 64, 46, 55, 46),
    (4, 16, 46, 55, 46),
    (4, 64, 23, 28, 23),
    (4, 128, 12, 14, 12),
    (1, 16, 91, 109, 91),
]
# N, C0, growth, dilations, grid.
BLOCKS = [
    (16, 64, 32, (1, 2, 4, 8), (46, 55, 46)),
    (4, 16, 16, (1, 1, 1, 1), (46, 55, 46)),
    (4, 64, 16, (1, 2, 4, 8), (12, 14, 12)),
]


# ---- correctness ---------------------------------------------------------------------------------


def passes(name: str, command: list[str], **environment: str) -> bool:
    print(f"== {name}", flush=True)
    return not subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode


def checks() -> dict[str, bool | str]:
    """Run the tests, plain and under each tool of compute-sanitizer; what came of them."""
    results: dict[str, bool | str] = {"tests": passes("tests", TESTS)}
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in ("memcheck", "racecheck"):
        if not Path(sanitizer).exists():
            results[tool] = "compute-sanitizer is not installed"
            continue
        command = [sanitizer, f"--tool={tool}", "--error-exitcode=1", *TESTS, *SMALL]
        results[tool] = passes(tool, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return results


# ---- time ----------------------------------------------------------------------------------------


def measure(calls: dict[str, Call]) -> dict[str, float]:
    """Return the median milliseconds of each call."""
    cache = torch.empty(CACHE // 4, device=DEVICE)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for _ in range(3):
        for call in calls.values():
            call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            cache.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {
        name: statistics.median(start.elapsed_time(end) for start, end in pairs)
        for name, pairs in events.items()
    }


def peak_bytes(call: Call) -> int:
    """Return what a call holds at most beyond what is there before it."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def row(name: str, ours: str, times: dict[str, float], **floors: float) -> dict[str, Any]:
    """Lay one benchmark out as pytest-benchmark does, and print it."""
    others = {**{n: t for n, t in times.items() if n != ours}, **floors}
    ratio = {other: float(f"{times[ours] / time:.3g}") for other, time in others.items()}
    print(f"{name:60} {times[ours]:9.3f} ms  " + ", ".join(f"{r} x {n}" for n, r in ratio.items()))
    stats = {"median": times[ours] / 1e3, "rounds": ROUNDS}
    return {"name": name, "extra_info": {"ratio": ratio}, "stats": stats}


def in_layout(x: torch.Tensor, last: bool) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d) if last else x


def eager_norm(x: torch.Tensor, groups: int, *parameters: torch.Tensor) -> torch.Tensor:
    weight, bias, gamma, beta = parameters
    spread = (..., *[None] * 3)
    y = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype))
    return F.silu(y * (1 + gamma.to(x.dtype)[spread]) + beta.to(x.dtype)[spread])


def with_gradients(call: Call, inputs: list[torch.Tensor], upstream: torch.Tensor) -> Call:
    return lambda: torch.autograd.grad(call(), inputs, upstream)


def norm_rows(shape: tuple[int, ...], last: bool, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    groups = shape[1] // 8
    x = in_layout(torch.randn(shape, device=DEVICE, dtype=dtype), last).requires_grad_()
    sizes = [shape[1:2]] * 2 + [shape[:2]] * 2
    parameters = [torch.randn(size, device=DEVICE).requires_grad_() for size in sizes]
    compiled = torch.compile(eager_norm, dynamic=False)
    out = torch.empty_like(x)
    copy = {"copy": lambda: out.copy_(x.detach())}
    others: dict[str, Call] = {
        "eager": lambda: eager_norm(x, groups, *parameters),
        "compile": lambda: compiled(x, groups, *parameters),
    }
    for backend in [r.name for r in TABLE if r.devices == ("cuda",) and not r.why_not()]:
        ours = {
            backend: lambda backend=backend: atlas_kernels.group_norm_film(
                x, groups, *parameters, backend=backend
            )
        }
        place = "channels_last" if last else "contiguous"
        name = f"{backend}-{'x'.join(map(str, shape))}-{place}-{str(dtype)[6:]}"
        with torch.no_grad():
            times = measure({**ours, **others, **copy})
        # A copy moves the bytes twice; two passes forward move them three times, backward five.
        yield row(f"group_norm_film[forward-{name}]", backend, times, floor=times["copy"] * 1.5)
        inputs, upstream = [x, *parameters], torch.randn_like(x)
        both = {n: with_gradients(c, inputs, upstream) for n, c in {**ours, **others}.items()}
        times = measure({**both, **copy})
        yield row(f"group_norm_film[both-{name}]", backend, times, floor=times["copy"] * 4)


def dense_rows(
    n: int, channels: int, growth: int, dilations: tuple[int, ...], grid: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Time a whole block; its arguments are lists with one entry a layer."""
    bf16 = {"device": DEVICE, "dtype": torch.bfloat16}
    widths = [channels + growth * i for i in range(len(dilations))]
    x = in_layout(torch.randn((n, channels, *grid), **bf16), True).requires_grad_()
    convs = [in_layout(torch.randn((growth, w, 3, 3, 3), **bf16) * 0.02, True) for w in widths]
    films = [
        [torch.randn((w,) if i < 2 else (n, w), device=DEVICE) for w in widths] for i in range(4)
    ]
    inputs = [t.requires_grad_() for t in (*convs, *(t for film in films for t in film))]

    def eager() -> torch.Tensor:
        y = x
        for conv, dilation, *film in zip(convs, dilations, *films, strict=True):
            z = eager_norm(y, y.shape[1] // 8, *film)
            y = torch.cat([y, F.conv3d(z, conv, padding=dilation, dilation=dilation)], 1)
        return y

    calls: dict[str, Call] = {
        "ours": lambda: atlas_kernels.dense_block(x, convs, *films, dilations),
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
    }
    upstream = torch.randn_like(eager())
    both = {k: with_gradients(call, [x, *inputs], upstream) for k, call in calls.items()}
    name = f"dense_block[both-{n}x{channels}+{growth}-{dilations}-{'x'.join(map(str, grid))}]"
    entry = row(name, "ours", measure(both))
    entry["extra_info"]["peak_bytes"] = {k: peak_bytes(call) for k, call in both.items()}
    print(f"{'':60} peak bytes {entry['extra_info']['peak_bytes']}")
    yield entry


def splat_peaks() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the peaks of 64 studies of at least 5, of Neurosynth or NiMARE's own, and offsets."""
    if os.environ.get("ATLAS_NEUROSYNTH"):
        file = Path(os.environ["ATLAS_NEUROSYNTH"], COORDINATES)
        table = pd.read_csv(file, sep="\t")
    else:
        from nimare.nimads import Studyset
        from nimare.utils import get_resource_path

        folder = Path(get_resource_path()) / "nback_vs_flanker_studyset_2026-07"
        table = Studyset.from_parquet(str(folder), target=None).coordinates
        table = table.assign(id=table["study_id"])
    table = table[table.groupby("id")["id"].transform("size") >= 5]
    ids = table["id"].unique()
    ids = [ids[i % len(ids)] for i in range(64)]  # a small studyset again and again
    studies = [table.loc[table["id"] == i, ["x", "y", "z"]].to_numpy("float32") for i in ids]
    counts = torch.tensor([0, *map(len, studies)])
    peaks = torch.cat([torch.from_numpy(study) for study in studies])
    return peaks.to(DEVICE), counts.cumsum(0).to(DEVICE)


def scatter_convolve(
    peaks: torch.Tensor, offsets: torch.Tensor, fwhm: float, dtype: torch.dtype
) -> torch.Tensor:
    """Add peaks to the voxels nearest to them, then convolve along each axis."""
    shape = MNI_2MM.shape
    volumes = torch.zeros((len(offsets) - 1, 1, *shape), device=DEVICE, dtype=dtype)
    ijk = (peaks - peaks.new_tensor(MNI_2MM.origin)) / peaks.new_tensor(MNI_2MM.spacing)
    x, y, z = ijk.round().long().clamp(min=0).minimum(ijk.new_tensor(shape).long() - 1).T
    study = torch.searchsorted(offsets, torch.arange(len(peaks), device=DEVICE), right=True) - 1
    volumes.index_put_((study, torch.zeros_like(study), x, y, z), volumes.new_ones(()), True)
    sigma = fwhm / 2.3548 / 2
    radius = int(4 * sigma + 0.5)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=DEVICE) / sigma) ** 2)
    for axis in range(3):
        form = [1] * 5
        form[2 + axis] = len(line)
        pad = [radius if a == axis else 0 for a in range(3)]
        volumes = F.conv3d(volumes, line.to(dtype).view(form), padding=pad)
    return volumes


def splat_rows(fwhm: float, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    peaks, offsets = splat_peaks()
    width = torch.tensor([fwhm], device=DEVICE)
    shape = (len(offsets) - 1, 1, *MNI_2MM.shape)
    out, upstream = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    leaves = [peaks.clone().requires_grad_(), width.clone().requires_grad_()]
    for backend in [r.name for r in SPLATS if r.devices == ("cuda",) and not r.why_not()]:
        for mode in ("sum", "max", "union"):
            options = {"mode": mode, "backend": backend}

            def forward(options: dict[str, Any] = options) -> torch.Tensor:
                return atlas_kernels.splat(peaks, offsets, MNI_2MM, width, out=out, **options)

            drawn = atlas_kernels.splat(
                leaves[0], offsets, MNI_2MM, leaves[1], dtype=dtype, **options
            )

            def backward(drawn: torch.Tensor = drawn) -> Any:
                return torch.autograd.grad(drawn, leaves, upstream, retain_graph=True)

            name = f"{backend}-{mode}-{str(dtype)[6:]}-fwhm{fwhm:g}-64"
            others: dict[str, Call] = {
                "memset": out.zero_,
                "conv3d": lambda: scatter_convolve(peaks, offsets, fwhm, dtype),
            }
            times = measure({"ours": forward, **others})
            yield row(f"splat_forward[{name}]", "ours", times)
            times = measure({"ours": backward, "forward": forward})
            yield row(f"splat_backward[{name}]", "ours", times)


def rows() -> Iterator[dict[str, Any]]:
    for fwhm, dtype in product((6.0, 12.0), (torch.float32, torch.bfloat16)):
        yield from splat_rows(fwhm, dtype)
        start_afresh()
    for shape, last, dtype in product(NORM_SHAPES, (False, True), (torch.bfloat16, torch.float32)):
        yield from norm_rows(shape, last, dtype)
        start_afresh()
    for block in BLOCKS if hasattr(atlas_kernels, "dense_block") else ():
        yield from dense_rows(*block)
        start_afresh()


def start_afresh() -> None:
    """Free memory, and what torch.compile knows, which would give up after a few shapes."""
    torch.cuda.empty_cache()
    torch.compiler.reset()


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_check: there is no CUDA device", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name()
    done = checks()
    machine = {
        "gpu": device,
        "cpu": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    file = ROOT / "bench/results" / f"{re.sub(r'[^a-z0-9]+', '_', device.lower())}.json"
    result = {"machine_info": machine, "checks": done, "benchmarks": list(rows())}
    result["command"] = "python -m bench.gpu_check"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {file.relative_to(ROOT)}")
    return int(False in done.values())


if __name__ == "__main__":
    sys.exit(main())
