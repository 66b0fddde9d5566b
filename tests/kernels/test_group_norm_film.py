"""group_norm_film: the reference against the bare formula, every implementation against float64."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas_kernels
from atlas_kernels.group_norm_film.op import TABLE
from tests.support import ROOT, printed_by

from .cases import (
    LAYER_CASES,
    LAYER_TOLERANCE,
    LAYOUTS,
    PARAMETERS,
    LayerCase,
    check_close,
    in_layout,
    random,
)

Tensors = dict[str, torch.Tensor]
NAMES = [row.name for row in TABLE]
ROWS = [row for row in TABLE if "cpu" in (row.devices or ("cpu",))]  # test_gpu.py has the others
PLAIN = LAYER_CASES[0]


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param.why_not():
        pytest.skip(request.param.why_not())
    return request.param.name


@pytest.fixture
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def number(dtype: torch.dtype) -> torch.dtype:
    """What the parameters and the statistics are in where x has this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tensors(
    case: LayerCase, dtype: torch.dtype = torch.float64, where: str = "contiguous"
) -> Tensors:
    n, c = case.shape[:2]
    shapes = {"weight": (c,), "bias": (c,), "gamma": (n, c), "beta": (n, c)}
    given = {"x": in_layout(random(*case.shape, mean=1.0).to(dtype), where)}
    for seed, (name, shape) in enumerate(shapes.items(), 1):
        if name in case.given:
            given[name] = random(*shape, seed=seed).to(number(dtype))
    return {name: tensor.requires_grad_() for name, tensor in given.items()}


def call(case: LayerCase, given: Tensors, backend: str = "auto", **options: Any) -> torch.Tensor:
    return atlas_kernels.group_norm_film(
        **given, groups=case.groups, activation=case.activation, backend=backend, **options
    )


def by_formula(case: LayerCase, given: Tensors) -> torch.Tensor:
    """The definition, one channel of one sample at a time."""
    x, size, rows = given["x"], case.shape[1] // case.groups, []
    one, zero = torch.ones(case.shape[:2]).double(), torch.zeros(case.shape[:2]).double()
    weight, bias = given.get("weight", one.new_ones(size * case.groups)), given.get("bias")
    gamma, beta = given.get("gamma", zero), given.get("beta", zero)
    for n, c in product(*map(range, case.shape[:2])):
        group = x[n, c // size * size :][:size]
        z = (x[n, c] - group.mean()) / ((group - group.mean()).square().mean() + 1e-5).sqrt()
        z = z * weight[c] + (0 if bias is None else bias[c])
        z = z * (1 + gamma[n, c]) + beta[n, c]
        rows.append(z / (1 + (-z).exp()) if case.activation == "silu" else z)
    return torch.stack(rows).reshape(case.shape) if rows else x * 1


def formats(x: torch.Tensor) -> list[bool]:
    """Say which of the two layouts a tensor has; both where sizes are 1 or 0."""
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return [x.is_contiguous(), x.is_contiguous(memory_format=last)]


def upstream(case: LayerCase) -> torch.Tensor:
    return random(*case.shape, seed=9)


@functools.cache
def truth(case: LayerCase) -> tuple[torch.Tensor, Tensors, float]:
    """Values, the gradients that autograd finds for them, and what dx is made of by subtraction."""
    given = tensors(case)
    y = call(case, given, "reference")
    grads = gradients(by_formula(case, given), given, upstream(case))
    rstd = torch.ops.atlas_kernels.group_norm_film(
        given["x"], case.groups, None, None, None, None, "none", 1e-5, "reference"
    )[2]
    return y.detach(), grads, float(rstd.max()) if y.numel() else 0.0


def gradients(y: torch.Tensor, given: Tensors, dy: torch.Tensor) -> Tensors:
    found = torch.autograd.grad(
        y, list(given.values()), dy, allow_unused=True, materialize_grads=True
    )
    return dict(zip(given, found, strict=True))


# ---- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_reference_is_the_formula(case: LayerCase) -> None:
    given = tensors(case)
    got, want = call(case, given, "reference"), by_formula(case, given).detach()
    check_close(got, want, torch.float64, times=1e-2)
    _, want_grads, scale = truth(case)
    for name, grad in gradients(got, given, upstream(case)).items():
        check_close(grad, want_grads[name], torch.float64, scale=scale if name == "x" else 0)


@pytest.mark.parametrize("dtype", LAYER_TOLERANCE, ids=str)
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_values_and_gradients(
    case: LayerCase, where: str, dtype: torch.dtype, backend: str
) -> None:
    given, (want, want_grads, scale) = tensors(case, dtype, where), truth(case)
    y = call(case, given, backend)
    grads = gradients(y, given, in_layout(upstream(case).to(dtype), where))
    for got in (y, grads["x"]):
        assert got.dtype == dtype
        assert formats(got) == formats(given["x"]) or not got.numel()
    check_close(y, want, dtype)
    check_close(grads["x"], want_grads["x"], dtype, scale=4 * scale)
    for name in case.given:
        assert grads[name].dtype == number(dtype) and grads[name].is_contiguous()
        check_close(grads[name], want_grads[name], number(dtype), times=10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_of_the_dtype_of_x(dtype: torch.dtype, backend: str) -> None:
    given = tensors(PLAIN, dtype)
    given = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in given.items()}
    y, (want, want_grads, scale) = call(PLAIN, given, backend), truth(PLAIN)
    check_close(y, want, dtype)
    for name, grad in gradients(y, given, upstream(PLAIN).to(dtype)).items():
        assert grad.dtype == dtype
        check_close(grad, want_grads[name], dtype, scale=scale)


@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_gradcheck(activation: str, where: str, backend: str) -> None:
    case = LayerCase("gradcheck", (2, 4, 2, 3, 2), 2, activation=activation)
    given = tensors(case, where=where)

    def function(*values: torch.Tensor) -> torch.Tensor:
        return call(case, dict(zip(given, values, strict=True)), backend)

    assert torch.autograd.gradcheck(function, tuple(given.values()))


def test_a_parameter_that_needs_no_gradient_gets_none(backend: str) -> None:
    given = tensors(PLAIN)
    given["x"].requires_grad_(False)
    given["gamma"].requires_grad_(False)
    call(PLAIN, given, backend).backward(upstream(PLAIN))
    want = truth(PLAIN)[1]
    for name in ("weight", "bias", "beta"):
        check_close(given[name].grad, want[name], torch.float64)
    assert given["x"].grad is None and given["gamma"].grad is None


def test_eps(backend: str) -> None:
    x = torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2)
    y = atlas_kernels.group_norm_film(x, 1, activation="none", eps=3.0, backend=backend)
    assert y.flatten().tolist() == [-0.5, 0.5]


# ---- numbers that are hard -----------------------------------------------------------------------


@pytest.mark.parametrize("where", LAYOUTS)
def test_a_mean_far_from_zero(where: str, backend: str) -> None:
    """Statistics do not cancel: what is left is the last bit of float32 at the mean."""
    case, bit = LayerCase("far", (2, 4, 17, 13, 11), 2, given=(), activation="none"), 2.0**-10
    x = in_layout((torch.randn(case.shape).sign() + 1e4).float(), where)
    arguments = (case.groups, None, None, None, None, "none", 1e-5)
    op = torch.ops.atlas_kernels.group_norm_film
    y, mean, rstd = op(x, *arguments, backend)
    want_y, want_mean, want_rstd = op(x.double(), *arguments, "reference")
    check_close(rstd, want_rstd, torch.float32)
    assert (mean - want_mean).abs().max() <= 2 * bit
    assert (y - want_y).abs().max() <= 2 * bit


@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("unlike", [slice(None, 4000), slice(5000, None)], ids=str)
def test_a_beginning_unlike_the_rest(unlike: slice, where: str, backend: str) -> None:
    """The mean of a channel's first numbers says nothing of the others."""
    x = torch.randn(1, 2, 35, 41, 43)
    x.flatten(2)[..., unlike] += 1e3
    arguments = (2, None, None, None, None, "none", 1e-5)
    op = torch.ops.atlas_kernels.group_norm_film
    y, mean, rstd = op(in_layout(x, where), *arguments, backend)
    want_y, want_mean, want_rstd = op(x.double(), *arguments, "reference")
    check_close(rstd, want_rstd, torch.float32)
    check_close(mean, want_mean, torch.float32)
    check_close(y, want_y, torch.float32)


@pytest.mark.parametrize("size", [1e4, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_huge_values_before_the_activation(size: float, dtype: torch.dtype, backend: str) -> None:
    given = tensors(PLAIN, dtype)
    with torch.no_grad():
        given["weight"] *= size
    y = call(PLAIN, given, backend)
    exact = {name: tensor.detach().double() for name, tensor in given.items()}
    check_close(y, call(PLAIN, exact, "reference"), dtype)
    for grad in gradients(y, given, upstream(PLAIN).to(dtype)).values():
        assert grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("dtype", LAYER_TOLERANCE, ids=str)
def test_what_is_not_finite_spoils_its_group_alone(
    dtype: torch.dtype, where: str, bad: float, backend: str
) -> None:
    def run(spoilt: bool) -> tuple[torch.Tensor, Tensors]:
        given = tensors(PLAIN, dtype, where)
        if spoilt:
            with torch.no_grad():
                given["x"][1, 2, 3, 4, 1] = bad
        y = call(PLAIN, given, backend)
        return y, gradients(y, given, upstream(PLAIN).to(dtype))

    (clean_y, clean), (y, grads) = run(False), run(True)
    group = torch.zeros(PLAIN.shape[:2], dtype=torch.bool)
    group[1, 2:4] = True  # groups of two channels
    for got, want in ((y, clean_y), (grads["x"], clean["x"])):
        assert got[group].isnan().all() and torch.equal(got[~group], want[~group])
    for name in PARAMETERS:
        reached = group if name in ("gamma", "beta") else group.any(0)
        assert torch.equal(grads[name][~reached], clean[name][~reached])
        assert grads[name][reached].isnan().all()


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("dtype", LAYER_TOLERANCE, ids=str)
def test_a_parameter_that_is_nan_spoils_its_channel_alone(
    dtype: torch.dtype, name: str, backend: str
) -> None:
    given = tensors(PLAIN, dtype)
    want = call(PLAIN, given, backend)
    with (
        torch.no_grad()
    ):  # the sign bit and the fraction all ones: the NaN that rounding could lose
        given[name][..., 2] = torch.tensor(-1, dtype=torch.int32).view(torch.float32).item()
    y = call(PLAIN, given, backend)
    assert y[:, 2].isnan().all()
    assert torch.equal(y[:, [0, 1, 3, 4, 5]], want[:, [0, 1, 3, 4, 5]])


# ---- layout, determinism, memory -----------------------------------------------------------------


@pytest.mark.parametrize("where", LAYOUTS)
def test_a_gradient_in_the_other_layout(where: str, backend: str) -> None:
    given, dy = tensors(PLAIN, torch.float32, where), upstream(PLAIN).float()
    y = call(PLAIN, given, backend)
    runs = [
        torch.autograd.grad(y, list(given.values()), grad, retain_graph=True)
        for grad in (in_layout(dy, "contiguous"), in_layout(dy, "channels_last"))
    ]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()
    assert runs[0][0].stride() == given["x"].stride()


def test_a_gradient_that_is_expanded(backend: str) -> None:
    given = tensors(PLAIN)
    y = call(PLAIN, given, backend)
    got = gradients(y.sum(), given, torch.ones(()).double())
    want = gradients(call(PLAIN, given, backend), given, torch.ones_like(y))
    assert all(torch.equal(got[name], want[name]) for name in given)


def strided(x: torch.Tensor, how: str) -> torch.Tensor:
    """The same values, lying otherwise in memory."""
    if how == "every_other":
        return torch.stack([x, torch.full_like(x, math.nan)], dim=-1)[..., 0]
    if how == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    wide = torch.cat([x, torch.full_like(x, math.nan)], dim=1)
    return in_layout(wide, "channels_last")[:, : x.shape[1]]


@pytest.mark.parametrize("how", ["every_other", "transposed", "first_channels"])
def test_inputs_that_are_not_contiguous(how: str, backend: str) -> None:
    given = tensors(PLAIN, torch.float32)
    want = call(PLAIN, given, backend)
    want_grads = gradients(want, given, upstream(PLAIN).float())
    moved = {
        name: strided(tensor.detach(), how if name == "x" else "every_other").requires_grad_()
        for name, tensor in given.items()
    }
    assert not any(tensor.is_contiguous() for tensor in moved.values())
    y = call(PLAIN, moved, backend)
    assert torch.equal(y, want) and y.is_contiguous()
    for name, grad in gradients(y, moved, strided(upstream(PLAIN).float(), how)).items():
        assert torch.equal(grad, want_grads[name])


def test_inputs_that_are_expanded(backend: str) -> None:
    case = LayerCase("expanded", (3, 4, 2, 3, 2), 2)
    given = {name: tensor.detach()[:1] for name, tensor in tensors(case).items()}
    given["weight"] = torch.full((1,), 1.5).double()
    given["bias"] = torch.full((1,), 0.5).double()
    shapes = {"weight": (4,), "bias": (4,), "gamma": (3, 4), "beta": (3, 4), "x": case.shape}
    expanded = {name: tensor.expand(shapes[name]) for name, tensor in given.items()}
    dense = {name: tensor.clone() for name, tensor in expanded.items()}
    assert torch.equal(call(case, expanded, backend), call(case, dense, backend))


THREADED = [
    case
    for case in LAYER_CASES
    if case.name.startswith("several") or case.name in ("many_channels", "long_and_flat")
]


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", THREADED, ids=str)
def test_same_bits_for_any_number_of_threads(
    case: LayerCase, dtype: torch.dtype, where: str
) -> None:
    if TABLE[0].why_not():
        pytest.skip(TABLE[0].why_not())
    given, dy = tensors(case, dtype, where), in_layout(upstream(case).to(dtype), where)
    runs = []
    for threads in (1, 2, 4, 2):
        torch.set_num_threads(threads)
        y = call(case, given, "cpu")
        runs.append([y, *gradients(y, given, dy).values()])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_same_bits_every_time(backend: str) -> None:
    given, runs = tensors(PLAIN, torch.float32), []
    for _ in range(3):
        y = call(PLAIN, given, backend)
        runs.append([y, *gradients(y, given, upstream(PLAIN).float()).values()])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("where", LAYOUTS)
def test_inputs_are_left_alone(where: str, backend: str) -> None:
    given = tensors(PLAIN, torch.float32, where)
    before = {name: tensor.detach().clone() for name, tensor in given.items()}
    dy = in_layout(upstream(PLAIN).float(), where)
    gradients(call(PLAIN, given, backend), given, dy)
    assert all(torch.equal(before[name], given[name]) for name in given)
    assert torch.equal(dy, upstream(PLAIN).float())


@pytest.mark.parametrize("dtype", LAYER_TOLERANCE, ids=str)
def test_what_is_saved(dtype: torch.dtype, backend: str) -> None:
    given, saved = tensors(PLAIN, dtype), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        call(PLAIN, given, backend)
    inputs = {tensor.data_ptr() for tensor in given.values()}
    own = [tensor for tensor in saved if tensor.data_ptr() not in inputs]
    assert len(saved) == len(own) + len(given)
    statistics = (PLAIN.shape[0], PLAIN.groups)
    assert [(t.shape, t.dtype) for t in own] == [(statistics, number(dtype))] * 2


def test_gradients_have_the_layout_that_ddp_wants(backend: str) -> None:
    """Dense, like their parameters, though gamma and beta are halves of one tensor."""
    given = tensors(PLAIN, torch.float32)
    halves = torch.cat([given["gamma"], given["beta"]], dim=1).detach().requires_grad_()
    gamma, beta = halves.chunk(2, dim=1)
    y = call(PLAIN, {**given, "gamma": gamma, "beta": beta}, backend)
    found = torch.autograd.grad(
        y, [given["weight"], given["bias"], gamma, beta], upstream(PLAIN).float()
    )
    assert all(grad.is_contiguous() for grad in found)


# ---- torch's own checks --------------------------------------------------------------------------


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("case", [PLAIN, LayerCase("bare", (1, 4, 3, 2), 4, ())], ids=str)
def test_opcheck(case: LayerCase, where: str, needs_grad: bool, backend: str) -> None:
    given = {
        n: t.detach().requires_grad_(needs_grad) for n, t in tensors(case, where=where).items()
    }
    parameters = [given.get(name) for name in PARAMETERS]
    problem = (given["x"], case.groups, *parameters, case.activation, 1e-5)
    op = torch.ops.atlas_kernels.group_norm_film
    torch.library.opcheck(op.default, (*problem, backend))
    if not needs_grad:
        y, *statistics = op(*problem, backend)
        backward = torch.ops.atlas_kernels.group_norm_film_backward.default
        torch.library.opcheck(backward, (y, *statistics, *problem, backend))


@pytest.mark.parametrize("where", LAYOUTS)
def test_compile_in_one_graph(where: str, backend: str) -> None:
    given = tensors(PLAIN, torch.float32, where)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        y = call(PLAIN, dict(zip(given, values, strict=True)), backend)
        return (y.square() * 2).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = function(*given.values())
        results.append([value, *torch.autograd.grad(value, list(given.values()))])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_autocast_changes_nothing(backend: str) -> None:
    given = tensors(PLAIN, torch.float32)
    want = call(PLAIN, given, backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(PLAIN, given, backend)
    assert y.dtype == torch.float32 and torch.equal(y, want)


def test_no_second_derivative(backend: str) -> None:
    given = tensors(PLAIN)
    y = call(PLAIN, given, backend).square().sum()
    (grad,) = torch.autograd.grad(y, given["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


# ---- bad input -----------------------------------------------------------------------------------


def attempt(**changes: Any) -> torch.Tensor:
    arguments = {"x": torch.zeros(2, 4, 3, 3, 3), "groups": 2}
    return atlas_kernels.group_norm_film(**{**arguments, **changes})


WRONG_VALUES = [
    ({"x": torch.zeros(2, 4, 3)}, r"x must be \(N, C, Y, Z\) or .*, got \(2, 4, 3\)"),
    ({"x": torch.zeros(2, 4, 3, 3, 3, 3)}, r"x must be \(N, C, Y, Z\) or"),
    ({"x": torch.zeros(2, 4, 3, 3).int()}, "x must be float32, bfloat16.*, got int32"),
    ({"x": torch.zeros(2, 0, 3, 3)}, "groups must divide the 0 channels of x, got 2"),
    ({"groups": 3}, "groups must divide the 4 channels of x, got 3"),
    ({"groups": 0}, "groups must divide the 4 channels of x, got 0"),
    ({"groups": -2}, "groups must divide the 4 channels of x, got -2"),
    ({"weight": torch.ones(3)}, r"weight must be \(C,\) = \(4,\), got \(3,\)"),
    ({"bias": torch.ones(2, 4)}, r"bias must be \(C,\) = \(4,\), got \(2, 4\)"),
    ({"gamma": torch.ones(4)}, r"gamma must be \(N, C\) = \(2, 4\), got \(4,\)"),
    ({"beta": torch.ones(1, 4)}, r"beta must be \(N, C\) = \(2, 4\), got \(1, 4\)"),
    ({"gamma": torch.ones(2, 4).long()}, "gamma must be floating point, got int64"),
    ({"weight": torch.ones(4).cfloat()}, "weight must be floating point, got complex64"),
    ({"weight": torch.ones(4, device="meta")}, "weight is on meta, but x is on cpu"),
    ({"beta": torch.ones(2, 4, device="meta")}, "beta is on meta, but x is on cpu"),
    ({"activation": "relu"}, "activation must be one of silu, none, got 'relu'"),
    ({"eps": -1e-5}, "eps must be finite and not negative, got -1e-05"),
    ({"eps": math.nan}, "eps must be finite"),
    ({"eps": math.inf}, "eps must be finite"),
]


@pytest.mark.parametrize("name", ["auto", *NAMES])
@pytest.mark.parametrize(("changes", "message"), WRONG_VALUES)
def test_bad_input_gets_one_clear_sentence(changes: dict, message: str, name: str) -> None:
    with pytest.raises(ValueError, match=message):
        attempt(**changes, backend=name)


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, cpu, .* got 'abacus'"):
        attempt(backend="abacus")


@pytest.mark.parametrize(
    ("vector", "level"), [(16, ""), (32, "x86-64-v3"), (64, "x86-64-v4")], ids=["16", "32", "64"]
)
def test_vectors_of_other_processors(vector: int, level: str, tmp_path: Path) -> None:
    """Values and gradients with rests of every kind, beside those of the same code in double."""
    if level and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("a level of x86-64")
    csrc = ROOT / "csrc"
    sources = [Path(__file__).with_name("norm_levels.cpp"), csrc / "common" / "parallel.cpp"]
    sources += csrc.glob("group_norm_film/*_cpu.cpp")
    flags = [f"-DATLAS_VECTOR={vector}", *([f"-march={level}"] if level else [])]
    printed = printed_by(tmp_path / "levels", sources, *flags)
    if printed == "none\n":
        pytest.skip("not on this processor")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for dtype, line in zip(dtypes, printed.splitlines(), strict=True):
        y, dx, parameters = map(float, line.split())
        assert max(y, dx) <= LAYER_TOLERANCE[dtype], dtype
        assert parameters <= 10 * LAYER_TOLERANCE[torch.float32], dtype


@pytest.mark.parametrize("name", ["auto", *NAMES])
@pytest.mark.parametrize(
    "changes",
    [
        {"x": [[0.0]]},
        {"x": None},
        {"groups": 2.0},
        {"groups": None},
        {"weight": 1.0},
        {"bias": [0.0] * 4},
        {"gamma": 1},
        {"beta": "0"},
        {"activation": None},
        {"activation": torch.nn.functional.silu},
        {"eps": None},
        {"eps": "1e-5"},
    ],
    ids=lambda changes: ", ".join(f"{k}={type(v).__name__}" for k, v in changes.items()),
)
def test_wrong_types(changes: dict, name: str) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(changes))} must be a"):
        attempt(**changes, backend=name)


def test_a_backend_that_is_no_string() -> None:
    with pytest.raises(TypeError, match="backend must be a string, got int"):
        attempt(backend=3)
