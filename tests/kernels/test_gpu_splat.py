"""splat's GPU kernels against the reference: on a GPU, or interpreted.

With TRITON_INTERPRET=1 the Triton kernels run as Python on the CPU, so only on tiny inputs; that is
how test_gpu_sources.py calls this file where there is no GPU.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

import atlas_kernels
from atlas_kernels._dispatch import INTERPRETED, Implementation
from atlas_kernels.splat import reference
from atlas_kernels.splat.op import TABLE
from atlas_kernels.splat.problem import Problem

from .cases import (
    CASES,
    GRADIENT_TOLERANCE,
    MNI_2MM,
    OBLIQUE,
    SMALL,
    TOLERANCE,
    Case,
    Inputs,
    grid,
    inputs,
)

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no CUDA device (nor TRITON_INTERPRET=1)", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"
ROWS = {row.name: row for row in TABLE}
BACKENDS = [name for name in ("cuda", "triton") if name in ROWS]
MODES = ("sum", "max", "union")
DTYPES = list(TOLERANCE)
# One after the other: every case in one mode, or in all of them.
FORWARD = BACKWARD = list(product(CASES, MODES))
if INTERPRETED:
    BACKENDS = ["triton"]
    DTYPES = [torch.float32]  # its bfloat16 cannot be trusted; float64 has a test of its own
    TAKES_LONG = ("crowded", "no_cut_sums_to_1", "several_slabs", "masked_slabs", "far_outside")
    quick = [case for case in CASES if case.name not in TAKES_LONG]
    FORWARD = [(case, MODES[i % 3]) for i, case in enumerate(quick)]
    BACKWARD = [
        (Case("sum", grid((4, 5, 3), (2.0, -2.0, 3.0)), (2, 0, 2), (5.0, 8.0), "positive"), "sum"),
        (Case("taper", counts=(2, 1), options={"support": "taper"}, weights="mixed"), "max"),
        (Case("normal", counts=(2,), options={"normalize": "mm3"}, weights="mixed"), "union"),
        (Case("box", counts=(2,), options={"support": "box", "truncate": 1.5}), "max"),
        (Case("studies", counts=(1, 2), widths_of="studies", fwhm=(4.0, 6.0)), "sum"),
        (Case("peaks", counts=(1, 2), widths_of="peaks", masked=True, fwhm=(4.0, 5.0)), "union"),
        (Case("voxels", counts=(2,), options={"centre": "voxel", "normalize": "sum"}), "sum"),
        (Case("none", counts=(0, 0)), "max"),
    ]
# The interpreter's NumPy speaks of e^90 and of inf - inf.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value) encountered:RuntimeWarning"
)
on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="interpreted: no CUDA device")


@pytest.fixture(params=BACKENDS)
def row(request: pytest.FixtureRequest) -> Implementation:
    chosen = ROWS[request.param]
    reason = chosen.refuses(DEVICE)
    if reason:
        pytest.skip(f"{chosen.name}: {reason}")
    return chosen


def on_device(problem: Problem) -> Problem:
    return Problem(*(f.to(DEVICE) if isinstance(f, torch.Tensor) else f for f in problem))


def given(case: Case) -> Inputs:
    """A case's tensors on the device."""
    made = inputs(case)
    weights = None if made.weights is None else made.weights.to(DEVICE)
    options = {
        k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in made.options.items()
    }
    tensors = (made.peaks.to(DEVICE), made.offsets.to(DEVICE), made.fwhm.to(DEVICE))
    return Inputs(*tensors, weights, made.grid, options, made.widths_of)


def drawn(row: Implementation, problem: Problem, dtype: torch.dtype) -> torch.Tensor:
    """Volumes inside a larger tensor, of which nothing else may change."""
    problem, shape = on_device(problem), problem.output_shape()
    held = torch.full((math.prod(shape) + 66,), 77, dtype=dtype, device=DEVICE)
    out = held[33:-33].view(shape)
    row.forward(problem, out)
    assert (held[:33] == 77).all() and (held[-33:] == 77).all()
    return out.cpu()


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    scale = want.abs().max().item() if want.numel() else 1.0
    torch.testing.assert_close(
        got.double().cpu(), want.cpu(), rtol=0, atol=tolerance * max(scale, 1e-30)
    )


def compare_gradients(
    row: Implementation, case: Case, mode: str, dtype: torch.dtype, inputs_dtype: torch.dtype
) -> None:
    problem = inputs(case).to(inputs_dtype).problem(mode)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(problem.output_shape(), generator=generator).to(dtype)
    got = row.backward(upstream.to(DEVICE), on_device(problem))
    want = reference.backward(upstream, problem)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, GRADIENT_TOLERANCE[dtype])


# ---- against the reference -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "mode"), FORWARD, ids=str)
def test_forward(row: Implementation, case: Case, mode: str, dtype: torch.dtype) -> None:
    problem = inputs(case).problem(mode)
    want = reference.forward(problem)
    if dtype == torch.float32:
        problem = inputs(case).to(dtype).problem(mode)
    assert_close(drawn(row, problem, dtype), want, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "mode"), BACKWARD, ids=str)
def test_backward(row: Implementation, case: Case, mode: str, dtype: torch.dtype) -> None:
    compare_gradients(row, case, mode, dtype, torch.float32)


@pytest.mark.parametrize("mode", MODES)
def test_float64(row: Implementation, mode: str) -> None:
    taper = {"support": "taper", "normalize": "sum"}
    case = Case("float64", grid((5, 4, 3), (2.0, 2.0, -1.5)), (2,), (4.0,), "mixed", options=taper)
    problem = inputs(case).problem(mode)
    got = drawn(row, problem, torch.float64)
    assert_close(got, reference.forward(problem), TOLERANCE[torch.float64])
    compare_gradients(row, case, mode, torch.float64, torch.float64)


@on_a_gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_whole_brain(row: Implementation, mode: str) -> None:
    case = Case("brain", MNI_2MM, (35, 0, 12), (6.0, 12.0), "positive")
    problem = inputs(case).problem(mode)
    want = reference.forward(on_device(problem))
    assert_close(drawn(row, problem, torch.float32), want, TOLERANCE[torch.float32])
    compare_gradients(row, case, mode, torch.float32, torch.float32)


@pytest.mark.parametrize("mode", MODES)
def test_float32_error_is_relative_to_each_voxel(row: Implementation, mode: str) -> None:
    problem = inputs(Case("relative", counts=(8, 8), weights="positive")).problem(mode)
    want, got = reference.forward(problem), drawn(row, problem, torch.float32).double()
    reached = want > 0
    assert reached.any() and torch.equal(got > 0, reached)
    assert ((got - want).abs()[reached] / want[reached]).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_rounded_once(row: Implementation, dtype: torch.dtype) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter's bfloat16 cannot be trusted")
    problem = inputs(Case("halves", counts=(6,), weights="mixed")).problem("sum")
    single = drawn(row, problem, torch.float32)
    assert torch.equal(drawn(row, problem, dtype), single.to(dtype))


# ---- spheres -------------------------------------------------------------------------------------


def spheres(case: Case, radii: list[float], counts: bool, centre: str) -> Problem:
    problem = inputs(replace(case, fwhm=tuple(radii))).problem("sum")
    return problem._replace(splat_mode="sphere", counts=counts, centre=centre)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("centre", ["peak", "voxel"])
@pytest.mark.parametrize("counts", [False, True])
def test_spheres_voxel_for_voxel(
    row: Implementation, counts: bool, centre: str, dtype: torch.dtype
) -> None:
    # From a voxel's centre many voxels lie at just these distances.
    problem = spheres(Case("spheres", counts=(5, 0, 3)), [4.0, 2 * math.sqrt(5)], counts, centre)
    want = reference.forward(problem)
    assert torch.equal(drawn(row, problem, dtype).double(), want)


def test_counts_stop_at_255(row: Implementation) -> None:
    case = Case("counts", grid((2, 2, 2), (2.0, 2.0, 2.0)), (300,), spread=0.1)
    problem = spheres(case, [9.0], True, "peak")
    assert (drawn(row, problem, torch.uint8) == 255).all()


# ---- numbers that nobody looked at ---------------------------------------------------------------


@pytest.mark.parametrize("mode", [*MODES, "sphere"])
@pytest.mark.parametrize("bad", ["peaks_mm", "weights", "widths"])
def test_a_bad_number_spoils_its_own_study(row: Implementation, bad: str, mode: str) -> None:
    case = Case("bad", SMALL, (2, 1, 2), (4.0, 5.0), "positive", widths_of="peaks", spread=0.5)
    problem = inputs(case).problem("sum" if mode == "sphere" else mode)._replace(splat_mode=mode)
    if mode == "sphere":
        if bad == "weights":
            pytest.skip("spheres have no weights")
        problem = problem._replace(weights=None)
    want = reference.forward(problem)
    for value in (math.nan, math.inf, *((0.0, -4.0) if bad == "widths" else ())):
        tensor = getattr(problem, bad).clone()
        tensor[2] = value
        got = drawn(row, problem._replace(**{bad: tensor}), torch.float32)
        assert got[1].isnan().all()
        assert_close(got[::2], want[::2], TOLERANCE[torch.float32])


def test_gradients_of_the_other_studies_stay_finite(row: Implementation) -> None:
    case = Case("bad", SMALL, (1, 2), (4.0, 5.0, 4.5), "positive", widths_of="peaks", spread=0.5)
    problem = inputs(case).problem("sum")
    upstream = torch.ones(problem.output_shape())
    want = reference.backward(upstream, problem)
    problem.peaks_mm[0, 1] = math.nan
    got = row.backward(upstream.to(DEVICE), on_device(problem))
    for one, other in zip(got, want, strict=True):
        assert one[0].isnan().any()
        assert_close(one[1:], other[1:], 1e-5)


def test_offsets_out_of_range_are_clamped(row: Implementation) -> None:
    problem = inputs(Case("clamped", counts=(3, 2))).problem("sum")
    for offsets in ([-5, 3, 99], [0, 3, 2], [2**40, 7, -(2**40)], [3, 3, 3]):
        broken = problem._replace(offsets=torch.tensor(offsets))
        want = reference.forward(broken)
        assert_close(drawn(row, broken, torch.float32), want, TOLERANCE[torch.float32])
        row.backward(torch.ones(broken.output_shape(), device=DEVICE), on_device(broken))


# ---- layout and determinism ----------------------------------------------------------------------


def test_tensors_with_gaps(row: Implementation) -> None:
    problem = on_device(
        inputs(Case("gaps", counts=(3, 1), weights="mixed")).to(torch.float32).problem("sum")
    )
    wide = torch.full((4, 5), 7.0, device=DEVICE)
    wide[:, 1:4] = problem.peaks_mm
    pairs = torch.stack([problem.weights, problem.weights * 9], dim=1)
    apart = problem._replace(peaks_mm=wide[:, 1:4], weights=pairs[:, 0])
    assert not (apart.peaks_mm.is_contiguous() or apart.weights.is_contiguous())
    assert torch.equal(drawn(row, apart, torch.float32), drawn(row, problem, torch.float32))


def test_same_bits_every_time(row: Implementation) -> None:
    shape, counts = (MNI_2MM.shape, (30, 0, 40)) if not INTERPRETED else ((4, 5, 3), (2, 0, 1))
    problem = inputs(Case("bits", grid(shape, (2.0, 2.0, 2.0)), counts, (6.0, 9.0), "mixed"))
    for mode in MODES[:2]:
        of = on_device(problem.to(torch.float32).problem(mode))
        upstream = torch.linspace(-1, 1, math.prod(of.output_shape()), device=DEVICE)

        def once(of: Problem = of, upstream: torch.Tensor = upstream) -> list[torch.Tensor]:
            grads = row.backward(upstream.view(of.output_shape()), of)
            return [drawn(row, of, torch.float32), *grads]

        first = once()
        for _ in range(1 if INTERPRETED else 5):
            assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


# ---- the op --------------------------------------------------------------------------------------


def test_oblique_grids_are_refused(row: Implementation) -> None:
    with pytest.raises(RuntimeError, match="it takes diagonal affines, this grid is oblique"):
        given(OBLIQUE[0]).splat(backend=row.name)


def test_gradient_through_the_op(row: Implementation) -> None:
    case = Case("op", grid((4, 5, 3), (2.0, 2.0, 3.0)), (2, 1), (5.0, 8.0), "positive")
    grads = []
    for name in (row.name, "reference"):
        of = given(case).to(torch.float32).requires_grad()
        volumes = of.splat(mode="max", backend=name)
        grads.append(torch.autograd.grad(volumes.square().sum(), of.leaves()))
    for one, other, leaf in zip(*grads, of.leaves(), strict=True):
        assert one.dtype == leaf.dtype
        assert_close(one, other.double(), GRADIENT_TOLERANCE[torch.float32])


@on_a_gpu
def test_auto_takes_the_first(row: Implementation) -> None:
    first = next(r.name for r in TABLE if not r.refuses("cuda"))
    assert torch.equal(given(CASES[0]).splat(), given(CASES[0]).splat(backend=first))


@on_a_gpu
@pytest.mark.parametrize("mode", MODES)
def test_opcheck(row: Implementation, mode: str) -> None:
    of = given(Case("opcheck", counts=(2, 1), weights="positive")).requires_grad()
    arguments = (*of.problem(mode), torch.float32, row.name)
    torch.library.opcheck(torch.ops.atlas_kernels.splat.default, arguments)


@on_a_gpu
@pytest.mark.parametrize("normalize", ["peak", "sum"])
@pytest.mark.parametrize("widths_of", ["kernels", "studies", "peaks"])
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(row: Implementation, mode: str, widths_of: str, normalize: str) -> None:
    small = grid((4, 5, 3), (2.0, -2.0, 3.0))
    options = {"support": "taper", "truncate": 2.5, "normalize": normalize}
    case = Case(
        "gradcheck", small, (2, 0, 2), (5.0, 8.0), "positive", 0.8, widths_of, False, options
    )
    of = given(case).requires_grad()

    def function(peaks: torch.Tensor, fwhm: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        moved = replace(of, peaks=peaks, fwhm=fwhm, weights=weights)
        return moved.splat(mode=mode, backend=row.name)

    assert torch.autograd.gradcheck(function, of.leaves(), eps=1e-6, atol=1e-7)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_and_in_a_graph(row: Implementation, dtype: torch.dtype) -> None:
    of = given(Case("graph", MNI_2MM, (9, 4), (6.0,), "positive")).to(torch.float32)

    def call(peaks: torch.Tensor) -> torch.Tensor:
        return replace(of, peaks=peaks).splat(mode="max", backend=row.name, dtype=dtype)

    want = call(of.peaks)
    compiled = torch.compile(lambda peaks: call(peaks) * 2, fullgraph=True)
    assert torch.equal(compiled(of.peaks), want * 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(of.peaks)
    graph.replay()
    assert torch.equal(captured, want)


@on_a_gpu
def test_backward_in_a_graph(row: Implementation) -> None:
    of = on_device(inputs(Case("graph", MNI_2MM, (9, 4), (6.0,), "positive")).problem("max"))
    upstream = torch.randn(of.output_shape(), device="cuda")
    want = row.backward(upstream, of)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = row.backward(upstream, of)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, want, strict=True))


@on_a_gpu
def test_autocast(row: Implementation) -> None:
    of = given(CASES[0]).to(torch.float32)
    want = of.splat(backend=row.name)
    with torch.autocast("cuda", torch.bfloat16):
        got = of.splat(backend=row.name)
    assert got.dtype == torch.float32 and torch.equal(got, want)


@on_a_gpu
def test_another_stream_and_the_last_device(row: Implementation) -> None:
    of = inputs(CASES[0]).to(torch.float32).problem("sum")
    want = drawn(row, of, torch.float32)
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    moved = Problem(*(f.to(last) if isinstance(f, torch.Tensor) else f for f in of))
    torch.cuda.synchronize(last)
    with torch.cuda.stream(torch.cuda.Stream(last)):
        out = torch.empty(of.output_shape(), device=last)
        row.forward(moved, out)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(out.cpu(), want)


@on_a_gpu
def test_mixed_devices(row: Implementation) -> None:
    of = given(CASES[0])
    with pytest.raises(ValueError, match="offsets is on cpu, but peaks_mm is on cuda"):
        replace(of, offsets=of.offsets.cpu()).splat(backend=row.name)


@on_a_gpu
def test_check_looks_at_the_numbers(row: Implementation) -> None:
    of = given(CASES[0])
    of.peaks[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"peaks_mm must be finite, but peaks_mm\[1, 2\] is nan"):
        of.splat(backend=row.name, check=True)


@on_a_gpu
@pytest.mark.slow
def test_more_than_two_to_the_31_numbers(row: Implementation) -> None:
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GB of free GPU memory")
    studies = 2**31 // math.prod(MNI_2MM.shape) + 2
    peaks = torch.zeros(studies, 3, device="cuda")
    offsets = torch.arange(studies + 1, device="cuda")
    options = {"dtype": torch.bfloat16, "backend": row.name}
    out = atlas_kernels.splat(peaks, offsets, MNI_2MM, 6.0, **options)
    assert out.numel() > 2**31
    one = atlas_kernels.splat(peaks[:1], offsets[:2], MNI_2MM, 6.0, **options)
    assert torch.equal(out[-1], one[0]) and torch.equal(out[studies // 2], one[0])
