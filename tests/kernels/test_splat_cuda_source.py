"""splat's CUDA kernels where there is no GPU: emulated beside the reference, and its machine code."""

from __future__ import annotations

import ctypes
import math
import re

import pytest
import torch

from atlas_kernels.splat import reference
from atlas_kernels.splat.problem import Problem

from .cases import CASES, GRADIENT_TOLERANCE, TOLERANCE, Case, inputs
from .emulate import CSRC, emulated_library

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
SMALLER = {"kThreads": 64, "kListed": 4, "kEntries": 48, "kOthers": 8, "kNear": 5}

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
@pytest.mark.parametrize("name", ["mixed_weights", "short_taper", "box", "masked", "crowded"])
def test_modes(emulated: ctypes.CDLL, name: str, mode: str) -> None:
    compare(emulated, inputs(BY_NAME[name]).problem(mode), torch.float32, 1)
