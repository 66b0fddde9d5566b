"""The GPU kernels where there is no GPU: interpreted, emulated, and compiled ahead of time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from atlas_kernels import _extension
from atlas_kernels.group_norm_film import reference
from atlas_kernels.group_norm_film.op import Problem, layout
from tests.support import ROOT

from .cases import CASES, inputs
from .emulate import CSRC, emulated_library, module_says, require_nvcc, require_triton

NO_SPILLS = r"\b0 bytes spill stores, 0 bytes spill loads"
CUDA_SOURCES = sorted(CSRC.glob("*/*_cuda.cu"))
SOAK = os.environ.get("ATLAS_SOAK") == "1"
soak = pytest.mark.skipif(not SOAK, reason="both architectures, nvcc's warnings: make soak")


def problem(dtype: torch.dtype, shape: tuple[int, ...], groups: int, last: bool) -> Problem:
    generator = torch.Generator().manual_seed(0)
    n, c = shape[:2]
    number = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(shape, generator=generator).to(dtype) + 2
    if last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    sizes = ((c,), (c,), (n, c), (n, c))
    parameters = (torch.randn(size, generator=generator).to(number) for size in sizes)
    return Problem(x, groups, *parameters, "silu", 1e-5)


# ---- Triton --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("file", "at_least"), [("test_gpu.py", 40), ("test_gpu_splat.py", 60)])
def test_triton_interpreted(file: str, at_least: int) -> None:
    require_triton()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"tests/kernels/{file}"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > at_least


def architectures(first: int, other: int) -> pytest.MarkDecorator:
    """Compile for one architecture in `make test`, for both in `make soak`."""
    return pytest.mark.parametrize("arch", [first, pytest.param(other, marks=soak)])


@pytest.fixture
def made(arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that launches would compile, which from here on they only do."""
    triton = require_triton()
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from atlas_kernels.group_norm_film import triton_launch
    from atlas_kernels.splat import triton_launch as splat_launch

    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in {known.hash for known in kernels}:
            kernels.append(kernel)

    device = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        get_current_device=lambda: arch,  # a cache of its own
        get_current_stream=lambda device: 0,
    )
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", device)
    monkeypatch.setattr(JITFunction, "run", compile_only)
    for launch in (triton_launch, splat_launch):
        monkeypatch.setattr(launch, "_on", lambda x: contextlib.nullcontext())
    return kernels


@architectures(90, 80)
def test_triton_ahead_of_time(arch: int, made: list[Any], subtests: pytest.Subtests) -> None:
    """What a launch would compile, compiled; then ptxas says what the machine code needs."""
    from atlas_kernels.group_norm_film import triton_launch

    for dtype, channels in (
        ((torch.bfloat16, 40), (torch.float32, 32)) if arch == 90 else ((torch.float16, 32),)
    ):
        for last in (False, True):
            of = problem(dtype, (2, channels, 17, 15, 5), 4, last)
            _, mean, rstd = triton_launch.forward(of)
            triton_launch.op_backward(torch.empty_like(of.x), of, mean, rstd)
    assert len({kernel.metadata.name for kernel in made}) == 7
    for kernel in made:
        with subtests.test(kernel.metadata.name):
            assert re.search(NO_SPILLS, assembled(kernel, arch))
            ptx = kernel.asm["ptx"]
            if kernel.metadata.name in ("part_kernel", "apply_kernel", "sums_kernel"):
                assert "ld.global.v4.b32" in ptx, "x is not read 16 bytes at a time"
            if kernel.metadata.name in ("apply_kernel", "gradient_kernel"):
                assert "st.global.v4.b32" in ptx, "it is not written 16 bytes at a time"


SPLATS = [
    ("plain", "sum", torch.float32),
    ("plain", "max", torch.bfloat16),
    ("taper_per_mm3", "union", torch.float32),
    ("box_sums_to_1", "max", torch.float16),
    ("studies_widths", "union", torch.float64),
    ("masked", "sum", torch.float32),
]


@architectures(80, 90)
def test_triton_splat_ahead_of_time(arch: int, made: list[Any], subtests: pytest.Subtests) -> None:
    from atlas_kernels.splat import triton_launch

    cases = {case.name: case for case in CASES}
    for name, mode, dtype in SPLATS:
        of = inputs(cases[name]).to(torch.float32).problem(mode)._replace(shape=[91, 109, 91])
        out = torch.empty(of.output_shape(), dtype=dtype)
        triton_launch.forward(of, out)
        triton_launch.backward(out, of)
        sphere = of._replace(splat_mode="sphere", normalize="peak", support="ball", weights=None)
        triton_launch.forward(sphere, torch.empty(of.output_shape(), dtype=torch.uint8))
    assert len({kernel.metadata.name for kernel in made}) == 6
    for kernel in made:
        with subtests.test(kernel.metadata.name):
            assert re.search(NO_SPILLS, assembled(kernel, arch))
            if kernel.metadata.name == "splat_kernel":
                ptx, written = kernel.asm["ptx"], kernel.src.signature["out"]
                vector = {"*fp64": "v2.b64", "*u8": "v2.b32"}.get(written, "v4.b32")
                assert f"st.global.{vector}" in ptx, "volumes are not written by vectors"
                # What a peak covers must not change; only `exp` of a float64 may fuse.
                assert ("fma.rn.f64" in ptx) == (written == "*fp64")


def assembled(kernel: Any, arch: int) -> str:
    """What ptxas, which comes with Triton, says of a kernel."""
    from triton import knobs

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        name = "sm_90a" if arch == 90 else f"sm_{arch}"  # as Triton has it
        command = [knobs.nvidia.ptxas.path, "-v", f"-arch={name}", file.name, "-o", "/dev/null"]
        if not kernel.metadata.enable_fp_fusion:
            command.append("--fmad=false")
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


# ---- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [80, 90])
def test_cuda_kernels_keep_to_registers(arch: int) -> None:
    """Nothing is spilt: no kernel of the module has a stack, or other memory of a thread's own."""
    said = module_says(f"-res-usage -arch sm_{arch}")
    kernels = re.findall(r"Function (\w+):\s+(REG:.*)", said)
    for source in CUDA_SOURCES:
        assert [name for name, _ in kernels if f"{source.stem}_cu" in name], source
    assert all("STACK:0 " in usage and "LOCAL:0 " in usage for _, usage in kernels), said


@soak
@pytest.mark.slow
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.stem)
def test_cuda_compiles_without_spills(source: Path, tmp_path: Path) -> None:
    command = [require_nvcc(), "-std=c++17", "-O3", "-I", CSRC, "-Xptxas", "-v", "-cubin"]
    for arch in (80, 90):
        done = subprocess.run(
            [*map(str, command), f"-arch=sm_{arch}", str(source), "-o", str(tmp_path / "cubin")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        entries = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
        clean = re.findall(NO_SPILLS, done.stderr)
        assert entries and len(clean) == len(entries), done.stderr
        assert "warning" not in done.stderr, done.stderr


def test_module_has_code_for_both_and_for_later_ones() -> None:
    listed = module_says("-lelf -lptx")
    for name in ("sm_80.cubin", "sm_90.cubin", "sm_90.ptx"):
        assert name in listed


def test_a_launch_without_a_gpu_is_an_error() -> None:
    if _extension.why_no_cuda() or torch.cuda.is_available():
        pytest.skip(_extension.why_no_cuda() or "there is a GPU")
    from atlas_kernels.group_norm_film import native

    of = problem(torch.float32, (1, 4, 2, 3, 2), 2, False)
    held = native.as_doubles(of.parameters())
    with pytest.raises(RuntimeError, match="group_norm_film: CUDA says: "):
        _extension.kernels().group_norm_film_cuda(
            native._described(of, held), 8, "float32", 8, 8, 8, 8, 0
        )


EMULATED = """
#include "group_norm_film/group_norm_film.h"

extern "C" void run_{T}(
    const atlas_kernels::GroupNormFilm* problem, const {T}* x, {T}* y, double* mean, double* rstd,
    const {T}* dy, {T}* dx, const atlas_kernels::GroupNormFilmGradients* gradients) {{
  std::vector<double> room(atlas_kernels::group_norm_film_room(*problem) / 8, NAN);
  group_norm_film_cuda(*problem, x, y, mean, rstd, room.data(), nullptr);
  std::fill(room.begin(), room.end(), NAN);
  group_norm_film_backward_cuda(
      *problem, dy, x, mean, rstd, dx, true, *gradients, room.data(), nullptr);
}}
"""


class Described(ctypes.Structure):
    """struct GroupNormFilm."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("samples", "channels", "voxels", "groups")),
        ("channels_last", ctypes.c_bool),
        ("x_row", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "gamma", "beta")),
        ("silu", ctypes.c_bool),
        ("eps", ctypes.c_double),
    )


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA source built as C++ over cuda_on_cpu.h."""
    folder = tmp_path_factory.mktemp("emulated")
    source = (CSRC / "group_norm_film/group_norm_film_cuda.cu").read_text()
    functions = "".join(EMULATED.format(T=name) for name in ("float", "double"))
    return emulated_library(source, functions, launches=7, folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "shape", "groups"),
    [
        (torch.float32, (2, 6, 7, 5, 3), 3),
        (torch.float64, (1, 4, 13, 17, 11), 2),
        (torch.float32, (1, 40, 3, 1, 2), 5),
        (torch.float32, (1, 3, 1, 1, 1), 3),
    ],
)
def test_cuda_emulated(
    emulated: ctypes.CDLL, dtype: torch.dtype, shape: tuple[int, ...], groups: int, last: bool
) -> None:
    of = problem(dtype, shape, groups, last)
    y = torch.empty_like(of.x)
    dx = torch.ones_like(of.x)  # it is added to
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    dy = dy.contiguous(memory_format=layout(of.x))
    mean, rstd = torch.empty((2, shape[0], groups), dtype=torch.float64)
    parameters = [value.double() for value in of.parameters()]
    grads = [torch.empty_like(value) for value in parameters]
    voxels, in_rows = of.x[0, 0].numel(), layout(of.x) != torch.contiguous_format
    described = Described(
        *shape[:2], voxels, groups, in_rows, shape[1],
        *(value.data_ptr() for value in parameters), True, of.eps,
    )  # fmt: skip
    addresses = (ctypes.c_void_p(t.data_ptr()) for t in (of.x, y, mean, rstd, dy, dx))
    run = getattr(emulated, "run_float" if dtype == torch.float32 else "run_double")
    pointers = (ctypes.c_void_p * 4)(*(g.data_ptr() for g in grads))
    run(ctypes.byref(described), *addresses, ctypes.byref(pointers))

    exact = Problem(*(v.double() if isinstance(v, torch.Tensor) else v for v in of))
    want_y, want_mean, want_rstd = reference.forward(exact)
    want_dx, *want = reference.backward(dy.double(), exact, want_mean, want_rstd)
    error = {"rtol": 1e-5, "atol": 1e-5 * float(want_rstd.max())}
    for got, wish in zip(
        (y, mean, rstd, dx, *grads), (want_y, want_mean, want_rstd, want_dx + 1, *want)
    ):
        torch.testing.assert_close(got.double(), wish, **error)
