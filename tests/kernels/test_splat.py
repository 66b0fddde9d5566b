"""splat: every implementation against the reference, the reference against the bare formula."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import atlas_kernels
from atlas_kernels.splat import reference
from atlas_kernels.splat.op import TABLE

from .cases import CASES, GRADIENT_TOLERANCE, SMALL, TOLERANCE, Case, Inputs, grid, inputs

MODES = ("sum", "max")
FASTER = [row for row in TABLE if row.name != "reference"]


@pytest.fixture(params=FASTER, ids=lambda row: row.name)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param.why_not():
        pytest.skip(request.param.why_not())
    return request.param.name


def by_formula(given: Inputs, mode: str) -> np.ndarray:
    """The definition, one voxel and one peak at a time, in NumPy."""
    peaks, offsets, widths = (t.numpy() for t in (given.peaks, given.offsets, given.fwhm))
    weights = np.ones(len(peaks)) if given.weights is None else given.weights.numpy()
    truncate = given.options.get("truncate", 4.0)
    box = given.options.get("support") == "box"
    out = np.zeros((len(offsets) - 1, len(widths), *given.grid.shape))
    for b, k, *voxel in np.ndindex(*out.shape):
        sigma = widths[k] / (2 * math.sqrt(2 * math.log(2)))
        mm = (np.array(given.grid.affine) @ np.array([*voxel, 1]))[:3]
        terms = [0.0]
        for p in range(offsets[b], offsets[b + 1]):
            away = np.abs(mm - peaks[p])
            if (away.max() if box else np.linalg.norm(away)) <= truncate * sigma:
                terms.append(weights[p] * math.exp(-(away @ away) / (2 * sigma**2)))
        out[b, k, *voxel] = sum(terms) if mode == "sum" else max(terms)
    return out


@functools.cache
def truth(case: Case, mode: str) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Reference volumes, the gradients that autograd finds for them, and the upstream gradient."""
    given = inputs(case).requires_grad()
    options = {"support": "ball", "truncate": 4.0, **case.options}
    volumes = reference.forward(
        given.peaks,
        given.offsets,
        given.fwhm,
        given.weights,
        given.grid.shape,
        given.grid.spacing,
        given.grid.origin,
        mode,
        **options,
    )
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
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_formula(case: Case, mode: str) -> None:
    given = inputs(case)
    want = torch.from_numpy(by_formula(given, mode))
    assert_close(given.splat(mode=mode, backend="reference"), want, 1e-14)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case: Case, mode: str, dtype: torch.dtype, backend: str) -> None:
    got = inputs(case).to(dtype).splat(mode=mode, backend=backend)
    assert got.dtype == dtype and got.is_contiguous()
    assert_close(got, truth(case, mode)[0], TOLERANCE[dtype])


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [row.name for row in TABLE])
def test_gradcheck(name: str, mode: str) -> None:
    # Uncut, because a cut makes the value jump where a voxel crosses it.
    small = grid((4, 5, 3), (2.0, -2.0, 3.0))
    case = Case("gradcheck", small, (2, 0, 2), (5.0, 8.0), "positive", 0.8, {"truncate": math.inf})
    given = inputs(case).requires_grad()

    def function(peaks: torch.Tensor, fwhm: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        moved = Inputs(peaks, given.offsets, fwhm, weights, small, given.options)
        return moved.splat(mode=mode, backend=name)

    assert torch.autograd.gradcheck(function, given.leaves(), eps=1e-6, atol=1e-7)


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
        given = inputs(case).to(dtype).requires_grad()
        out = given.splat(mode=mode, backend=backend)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=dtype).reshape(out.shape)
        runs.append([out, *torch.autograd.grad(out, given.leaves(), upstream)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


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


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["auto", *(row.name for row in TABLE)])
def test_opcheck(name: str, mode: str, needs_grad: bool) -> None:
    given = inputs(Case("opcheck", grid((3, 4, 2), (2.0, 2.0, 2.0)), (2, 1), (5.0,), "positive"))
    if needs_grad:
        given.requires_grad()
    geometry = (list(given.grid.shape), list(given.grid.spacing), list(given.grid.origin))
    problem = (given.peaks, given.offsets, given.fwhm, given.weights, *geometry, mode, "ball", 4.0)
    torch.library.opcheck(torch.ops.atlas_kernels.splat.default, (*problem, torch.float32, name))
    if not needs_grad:
        out = torch.empty(2, 1, 3, 4, 2)
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
        ({"fwhm": 0.0}, "fwhm must be positive and finite, but width 0 is 0.0"),
        ({"fwhm": [6.0, -1.0]}, "width 1 is -1.0"),
        ({"fwhm": math.nan}, "width 0 is nan"),
        ({"fwhm": []}, "fwhm must be a number or"),
        ({"fwhm": torch.ones(1, 1)}, "fwhm must be a number or"),
        ({"weights": torch.ones(3)}, "weights must be one for each of the 2 peaks"),
        ({"weights": torch.ones(2, dtype=torch.int64)}, "weights must be float32 or float64"),
        ({"weights": torch.tensor([1.0, math.inf])}, r"weights\[1\] is inf"),
        ({"mode": "mean"}, "mode must be one of sum, max, got 'mean'"),
        ({"support": "cube"}, "support must be one of ball, box, got 'cube'"),
        ({"truncate": 0.0}, "truncate must be positive"),
        ({"truncate": math.nan}, "truncate must be positive"),
        ({"dtype": torch.float16}, "dtype must be float32 or float64, got float16"),
        (
            {"out": torch.empty(1)},
            r"out must be \(B, K, X, Y, Z\) = \(2, 1, 9, 11, 7\), got \(1,\)",
        ),
        ({"out": torch.empty(1), "dtype": torch.float64}, "dtype is torch.float64 but out is"),
        ({"backend": "abacus"}, "backend must be one of auto, cpu, reference"),
        ({"weights": torch.ones(2, device="meta")}, "weights is on meta, but peaks_mm is on cpu"),
    ],
)
def test_bad_input_gets_one_clear_sentence(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize("changes", [{"grid": (9, 9, 9)}, {"peaks_mm": [[0.0] * 3]}, {"out": 3}])
def test_wrong_types(changes: dict) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(changes))} must be"):
        call(**changes)
