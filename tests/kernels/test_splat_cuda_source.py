"""splat's CUDA kernels without a GPU: emulated beside the reference, and their machine code."""

from __future__ import annotations

import ctypes
import math
import re
from dataclasses import replace

import pytest
import torch

from atlas_kernels.splat import reference
from atlas_kernels.splat.problem import Problem

from .cases import CASES, GRADIENT_TOLERANCE, TOLERANCE, Case, grid, inputs
from .emulate import CSRC, emulated_library, module_says

SOURCE = CSRC / "splat/splat_cuda.cu"
MODES = ("sum", "max", "union")
TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "BFloat16",
    torch.float16: "Float16",
    torch.uint8: "uint8_t",
}
BY_NAME = {case.name: case for case in CASES}
# Smaller than on a GPU: blocks, so that a volume has several tiles; lists and tables, so that they
# overflow.
SMALLER = {"kThreads": 32, "kListed": 4, "kEntries": 48, "kOthers": 8, "kNear": 5}

FORWARD = """
extern "C" void draw_{T}(const atlas_kernels::SplatProblem* problem, atlas_kernels::{T}* out) {{
  std::vector<double> room(atlas_kernels::splat_room(*problem) / 8, NAN);
  atlas_kernels::splat_cuda(*problem, out, room.data(), nullptr);
}}
"""
BACKWARD = """
extern "C" void gather_{T}(
    const atlas_kernels::SplatProblem* problem, const atlas_kernels::{T}* grad, double* peaks,
    double* weights, double* widths) {{
  std::vector<double> room(atlas_kernels::splat_room(*problem) / 8, NAN);
  atlas_kernels::splat_backward_cuda(*problem, grad, peaks, weights, widths, room.data(), nullptr);
}}
"""


class Described(ctypes.Structure):
    """struct SplatProblem."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("peaks", "offsets", "widths", "weights", "voxels")),
        *((name, ctypes.c_int64) for name in ("n_peaks", "n_studies", "n_kernels", "n_voxels")),
        ("shape", ctypes.c_int64 * 3),
        *((name, ctypes.c_double * 3) for name in ("spacing", "origin")),
        *((name, ctypes.c_int) for name in ("mode", "of", "support", "normalize", "centre")),
        ("truncate", ctypes.c_double),
        ("count", ctypes.c_bool),
    )


CHOICES = {
    "splat_mode": ("sum", "max", "union", "sphere"),
    "widths_of": ("kernels", "studies", "peaks"),
    "support": ("ball", "box", "taper"),
    "normalize": ("peak", "sum", "mm3"),
    "centre": ("peak", "voxel"),
}


def describe(problem: Problem) -> Described:
    tensors = (
        problem.peaks_mm, problem.offsets, problem.widths, problem.weights, problem.voxels
    )  # fmt: skip
    affine = problem.affine
    voxels = -1 if problem.voxels is None else len(problem.voxels)
    return Described(
        *(None if t is None else t.data_ptr() for t in tensors),
        *(len(problem.peaks_mm), problem.n_studies, problem.n_kernels, voxels),
        tuple(problem.shape),
        (affine[0], affine[5], affine[10]),
        (affine[3], affine[7], affine[11]),
        *(names.index(getattr(problem, name)) for name, names in CHOICES.items()),
        problem.truncate,
        problem.counts,
    )


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    text = SOURCE.read_text()
    for name, number in SMALLER.items():
        text, found = re.subn(rf"(constexpr int {name} =) \d+;", rf"\1 {number};", text)
        assert found == 1
    names = {n: n if n[0].isupper() else f"::{n}" for n in TYPES.values()}
    functions = [FORWARD.format(T=n) for n in names]
    functions += [BACKWARD.format(T=n) for n in names if n != "uint8_t"]
    code = "".join(functions)
    for name in ("float", "double", "uint8_t"):
        code = code.replace(f"atlas_kernels::{name}*", f"{name}*")
    return emulated_library(text, code, launches=6, folder=tmp_path_factory.mktemp("splat"))


def draw(library: ctypes.CDLL, problem: Problem, dtype: torch.dtype, away: int = 0) -> torch.Tensor:
    """Call forward; the result starts ``away`` elements from a multiple of 16 bytes."""
    shape = problem.output_shape()
    room = torch.full((math.prod(shape) + away + 5,), 77, dtype=dtype)
    assert room.data_ptr() % 16 == 0
    out = room[away : away + math.prod(shape)]
    getattr(library, f"draw_{TYPES[dtype]}")(
        ctypes.byref(describe(problem)), ctypes.c_void_p(out.data_ptr())
    )
    assert room[:away].eq(77).all() and room[away + len(out) :].eq(77).all()
    return out.reshape(shape)


def gather(library: ctypes.CDLL, grad: torch.Tensor, problem: Problem) -> list[torch.Tensor]:
    grads = [torch.full_like(problem.peaks_mm, 77), torch.full((len(problem.peaks_mm),), 77.0)]
    grads = [g.double() for g in (*grads, torch.full_like(problem.widths, 77))]
    getattr(library, f"gather_{TYPES[grad.dtype]}")(
        ctypes.byref(describe(problem)),
        *(ctypes.c_void_p(t.data_ptr()) for t in (grad, *grads)),
    )
    return grads


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    scale = max(float(want.abs().max()), 1e-30) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * scale)


def compare(
    library: ctypes.CDLL, problem: Problem, dtype: torch.dtype, away: int = 0
) -> torch.Tensor:
    got = draw(library, problem, dtype, away)
    close(got, reference.forward(problem), TOLERANCE[dtype])
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grads = gather(library, upstream, problem)
    for mine, want in zip(grads, reference.backward(upstream, problem), strict=True):
        close(mine, want, GRADIENT_TOLERANCE[dtype])
    return got


# Each case in one mode and type; those with much to combine in all.
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(emulated: ctypes.CDLL, case: Case) -> None:
    place = CASES.index(case)
    dtype = (torch.float64, torch.float32)[place // 3 % 2]
    compare(emulated, inputs(case).problem(MODES[place % 3]), dtype, place % 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["short_taper", "masked", "crowded"])
def test_modes(emulated: ctypes.CDLL, name: str, mode: str) -> None:
    compare(emulated, inputs(BY_NAME[name]).problem(mode), torch.float32, 1)


def spheres(case: Case, count: bool) -> Problem:
    return inputs(case).problem("sum")._replace(splat_mode="sphere", weights=None, counts=count)


@pytest.mark.parametrize("count", [False, True])
def test_spheres(emulated: ctypes.CDLL, count: bool) -> None:
    for name in ("crowded", "flipped_all", "masked"):
        of = spheres(replace(BY_NAME[name], fwhm=(4.0, 5.5)), count)
        for dtype in TYPES:
            assert torch.equal(draw(emulated, of, dtype, 3).double(), reference.forward(of))


def test_counts_stop_at_255(emulated: ctypes.CDLL) -> None:
    of = spheres(Case("many", grid((3, 2, 2), (2.0, 2.0, 2.0)), (300,), spread=0.0), True)
    assert draw(emulated, of, torch.uint8).max() == 255


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_halves_are_rounded_once(emulated: ctypes.CDLL, mode: str, dtype: torch.dtype) -> None:
    of = inputs(BY_NAME["mixed_weights_widths"]).problem(mode)
    single = draw(emulated, of, torch.float32)
    # The emulator rounds a tie of bfloat16 away from 0.
    got, want = (t.view(torch.int16) for t in (draw(emulated, of, dtype, 3), single.to(dtype)))
    assert (got - want).abs().max() <= (dtype == torch.bfloat16)
    compare(emulated, of, dtype)


@pytest.mark.parametrize("support", ["ball", "box", "taper"])
def test_a_focus_longer_than_its_tables(emulated: ctypes.CDLL, support: str) -> None:
    options = {"support": support, "normalize": "sum"}
    long = Case("long", grid((40, 2, 50), (1.0, 2.0, 1.0)), (2, 1), (20.0,), options=options)
    masked = replace(long, masked=True, grid=grid((35, 30, 2), (1.0, 1.0, 1.0)))
    for case in (long, masked):
        of = inputs(case).problem("union")
        close(draw(emulated, of, torch.float64, 1), reference.forward(of), 1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_ties_and_voxels_of_value_1(emulated: ctypes.CDLL, mode: str) -> None:
    of = inputs(Case("ties", counts=(4, 1))).problem(mode)
    origin = torch.tensor(BY_NAME["plain"].grid.origin, dtype=torch.float64)
    step = torch.tensor([[4.0, 0, 0], [0, 4, 0], [4, 0, 0], [0, 0, 4], [2, 2, 2]])
    compare(emulated, of._replace(peaks_mm=origin + 4 + step), torch.float64)


BAD = [
    {"peaks_mm": math.nan},
    {"peaks_mm": -math.inf},
    {"weights": math.nan},
    {"widths": math.inf},
    {"widths": 0.0},
    {"widths": -1.0},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_numbers_spoil_their_own_study(emulated: ctypes.CDLL, bad: dict[str, float]) -> None:
    (name, value), mode = *bad.items(), MODES[BAD.index(bad) % 3]
    case = Case("bad", counts=(2, 6, 0, 3), weights="positive", widths_of="peaks", masked=True)
    sound = inputs(case).problem(mode)
    spoilt = sound._replace(**{name: getattr(sound, name).clone()})
    getattr(spoilt, name)[7] = value
    got, want = draw(emulated, spoilt, torch.float32), draw(emulated, sound, torch.float32)
    assert got[1].isnan().all() and reference.forward(spoilt)[1].isnan().all()
    others, peaks = [0, 2, 3], [0, 1, 8, 9, 10]
    assert torch.equal(got[others], want[others])
    upstream = torch.ones_like(want)
    gradients = gather(emulated, upstream, spoilt), gather(emulated, upstream, sound)
    for grad, clean in zip(*gradients, strict=True):
        assert grad[7].isnan().all() and torch.equal(grad[peaks], clean[peaks])


@pytest.mark.parametrize(
    "offsets", [[-7, 2, 3], [0, 2, 900], [5, 2, 3], [3, 3, 3], [2, 1, 0], [-9, -5, 2**62]], ids=str
)
def test_offsets_out_of_range_are_clamped(emulated: ctypes.CDLL, offsets: list[int]) -> None:
    of = inputs(Case("clamped", counts=(2, 1))).problem("sum")
    compare(emulated, of._replace(offsets=torch.tensor(offsets)), torch.float64)


def test_voxel_numbers_out_of_range_are_harmless(emulated: ctypes.CDLL) -> None:
    of = inputs(BY_NAME["masked"]).problem("sum")
    wild = torch.tensor([-(2**62), -1, 300, 5, 300, 693, 2**40, 2**62])
    got = draw(emulated, of._replace(voxels=wild), torch.float32)
    assert got.isfinite().all()
    gather(emulated, got, of._replace(voxels=wild))


def test_same_bits_each_time(emulated: ctypes.CDLL) -> None:
    of = inputs(BY_NAME["peaks_widths_per_mm3"]).problem("union")
    first, second = (draw(emulated, of, torch.float32) for _ in range(2))
    assert torch.equal(first, second)
    for one, two in zip(*(gather(emulated, first, of) for _ in range(2)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("arch", [80, 90])
def test_stores_are_16_bytes(arch: int) -> None:
    listed = module_says(f"-sass -arch sm_{arch}")
    functions = re.split(r"Function : ", listed)[1:]
    draws = [text for text in functions if re.match(r"\w+splat_cuda_cu\w+?4draw", text)]
    assert len(draws) == 3 * len(TYPES)
    assert all(re.search(r"STG\.E[.A-Z]*\.128", text) for text in draws)
