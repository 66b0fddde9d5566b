"""splat: every implementation against the reference, the reference against the bare formula."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import atlas_kernels
from atlas_kernels import Grid
from atlas_kernels.splat import op, reference
from tests.support import ROOT, pairs, printed_by

from .cases import (
    CASES,
    GRADIENT_TOLERANCE,
    OBLIQUE,
    SMALL,
    TOLERANCE,
    Case,
    Inputs,
    grid,
    inputs,
)

MODES = ("sum", "max", "union")
PRECISE = (torch.float64, torch.float32)
HALVES = (torch.bfloat16, torch.float16)
TABLE = [row for row in op.TABLE if row.devices is None or "cpu" in row.devices]
FASTER = [row for row in TABLE if row.name != "reference"]


@pytest.fixture(params=FASTER, ids=lambda row: row.name)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param.why_not():
        pytest.skip(request.param.why_not())
    return request.param.name


def by_formula(given: Inputs, mode: str) -> np.ndarray:
    """The definition, one peak at a time, in NumPy."""
    offsets, widths = given.offsets.numpy(), given.fwhm.numpy()
    weights = np.ones(len(given.peaks)) if given.weights is None else given.weights.numpy()
    kernels = len(widths) if given.widths_of == "kernels" else 1
    out = np.zeros((len(offsets) - 1, kernels, *given.grid.shape))
    for b, k in np.ndindex(*out.shape[:2]):
        drawn = []
        for p in range(offsets[b], offsets[b + 1]):
            width = widths[{"kernels": k, "studies": b, "peaks": p}[given.widths_of]]
            drawn.append(weights[p] * peak_by_formula(given, given.peaks[p].numpy(), width))
        empty = [np.zeros(given.grid.shape)]
        if mode == "sum":
            out[b, k] = sum(drawn + empty)
        elif mode == "max":
            out[b, k] = np.max(drawn + empty, axis=0)
        else:
            out[b, k] = 1 - math.prod([1 - value for value in drawn] + [1 - empty[0]])
    mask = given.options.get("mask")
    return out if mask is None else out[:, :, mask.numpy()]


def peak_by_formula(given: Inputs, peak: np.ndarray, width: float) -> np.ndarray:
    """One peak of weight 1 on the whole grid."""
    affine, options = np.array(given.grid.affine), given.options
    if options.get("centre") == "voxel":
        peak = (affine @ [*np.round(np.linalg.inv(affine) @ [*peak, 1])[:3], 1])[:3]
    sigma = width / (2 * math.sqrt(2 * math.log(2)))
    truncate = options.get("truncate", 4.0)

    def kernel(voxels: np.ndarray) -> np.ndarray:
        away = voxels @ affine[:3, :3].T + affine[:3, 3] - peak
        square = (away**2).sum(-1)
        reach = np.abs(away).max(-1) if options.get("support") == "box" else np.sqrt(square)
        value = np.exp(-square / (2 * sigma**2))
        if options.get("support") == "taper" and truncate < math.inf:
            cut = math.exp(-(truncate**2) / 2)
            tangent = cut * (1 + (truncate**2 - square / sigma**2) / 2)
            value = (value - tangent) / (1 - cut * (1 + truncate**2 / 2))
        return np.where(reach <= truncate * sigma, value, 0.0)

    total = 1.0
    if options.get("normalize", "peak") != "peak":
        inverse = np.linalg.inv(affine)
        steps = np.linalg.norm(inverse[:3, :3], axis=1)
        far = np.ceil(min(truncate, 9) * sigma * 1.8 * steps).astype(int)
        around = np.moveaxis(np.indices(2 * far + 1), 0, -1) - far
        total = kernel(np.round(inverse @ [*peak, 1])[:3] + around).sum() or 1.0
        if options["normalize"] == "mm3":
            total *= abs(np.linalg.det(affine))
    return kernel(np.moveaxis(np.indices(given.grid.shape), 0, -1)) / total


@functools.cache
def truth(case: Case, mode: str) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Reference volumes, the gradients that autograd finds for them, and the upstream gradient."""
    given = inputs(case).requires_grad()
    volumes = reference.forward(given.problem(mode))
    upstream = torch.randn(volumes.shape, generator=torch.Generator().manual_seed(1)).double()
    if not volumes.requires_grad:
        return volumes, [torch.zeros_like(leaf) for leaf in given.leaves()], upstream
    grads = torch.autograd.grad(
        volumes, given.leaves(), upstream, allow_unused=True, materialize_grads=True
    )
    return volumes.detach(), list(grads), upstream


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    scale = want.abs().max().item() if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * max(scale, 1e-30))


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [*CASES, *OBLIQUE], ids=str)
def test_reference_is_the_formula(case: Case, mode: str) -> None:
    given = inputs(case)
    want = torch.from_numpy(by_formula(given, mode))
    tolerance = 1e-14 if case.options.get("normalize", "peak") == "peak" else 1e-12
    assert_close(given.splat(mode=mode, backend="reference"), want, tolerance)


@pytest.mark.parametrize("dtype", PRECISE, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case: Case, mode: str, dtype: torch.dtype, backend: str) -> None:
    got = inputs(case).to(dtype).splat(mode=mode, backend=backend)
    assert got.dtype == dtype and got.is_contiguous()
    assert_close(got, truth(case, mode)[0], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [CASES[0], *CASES[5:10], *CASES[-4:]], ids=str)
def test_halves_are_rounded_once(case: Case, mode: str, dtype: torch.dtype, backend: str) -> None:
    given = inputs(case)
    single = given.splat(mode=mode, backend=backend, dtype=torch.float32)
    got = given.splat(mode=mode, backend=backend, dtype=dtype)
    assert torch.equal(got, single.to(dtype))
    assert_close(got, truth(case, mode)[0], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_that_are_tiny_or_too_large(dtype: torch.dtype, backend: str) -> None:
    weights = torch.logspace(-9, 38.5, 400, dtype=torch.float64)
    line = grid((400, 1, 1), (2.0, 2.0, 2.0))
    peaks = torch.tensor([[line.origin[0] + 2 * n, *line.origin[1:]] for n in range(400)])
    arguments = (peaks.double(), torch.tensor([0, 400]), line, 1.0, weights * weights.cos().sign())
    single = atlas_kernels.splat(*arguments, backend=backend, dtype=torch.float32)
    got = atlas_kernels.splat(*arguments, backend=backend, dtype=dtype)
    assert torch.equal(got, single.to(dtype))
    assert got.isinf().any() == (dtype == torch.float16)


@pytest.mark.parametrize("mode", MODES)
def test_float32_error_is_relative_to_each_voxel(mode: str, backend: str) -> None:
    given = inputs(Case("relative", counts=(8, 8), weights="positive"))
    want = given.splat(mode=mode, backend="reference")
    got = given.splat(mode=mode, backend=backend, dtype=torch.float32).double()
    reached = want > 0
    assert reached.any() and torch.equal(got > 0, reached)
    assert ((got - want).abs()[reached] / want[reached]).max() < 1e-6


def test_a_peak_on_a_voxel_is_its_weight(backend: str) -> None:
    peaks = torch.tensor([SMALL.origin], dtype=torch.float64)
    out = atlas_kernels.splat(
        peaks, torch.tensor([0, 1]), SMALL, 8.0, torch.tensor([2.5]), backend=backend
    )
    assert out[0, 0, 0, 0, 0] == 2.5


def test_max_never_falls_below_the_background(backend: str) -> None:
    given = inputs(Case("negative", counts=(4,), weights="positive"))
    given.weights = -given.weights
    assert (given.splat(mode="max", backend=backend) == 0).all()


def test_truncation_keeps_the_voxel_on_the_boundary(backend: str) -> None:
    fwhm = 2 * math.sqrt(2 * math.log(2))  # sigma = 1 mm up to rounding
    line = grid((9, 1, 1), (1.0, 1.0, 1.0))
    peak = torch.tensor([[line.origin[0], line.origin[1], line.origin[2]]], dtype=torch.float64)
    out = atlas_kernels.splat(
        peak, torch.tensor([0, 1]), line, fwhm, truncate=3.0 + 1e-9, backend=backend
    )
    assert (out.flatten() > 0).tolist() == [True] * 4 + [False] * 5


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", [row.name for row in TABLE])
def test_backward_in_float64(case: Case, mode: str, name: str) -> None:
    check_gradients(case, mode, torch.float64, name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_in_float32(case: Case, mode: str, backend: str) -> None:
    check_gradients(case, mode, torch.float32, backend)


def check_gradients(case: Case, mode: str, dtype: torch.dtype, backend: str) -> None:
    given = inputs(case).to(dtype).requires_grad()
    _, wants, upstream = truth(case, mode)
    got = torch.autograd.grad(
        given.splat(mode=mode, backend=backend), given.leaves(), upstream.to(dtype)
    )
    for leaf, grad, want in zip(given.leaves(), got, wants, strict=True):
        assert grad.dtype == leaf.dtype
        assert_close(grad, want, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("cut", "widths_of", "normalize", "name", "mode"),
    pairs(
        [{"truncate": math.inf}, {"support": "taper", "truncate": 2.5}],
        ["kernels", "studies", "peaks"],
        ["peak", "sum"],
        [row.name for row in TABLE],
        MODES,
    ),
    ids=str,
)
def test_gradcheck(cut: dict, widths_of: str, normalize: str, name: str, mode: str) -> None:
    # Uncut or tapered, because a cut makes the value jump where a voxel crosses it.
    small = grid((4, 5, 3), (2.0, -2.0, 3.0))
    options = {**cut, "normalize": normalize}
    case = Case(
        "gradcheck", small, (2, 0, 2), (5.0, 8.0), "positive", 0.8, widths_of, options=options
    )
    given = inputs(case).requires_grad()

    def function(peaks: torch.Tensor, fwhm: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        moved = replace(given, peaks=peaks, fwhm=fwhm, weights=weights)
        return moved.splat(mode=mode, backend=name)

    # Every direction for one of the fast ones; for those whose calls take long one at random, as
    # test_backward_in_float64 holds them to the same reference.
    fast = name != "cpu"
    assert torch.autograd.gradcheck(function, given.leaves(), eps=1e-6, atol=1e-7, fast_mode=fast)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_backward_of_halves(mode: str, dtype: torch.dtype, backend: str) -> None:
    case = Case("halves", counts=(5, 3), fwhm=(5.0, 8.0), weights="positive")
    grads = []
    for name in (backend, "reference"):
        given = inputs(case).requires_grad()
        out = given.splat(mode=mode, backend=name, dtype=dtype)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        grads.append(torch.autograd.grad(out, given.leaves(), upstream))
    for got, want in zip(*grads, strict=True):
        assert_close(got, want, GRADIENT_TOLERANCE[dtype])


def test_a_taper_has_no_jump(backend: str) -> None:
    def value(mm: float) -> float:
        peak = torch.tensor([[SMALL.origin[0] + mm, *SMALL.origin[1:]]], dtype=torch.float64)
        fwhm = 2 * math.sqrt(2 * math.log(2))  # sigma is 1 mm
        out = atlas_kernels.splat(
            peak, torch.tensor([0, 1]), SMALL, fwhm, support="taper", truncate=3.0, backend=backend
        )
        return out[0, 0, 0, 0, 0].item()

    assert value(0) == pytest.approx(1, abs=1e-15)
    assert value(3.1) == 0 and 0 <= value(3 - 1e-4) < 1e-9  # falls as the distance squared
    assert value(3 - 1e-2) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_voxel_centres_have_no_gradient_of_coordinates(mode: str, backend: str) -> None:
    given = inputs(Case("rounded", options={"centre": "voxel", "normalize": "sum"})).requires_grad()
    peaks, fwhm = torch.autograd.grad(
        given.splat(mode=mode, backend=backend)[:, :, 3:].sum(), given.leaves()
    )
    assert peaks.eq(0).all() and fwhm.ne(0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", OBLIQUE, ids=str)
def test_backward_of_oblique_grids(case: Case, mode: str) -> None:
    check_gradients(case, mode, torch.float64, "reference")


def test_only_the_reference_draws_on_oblique_grids(backend: str) -> None:
    given = inputs(OBLIQUE[0])
    assert torch.equal(given.splat(), given.splat(backend="reference"))
    with pytest.raises(RuntimeError, match="it takes diagonal affines, this grid is oblique"):
        given.splat(backend=backend)


def test_union_where_peaks_lie_on_voxels(backend: str) -> None:
    # 1 - value is 0 there, for one peak or for two: nothing may be divided by it.
    places = [SMALL.origin] * 2 + [(SMALL.origin[0] + 4, *SMALL.origin[1:])]
    peaks = torch.tensor(places, dtype=torch.float64)
    grads = []
    for name in (backend, "reference"):
        weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
        out = atlas_kernels.splat(
            peaks, torch.tensor([0, 3]), SMALL, 6.0, weights, mode="union", backend=name
        )
        assert out[0, 0, 0, 0, 0] == out[0, 0, 2, 0, 0] == 1 and out.max() == 1
        grads.append(torch.autograd.grad(out[0, 0, :3].sum(), weights)[0])
    assert_close(grads[0], grads[1], 1e-12)


def test_ties_of_a_maximum_go_to_the_lowest_index(backend: str) -> None:
    peaks = torch.tensor([SMALL.origin] * 3, dtype=torch.float64)
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 3])
    out = atlas_kernels.splat(peaks, offsets, SMALL, 6.0, weights, mode="max", backend=backend)
    out.sum().backward()
    assert weights.grad[0] > 0 and weights.grad[1:].eq(0).all()


def test_no_second_derivative() -> None:
    given = inputs(CASES[0]).requires_grad()
    (grad,) = torch.autograd.grad(given.splat().square().sum(), given.peaks, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


# ---- spheres -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [row.name for row in TABLE])
@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("case", [*CASES[:10], CASES[11]], ids=str)
def test_spheres_are_the_formula(case: Case, count: bool, name: str) -> None:
    if reason := next(row for row in TABLE if row.name == name).why_not():
        pytest.skip(reason)
    given = inputs(case)
    affine, offsets = np.array(case.grid.affine), given.offsets.numpy()
    want = np.zeros((len(case.counts), 2, *case.grid.shape), np.uint8)
    voxels = np.moveaxis(np.indices(case.grid.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    for b, k in np.ndindex(*want.shape[:2]):
        for peak in given.peaks.numpy()[offsets[b] : offsets[b + 1]]:
            want[b, k] += ((peak - voxels) ** 2).sum(-1) <= (4.0, 5.5)[k] ** 2
    want = want if count else (want > 0).astype(np.uint8)
    arguments = (given.peaks, given.offsets, case.grid)
    for dtype in (None, torch.float32, torch.float64, torch.bfloat16):
        got = atlas_kernels.splat(
            *arguments, mode="sphere", radius=[4.0, 5.5], count=count, dtype=dtype, backend=name
        )
        assert got.dtype == (dtype or torch.uint8)
        assert np.array_equal(got.double().numpy(), want)


def test_spheres_of_rounded_peaks_hold_the_known_number_of_voxels(backend: str) -> None:
    big = grid((21, 21, 21), (2.0, 2.0, 2.0))
    peak = torch.tensor(big.origin, dtype=torch.float64) + 20 + torch.tensor([0.9, -0.9, 0.3])
    for radius, voxels in ((6.0, 123), (10.0, 515), (15.0, 1791)):
        got = atlas_kernels.splat(
            peak[None],
            torch.tensor([0, 1]),
            big,
            None,
            mode="sphere",
            radius=radius,
            centre="voxel",
            backend=backend,
        )
        assert got.sum() == voxels


@pytest.mark.parametrize("name", [row.name for row in TABLE])
def test_halves_of_voxels_round_to_even(name: str) -> None:
    if reason := next(row for row in TABLE if row.name == name).why_not():
        pytest.skip(reason)
    line = Grid((9, 1, 1), [[2, 0, 0, -8], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    peaks = torch.tensor([[-8.0 + 2 * place, 0, 0] for place in (0.5, 1.5, 2.5, 6.5, 7.5)])
    got = atlas_kernels.splat(
        peaks, torch.arange(6), line, None, mode="sphere", radius=0.5, centre="voxel", backend=name
    )
    assert got[:, 0, :, 0, 0].argmax(1).tolist() == [0, 2, 2, 6, 8]


def test_counts_stop_at_255(backend: str) -> None:
    peaks = torch.zeros(300, 3)
    for name in (backend, "reference"):
        options = {"mode": "sphere", "radius": 3.0, "count": True, "backend": name}
        got = atlas_kernels.splat(peaks, torch.tensor([0, 300]), SMALL, **options)
        exact = atlas_kernels.splat(
            peaks, torch.tensor([0, 300]), SMALL, **options, dtype=torch.float32
        )
        assert got.max() == 255 and exact.max() == 300


def test_spheres_have_no_gradient() -> None:
    peaks = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="mode 'sphere' has no gradient, but peaks_mm requires"):
        call(peaks_mm=peaks, fwhm=None, mode="sphere", radius=4.0)
    with torch.no_grad():
        call(peaks_mm=peaks, fwhm=None, mode="sphere", radius=4.0)


# ---- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [row.name for row in TABLE])
def test_a_mask_selects_voxels(name: str, mode: str) -> None:
    if reason := next(row for row in TABLE if row.name == name).why_not():
        pytest.skip(reason)
    given = inputs(CASES[0])
    whole = given.splat(mode=mode, backend=name)
    for mask in (
        torch.rand(SMALL.shape) < 0.3,
        torch.zeros(SMALL.shape, dtype=torch.bool),
        torch.ones(SMALL.shape, dtype=torch.bool),
    ):
        want = whole[:, :, mask]
        assert torch.equal(given.splat(mode=mode, backend=name, mask=mask), want)
        numbers = mask.reshape(-1).nonzero().squeeze(1)
        out = torch.full_like(want, math.nan)
        assert torch.equal(given.splat(mode=mode, backend=name, mask=numbers, out=out), want)


# ---- determinism, layout, out= -------------------------------------------------------------------


@pytest.fixture
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_same_bits_for_any_number_of_threads(mode: str, dtype: torch.dtype, backend: str) -> None:
    wide = grid((50, 20, 21), (2.0, 2.0, 2.0))
    case = Case("threads", wide, (30, 0, 5, 17), (6.0, 11.0), "mixed")
    runs = []
    for threads in (1, 2, 4, 2):
        torch.set_num_threads(threads)
        given = inputs(case).requires_grad()
        out = given.splat(mode=mode, backend=backend, dtype=dtype)
        upstream = torch.linspace(-1, 1, out.numel()).to(dtype).reshape(out.shape)
        runs.append([out, *torch.autograd.grad(out, given.leaves(), upstream)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_same_bits_with_and_without_avx512(tmp_path: Path) -> None:
    """Where the machine has it: elsewhere both programs are alike."""
    csrc = ROOT / "csrc"
    sources = [Path(__file__).with_name("levels.cpp"), *csrc.glob("splat/*_cpu.cpp")]
    sources += csrc.glob("common/*.cpp")

    exact = "-ffp-contract=off"
    alike = printed_by(tmp_path / "without", sources, exact, "-DATLAS_NO_AVX512")
    assert printed_by(tmp_path / "with", sources, exact) == alike


@pytest.mark.usefixtures("restore_threads")
def test_a_forked_child_has_threads_of_its_own() -> None:
    if TABLE[0].why_not():
        pytest.skip(TABLE[0].why_not())
    script = """
import os, sys
import numpy as np
from atlas_kernels import Grid
from atlas_kernels.numpy import splat
grid = Grid((40, 9, 9), [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
peaks = np.random.default_rng(0).uniform(0, 16, (20, 3))
def run(): return splat(peaks, np.array([0, 5, 20]), grid, 6.0, threads=3)
before = run()
child = os.fork()
if child == 0:
    os._exit(0 if (run() == before).all() else 1)
assert os.waitpid(child, 0)[1] == 0
assert (run() == before).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP is looked for on Linux alone")
@pytest.mark.parametrize("policy", ["", "PASSIVE"])
@pytest.mark.usefixtures("restore_threads")
def test_works_in_the_threads_that_torch_has(policy: str) -> None:
    """Of its own only where torch's sleep at once, and in a forked child, which has no other."""
    if TABLE[0].why_not():
        pytest.skip(TABLE[0].why_not())
    script = """
import os, torch
from atlas_kernels import Grid, splat
def threads(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
torch.ones(1 << 22).sin()
before = threads()
grid = Grid((40, 9, 9), [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
peaks = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 16
def run(): return splat(peaks, torch.tensor([0, 5, 20]), grid, 6.0, backend="cpu")
volumes = run()
more = threads() - before
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(run(), volumes) and threads() > 1 else 1)
assert os.waitpid(child, 0)[1] == 0
print(before, more)
"""
    command = [sys.executable, "-c", script]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    run = {"check": True, "timeout": 120, "capture_output": True, "text": True}
    before, more = map(int, subprocess.run(command, env=environment, **run).stdout.split())
    if before < 3:
        pytest.skip("this torch is built without OpenMP")
    assert (more > 0) == bool(policy)


@pytest.mark.parametrize("name", [row.name for row in TABLE])
def test_non_contiguous_inputs(name: str) -> None:
    given = inputs(Case("strided", counts=(4, 3), weights="mixed", fwhm=(4.0, 7.0)))
    want = given.splat(backend=name)
    wide = torch.full((given.peaks.shape[0], 9), math.nan, dtype=torch.float64)
    wide[:, ::3] = given.peaks
    given.peaks = wide[:, ::3]
    for attribute in ("offsets", "fwhm", "weights"):
        values = getattr(given, attribute)
        setattr(given, attribute, torch.stack([values, values], dim=1)[:, 1])
    assert not given.peaks.is_contiguous() and not given.weights.is_contiguous()
    assert torch.equal(given.splat(backend=name), want)


def test_a_gradient_that_is_not_contiguous(backend: str) -> None:
    grads = []
    for upstream in (torch.ones(()).expand(3, 1, *SMALL.shape), torch.ones(3, 1, *SMALL.shape)):
        given = inputs(CASES[0]).requires_grad()
        given.splat(backend=backend).backward(upstream.double())
        grads.append(given.peaks.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [row.name for row in TABLE])
@pytest.mark.parametrize("case", CASES[:8], ids=str)
def test_out_is_written_everywhere(case: Case, name: str, dtype: torch.dtype) -> None:
    given = inputs(case)
    want = given.splat(backend=name, dtype=dtype)
    poisoned = torch.full_like(want, math.nan)
    assert given.splat(backend=name, out=poisoned) is poisoned
    assert torch.equal(poisoned, want)


def test_out_may_be_strided(backend: str) -> None:
    given = inputs(CASES[0])
    want = given.splat(backend=backend)
    wide = torch.full((*want.shape[:-1], 2 * want.shape[-1]), math.nan, dtype=want.dtype)
    given.splat(backend=backend, out=wide[..., ::2])
    assert torch.equal(wide[..., ::2], want) and wide[..., 1::2].isnan().all()


def test_out_refuses_a_gradient() -> None:
    given = inputs(CASES[0])
    out = torch.empty(3, 1, *SMALL.shape, dtype=torch.float64)
    given.peaks.requires_grad_()
    with pytest.raises(RuntimeError, match="out= has no gradient, but peaks_mm requires one"):
        given.splat(out=out)
    with torch.no_grad():
        given.splat(out=out)


def test_float32_peaks_to_float64_volumes(backend: str) -> None:
    given = inputs(CASES[0])
    want = given.splat(backend=backend)
    assert torch.equal(given.to(torch.float32).splat(backend=backend, dtype=torch.float64), want)


def test_a_number_a_list_and_a_tensor_of_widths() -> None:
    given = inputs(CASES[0])
    arguments = (given.peaks, given.offsets, given.grid)
    want = atlas_kernels.splat(*arguments, torch.tensor([6.0], dtype=torch.float64))
    for fwhm in (6, 6.0, [6.0], (6,), torch.tensor(6.0), torch.tensor(6.0).double()):
        assert torch.equal(atlas_kernels.splat(*arguments, fwhm), want)


@pytest.mark.slow
def test_addresses_beyond_32_bits(backend: str) -> None:
    big = grid((700, 900, 900), (1.0, 1.0, 1.0))
    peaks = torch.tensor([[big.origin[a] + big.shape[a] - 1 for a in range(3)]])
    out = atlas_kernels.splat(peaks, torch.tensor([0, 1]), big, 6.0, backend=backend)
    assert out.numel() * out.element_size() > 2**31
    assert out[0, 0, -1, -1, -1] == 1 and out[0, 0, :, 0, 0].eq(0).all()


# ---- torch's own checks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "needs_grad"),
    pairs(["auto", *(row.name for row in TABLE)], MODES, [False, True]),
)
def test_opcheck(name: str, mode: str, needs_grad: bool) -> None:
    case = Case("opcheck", grid((3, 4, 2), (2.0, 2.0, 2.0)), (2, 1), (5.0,), "positive")
    given = inputs(replace(case, masked=mode == "max"))
    if needs_grad:
        given.requires_grad()
    problem = given.problem(mode)
    torch.library.opcheck(torch.ops.atlas_kernels.splat.default, (*problem, torch.float32, name))
    if not needs_grad:
        out = torch.empty(problem.output_shape())
        torch.library.opcheck(torch.ops.atlas_kernels.splat_out.default, (*problem, out, name))
        torch.library.opcheck(
            torch.ops.atlas_kernels.splat_backward.default, (out.zero_(), *problem, name)
        )


@pytest.mark.parametrize("mode", MODES)
def test_compile_in_one_graph(mode: str) -> None:
    given = inputs(Case("compile", counts=(3, 2), weights="positive")).requires_grad()

    def loss(peaks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        volumes = atlas_kernels.splat(peaks, given.offsets, SMALL, 6.0, weights, mode=mode)
        return (volumes.square() * 2).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = function(given.peaks, given.weights)
        results.append([value, *torch.autograd.grad(value, [given.peaks, given.weights])])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-12, atol=1e-12)


# ---- bad input -----------------------------------------------------------------------------------


def call(**changes: object) -> torch.Tensor:
    arguments = {
        "peaks_mm": torch.zeros(2, 3),
        "offsets": torch.tensor([0, 1, 2]),
        "grid": SMALL,
        "fwhm": 6.0,
    }
    return atlas_kernels.splat(**{**arguments, **changes})


def test_huge_coordinates_are_legal_and_reach_nothing() -> None:
    assert call(peaks_mm=torch.tensor([[1e30, 0, 0], [0, -3e38, 0]])).eq(0).all()


SPHERE = {"fwhm": None, "mode": "sphere", "radius": 3.0}
NAN_PEAK = torch.tensor([[0.0, 0.0, 0.0], [0.0, math.nan, 0.0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peaks_mm": torch.zeros(2, 2)}, r"peaks_mm must be \(P, 3\), got \(2, 2\)"),
        ({"peaks_mm": torch.zeros(2, 3, dtype=torch.int32)}, "peaks_mm must be float32 or float64"),
        (
            {"peaks_mm": torch.zeros(2, 3).half()},
            "peaks_mm must be float32 or float64, got float16",
        ),
        ({"peaks_mm": NAN_PEAK}, r"peaks_mm\[1, 1\] is nan"),
        ({"peaks_mm": torch.full((2, 3), -math.inf)}, r"peaks_mm\[0, 0\] is -inf"),
        ({"offsets": torch.tensor([[0, 2]])}, r"offsets must be \(B \+ 1,\)"),
        ({"offsets": torch.tensor([], dtype=torch.int64)}, r"offsets must be \(B \+ 1,\)"),
        ({"offsets": torch.tensor([0, 2], dtype=torch.int32)}, "offsets must be int64, got int32"),
        ({"offsets": torch.tensor([1, 2])}, r"offsets\[0\] is 1"),
        ({"offsets": torch.tensor([0, 2, 1, 2])}, r"offsets\[2\] is 1 after 2"),
        ({"offsets": torch.tensor([0, 1])}, r"offsets must end at P = 2, but offsets\[1\] is 1"),
        ({"fwhm": 0.0}, r"fwhm must be positive and finite, but fwhm\[0\] is 0.0"),
        ({"fwhm": [6.0, -1.0]}, r"fwhm\[1\] is -1.0"),
        ({"fwhm": math.nan}, r"fwhm\[0\] is nan"),
        (
            {"fwhm": None},
            "fwhm: exactly one of fwhm, study_fwhm and peak_fwhm must be given, got 0",
        ),
        ({"study_fwhm": torch.ones(2)}, "must be given, got 2"),
        (
            {"fwhm": None, "study_fwhm": torch.ones(3)},
            "study_fwhm must be one for each of the 2 st",
        ),
        (
            {"fwhm": None, "peak_fwhm": torch.ones(1, 2)},
            "peak_fwhm must be one for each of the 2 p",
        ),
        ({"fwhm": None, "peak_fwhm": torch.tensor([1.0, -2.0])}, r"peak_fwhm\[1\] is -2.0"),
        (
            {"fwhm": None, "study_fwhm": torch.ones(2).long()},
            "study_fwhm must be float32 or float64",
        ),
        ({"radius": 3.0}, "radius is for mode 'sphere' alone, got mode 'sum'"),
        ({"count": True}, "count is for mode 'sphere' alone, got mode 'sum'"),
        ({"mode": "sphere", "radius": 3.0}, "fwhm must be None for mode 'sphere'"),
        ({**SPHERE, "radius": None}, "radius must be given for mode 'sphere'"),
        ({**SPHERE, "radius": [3.0, 0.0]}, r"radius must be positive and finite, but radius\[1\]"),
        ({**SPHERE, "weights": torch.ones(2)}, "weights must be None for mode 'sphere'"),
        ({**SPHERE, "normalize": "sum"}, "normalize must be 'peak' for mode 'sphere'"),
        ({**SPHERE, "support": "box"}, "support must be 'ball' for mode 'sphere'"),
        ({"normalize": "max"}, "normalize must be one of peak, sum, mm3, got 'max'"),
        ({"centre": "grid"}, "centre must be one of peak, voxel, got 'grid'"),
        ({"mask": torch.ones(9, 11, 7)}, r"mask must be bool of the grid's shape \(9, 11, 7\)"),
        ({"mask": torch.ones(9, 11, 8).bool()}, "mask must be bool of the grid's shape"),
        (
            {"mask": torch.tensor([3, 3])},
            r"mask must be ascending .* below 693, but mask\[1\] is 3",
        ),
        ({"mask": torch.tensor([0, 693])}, r"mask\[1\] is 693"),
        ({"mask": torch.tensor([-1])}, r"mask\[0\] is -1"),
        ({"dtype": torch.uint8}, "got uint8; uint8 is for mode 'sphere'"),
        (
            {"mask": torch.arange(5), "out": torch.empty(1)},
            r"out must be \(B, K, V\) = \(2, 1, 5\)",
        ),
        ({"fwhm": []}, "fwhm must be a number or"),
        ({"fwhm": torch.ones(1, 1)}, "fwhm must be a number or"),
        ({"weights": torch.ones(3)}, "weights must be one for each of the 2 peaks"),
        ({"weights": torch.ones(2, dtype=torch.int64)}, "weights must be float32 or float64"),
        ({"weights": torch.tensor([1.0, math.inf])}, r"weights\[1\] is inf"),
        ({"mode": "mean"}, "mode must be one of sum, max, union, sphere, got 'mean'"),
        ({"support": "cube"}, "support must be one of ball, box, taper, got 'cube'"),
        ({"truncate": 0.0}, "truncate must be positive"),
        ({"truncate": math.nan}, "truncate must be positive"),
        ({"dtype": torch.int32}, "dtype must be one of float32, .*, float16, got int32"),
        (
            {"out": torch.empty(1)},
            r"out must be \(B, K, X, Y, Z\) = \(2, 1, 9, 11, 7\), got \(1,\)",
        ),
        ({"out": torch.empty(1), "dtype": torch.float64}, "dtype is torch.float64 but out is"),
        ({"backend": "abacus"}, "backend must be one of auto, cpu, .*reference"),
        ({"weights": torch.ones(2, device="meta")}, "weights is on meta, but peaks_mm is on cpu"),
    ],
)
def test_bad_input_gets_one_clear_sentence(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


NAN, ONES = torch.tensor([1.0, math.nan]), torch.ones(2)
UNCHECKED = [
    {"peaks_mm": NAN_PEAK},
    {"peaks_mm": torch.full_like(NAN_PEAK, 0.0).index_fill(0, torch.tensor([1]), math.inf)},
    {"weights": NAN},
    {"widths": NAN, "widths_of": "studies"},
    {"widths": torch.tensor([1.0, 0.0]), "widths_of": "peaks"},
    {"widths": torch.tensor([1.0, -1.0]), "widths_of": "peaks"},
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", UNCHECKED, ids=lambda bad: ",".join(bad))
def test_unchecked_bad_values_spoil_their_own_study(bad: dict, mode: str) -> None:
    problem = inputs(Case("unchecked", counts=(1, 1))).problem(mode)
    sound = problem._replace(peaks_mm=torch.zeros(2, 3), widths=ONES[:1])
    out = reference.forward(sound._replace(**bad))
    assert out[0].isfinite().all() and out[0].max() > 0 and out[1].isnan().all()


def test_unchecked_offsets_are_clamped() -> None:
    problem = inputs(Case("unchecked", counts=(2, 1))).problem("sum")
    for bad in ([-7, 2, 3], [0, 2, 900]):
        changed = problem._replace(offsets=torch.tensor(bad))
        assert torch.equal(reference.forward(changed), reference.forward(problem))
    assert reference.forward(problem._replace(offsets=torch.tensor([5, 2, 3])))[0].eq(0).all()


@pytest.mark.parametrize("changes", [{"grid": (9, 9, 9)}, {"peaks_mm": [[0.0] * 3]}, {"out": 3}])
def test_wrong_types(changes: dict) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(changes))} must be"):
        call(**changes)
