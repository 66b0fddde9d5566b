"""splat's GPU kernels against the reference: on a GPU, or interpreted.

With TRITON_INTERPRET=1 the Triton kernels run as Python on the CPU, so only on tiny inputs.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch

import atlas_kernels
from atlas_kernels._dispatch import Implementation
from atlas_kernels.splat import reference
from atlas_kernels.splat.op import TABLE
from atlas_kernels.splat.problem import Problem

from .cases import CASES, GRADIENT_TOLERANCE, MNI_2MM, SMALL, TOLERANCE, Case, Inputs, grid, inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no CUDA device (nor TRITON_INTERPRET=1)", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"
MODES = ("sum", "max", "union")
ROWS = [row for row in TABLE if row.devices == ("cuda",)]
if INTERPRETED:
    ROWS = [row for row in TABLE if row.name == "triton"]
on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="interpreted")
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value) encountered:RuntimeWarning"
)


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Implementation:
    chosen: Implementation = request.param
    reason = chosen.refuses(DEVICE)
    if reason:
        pytest.skip(f"{chosen.name}: {reason}")
    return chosen


def moved(problem: Problem, device: str | torch.device = DEVICE) -> Problem:
    return Problem(*(f.to(device) if isinstance(f, torch.Tensor) else f for f in problem))


def on_device(given: Inputs) -> Inputs:
    options = {
        k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.options.items()
    }
    weights = None if given.weights is None else given.weights.to(DEVICE)
    return replace(
        given,
        peaks=given.peaks.to(DEVICE),
        offsets=given.offsets.to(DEVICE),
        fwhm=given.fwhm.to(DEVICE),
        weights=weights,
        options=options,
    )


def forward(row: Implementation, problem: Problem, dtype: torch.dtype) -> torch.Tensor:
    out = torch.full(problem.output_shape(), 77, dtype=dtype, device=problem.peaks_mm.device)
    row.forward(problem, out)
    return out


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    scale = max(float(want.abs().max()), 1e-30) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * scale)


def compare(row: Implementation, problem: Problem, dtype: torch.dtype) -> None:
    got = forward(row, problem, dtype)
    close(got, reference.forward(problem), TOLERANCE[dtype])
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(got)
    wanted = reference.backward(upstream, problem)
    for grad, want in zip(row.backward(upstream, problem), wanted, strict=True):
        close(grad, want, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(row: Implementation, case: Case, mode: str, dtype: torch.dtype) -> None:
    if INTERPRETED and dtype == torch.float64:
        pytest.skip("interpreted in float32")
    compare(row, moved(inputs(case).problem(mode)), dtype)


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("name", ["plain", "crowded", "masked"])
def test_spheres(row: Implementation, name: str, count: bool) -> None:
    case = next(case for case in CASES if case.name == name)
    problem = moved(inputs(case).problem("sum"))
    problem = problem._replace(splat_mode="sphere", counts=count, weights=None)
    for dtype in (torch.uint8, torch.float32):
        got = forward(row, problem, dtype)
        assert torch.equal(got.double(), reference.forward(problem))


@on_a_gpu
@pytest.mark.parametrize("mode", MODES)
def test_halves_are_rounded_once(row: Implementation, mode: str) -> None:
    problem = moved(inputs(Case("halves", counts=(6, 2), weights="mixed")).problem(mode))
    single = forward(row, problem, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(forward(row, problem, dtype), single.to(dtype))
        compare(row, problem, dtype)


@on_a_gpu
def test_a_whole_brain(row: Implementation) -> None:
    case = Case("brain", MNI_2MM, (35, 0, 12), (6.0, 12.0), "positive")
    problem = moved(inputs(case).problem("max"))
    compare(row, problem, torch.float32)


BAD = [("peaks_mm", math.nan), ("weights", math.inf), ("widths", 0.0), ("widths", math.nan)]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_numbers_spoil_their_own_study(row: Implementation, name: str, value: float) -> None:
    case = Case("bad", counts=(2, 3, 0, 1), weights="positive", widths_of="peaks")
    sound = moved(inputs(case).problem("max"))
    spoilt = sound._replace(**{name: getattr(sound, name).clone()})
    getattr(spoilt, name)[3] = value
    got, want = (forward(row, problem, torch.float32) for problem in (spoilt, sound))
    assert got[1].isnan().all() and torch.equal(got[[0, 2, 3]], want[[0, 2, 3]])


@pytest.mark.parametrize("offsets", [[-7, 2, 3], [0, 2, 900], [5, 2, 3], [3, 3, 3]], ids=str)
def test_offsets_out_of_range_are_clamped(row: Implementation, offsets: list[int]) -> None:
    problem = inputs(Case("clamped", counts=(2, 1))).problem("sum")
    compare(row, moved(problem._replace(offsets=torch.tensor(offsets))), torch.float32)


def test_unaligned_out(row: Implementation) -> None:
    problem = moved(inputs(CASES[0]).problem("sum"))
    want = forward(row, problem, torch.float32)
    room = torch.full((want.numel() + 6,), 77.0, device=DEVICE)
    row.forward(problem, room[3:-3].view(want.shape))
    assert torch.equal(room[3:-3].view(want.shape), want)
    assert room[:3].eq(77).all() and room[-3:].eq(77).all()


@on_a_gpu
@pytest.mark.parametrize("mode", MODES)
def test_same_bits_each_time(row: Implementation, mode: str) -> None:
    case = Case("bits", MNI_2MM, (40, 25), (12.0,), "positive")
    problem = moved(inputs(case).problem(mode))
    first, second = (forward(row, problem, torch.float32) for _ in range(2))
    assert torch.equal(first, second)
    for a, b in zip(*(row.backward(first, problem) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


@on_a_gpu
def test_compiled_in_a_graph_and_under_autocast(row: Implementation) -> None:
    given = on_device(inputs(Case("graph", counts=(3, 2)))).to(torch.float32)
    want = given.splat(backend=row.name)

    def twice(peaks: torch.Tensor) -> torch.Tensor:
        return replace(given, peaks=peaks).splat(backend=row.name) * 2

    assert torch.equal(torch.compile(twice, fullgraph=True)(given.peaks), want * 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = atlas_kernels.splat(
            given.peaks, given.offsets, SMALL, 6.0, backend=row.name
        )  # a width that is a number makes no copy that waits
    graph.replay()
    assert torch.equal(captured, want)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(given.splat(backend=row.name), want)


@on_a_gpu
def test_another_stream_and_the_last_device(row: Implementation) -> None:
    problem = moved(inputs(CASES[0]).problem("sum"))
    want = forward(row, problem, torch.float32)
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    there = moved(problem, last)
    torch.cuda.synchronize(last)
    with torch.cuda.stream(torch.cuda.Stream(last)), torch.cuda.device(0):
        got = forward(row, there, torch.float32)
    torch.cuda.synchronize(last)
    assert got.device == last and torch.equal(got.cpu(), want.cpu())


@on_a_gpu
def test_bad_input_is_named() -> None:
    given = on_device(inputs(CASES[0]))
    with pytest.raises(ValueError, match="weights is on cpu, but peaks_mm is on cuda"):
        replace(given, weights=torch.ones(5)).splat()
    given.peaks[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"peaks_mm\[2, 1\] is nan"):
        given.splat(check=True)


@on_a_gpu
@pytest.mark.slow
def test_more_than_two_to_the_31_elements(row: Implementation) -> None:
    if torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GB of free GPU memory")
    big = grid((91, 109, 91), (2.0, 2.0, 2.0))
    case = Case("big", big, (1,) * 2400, (6.0,))
    problem = moved(inputs(case).problem("sum"))
    out = forward(row, problem, torch.bfloat16)
    assert out.numel() > 2**31
    of_last = problem._replace(
        peaks_mm=problem.peaks_mm[-1:], offsets=torch.tensor([0, 1], device=DEVICE)
    )
    assert torch.equal(out[-1:], forward(row, of_last, torch.bfloat16))
