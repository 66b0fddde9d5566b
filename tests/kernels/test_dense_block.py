"""dense_block: the reference against plain layers, every implementation against float64."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import atlas_kernels
from atlas_kernels import _extension
from atlas_kernels.dense_block import cpu
from atlas_kernels.dense_block.op import LISTS, TABLE, statistics_dtype
from tests.support import ROOT, printed_by

from .cases import (
    BLOCK_CASES,
    LAYER_TOLERANCE,
    LAYOUTS,
    BlockCase,
    check_close,
    in_layout,
    random,
)

NAMES = [row.name for row in TABLE]
ROWS = [row for row in TABLE if "cpu" in (row.devices or ("cpu",))]
PLAIN = BLOCK_CASES[0]
NO_EXTENSION = _extension.why_missing()
needs_extension = pytest.mark.skipif(bool(NO_EXTENSION), reason=str(NO_EXTENSION))


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


@dataclass
class Inputs:
    """Tensors of one case, and how to call dense_block with them."""

    case: BlockCase
    x: torch.Tensor
    lists: list[list[torch.Tensor]]  # in the order of LISTS

    def leaves(self) -> list[torch.Tensor]:
        return [self.x, *(tensor for tensors in self.lists for tensor in tensors)]

    def arguments(self) -> tuple[Any, ...]:
        return (self.x, *self.lists, list(self.case.dilations), self.case.groups_size)

    def call(self, backend: str = "auto", **options: Any) -> torch.Tensor:
        return atlas_kernels.dense_block(*self.arguments(), backend=backend, **options)

    def with_leaves(self, leaves: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> Inputs:
        rest = iter(leaves[1:])
        return Inputs(self.case, leaves[0], [[next(rest) for _ in ts] for ts in self.lists])


def inputs(
    case: BlockCase, dtype: torch.dtype = torch.float64, where: str = "contiguous"
) -> Inputs:
    """Parameters are float32, or float64 for float64."""
    number = torch.float64 if dtype == torch.float64 else torch.float32
    n, channels, growth = case.shape[0], case.shape[1], case.growth
    lists: list[list[torch.Tensor]] = [[] for _ in LISTS]
    for k in range(len(case.dilations)):
        c = channels + k * growth
        shapes = [(growth, c, 3, 3, 3), (c,), (c,), (n, c), (n, c)][: 5 if case.film else 3]
        for i, shape in enumerate(shapes):
            # Convolutions keep the size of what goes through them, in powers of two.
            scale = 2.0 ** -round(math.log2(27 * c) / 2) if i == 0 else 0.5
            value = scale * random(*shape, seed=10 * k + i, mean=2.0 if i == 1 else 0.0)
            lists[i].append(value.to(number).requires_grad_())
    x = in_layout(random(*case.shape, seed=99, mean=1.0).to(dtype), where)
    return Inputs(case, x.requires_grad_(), lists)


def by_layers(given: Inputs) -> torch.Tensor:
    """The definition, with one shifted product for each of the 27 taps."""
    case, x = given.case, given.x
    for k, d in enumerate(case.dilations):
        weight, scale, shift, *film = (tensors[k] for tensors in given.lists if tensors)
        n, c, size = *x.shape[:2], case.groups_size
        grouped = x.reshape(n, c // size, size * x.shape[2:].numel())
        centred = grouped - grouped.mean(2, keepdim=True)
        a = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
        a = a.reshape(x.shape) * scale[:, None, None, None] + shift[:, None, None, None]
        if film:
            gamma, beta = (t[..., None, None, None] for t in film)
            a = a * (1 + gamma) + beta
        a = F.pad(a / (1 + (-a).exp()), [d] * 6)
        y = torch.zeros(())
        for i, j, h in product(range(3), repeat=3):
            corner = a[:, :, i * d :, j * d :, h * d :]
            tap = corner[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]
            y = y + torch.einsum("ncxyz,oc->noxyz", tap, weight[:, :, i, j, h])
        x = torch.cat([x, y], dim=1)
    return x


@functools.cache
def truth(case: BlockCase) -> tuple[torch.Tensor, list[torch.Tensor], float]:
    """Values, the gradients that autograd finds for them, and what dx is made of by subtraction."""
    given = inputs(case)
    out = by_layers(given)
    grads = torch.autograd.grad(out, given.leaves(), upstream(out), materialize_grads=True)
    # A group of one number is multiplied by 1 / sqrt(eps), and the gradient is 0 by subtraction.
    alone = case.groups_size * math.prod(case.shape[2:]) == 1
    return out.detach(), list(grads), 316.0 if alone else 0.0


def upstream(out: torch.Tensor, seed: int = 5) -> torch.Tensor:
    return random(*out.shape, seed=seed).to(out.dtype)


def gradients(out: torch.Tensor, given: Inputs, dy: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(out, given.leaves(), dy, materialize_grads=True))


def run(given: Inputs, backend: str, where: str = "contiguous") -> list[torch.Tensor]:
    """Return the output, and the gradients of all leaves."""
    out = given.call(backend)
    return [out, *gradients(out, given, in_layout(upstream(out), where))]


# ---- values and gradients ------------------------------------------------------------------------

# Values are rounded to the dtype of x once a layer, gradients once for each later layer.
TIMES = {torch.float64: 1, torch.float32: 3, torch.float16: 4, torch.bfloat16: 4}


def formats(x: torch.Tensor) -> list[bool]:
    """Say which of the two layouts a tensor has; both where sizes are 1 or 0."""
    return [x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last_3d)]


@pytest.mark.parametrize("dtype", LAYER_TOLERANCE, ids=str)
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("case", BLOCK_CASES, ids=str)
def test_values_and_gradients(
    case: BlockCase, where: str, dtype: torch.dtype, backend: str
) -> None:
    given, (want, want_grads, scale) = inputs(case, dtype, where), truth(case)
    out, *grads = run(given, backend, where)
    assert out.dtype == grads[0].dtype == dtype
    assert formats(out) == formats(given.x) or not out.numel()
    check_close(out, want, dtype, times=TIMES[dtype])
    for leaf, got, wish in zip(given.leaves(), grads, want_grads, strict=True):
        assert got.dtype == leaf.dtype
        check_close(got, wish, dtype, scale=scale, times=2 * TIMES[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_of_the_dtype_of_x(dtype: torch.dtype, backend: str) -> None:
    given = inputs(PLAIN, dtype)
    given = given.with_leaves([t.detach().to(dtype).requires_grad_() for t in given.leaves()])
    out, *grads = run(given, backend)
    want, want_grads, _ = truth(PLAIN)
    check_close(out, want, dtype, times=TIMES[dtype])
    for got, wish in zip(grads, want_grads, strict=True):
        assert got.dtype == dtype
        check_close(got, wish, dtype, times=2 * TIMES[dtype])


@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("film", [True, False])
def test_gradcheck(film: bool, where: str, backend: str) -> None:
    given = inputs(BlockCase("gradcheck", (2, 2, 2, 3, 2), 2, (1, 2), 2, film), where=where)

    def function(*leaves: torch.Tensor) -> torch.Tensor:
        return given.with_leaves(leaves).call(backend)

    assert torch.autograd.gradcheck(function, tuple(given.leaves()), fast_mode=True)


def test_some_gradients_only(backend: str) -> None:
    given = inputs(PLAIN)
    for leaf in given.leaves()[:2]:
        leaf.requires_grad_(False)
    out = given.call(backend)
    out.backward(upstream(out))
    assert given.x.grad is None and given.lists[0][0].grad is None
    for leaf, wish in zip(given.leaves()[2:], truth(PLAIN)[1][2:], strict=True):
        check_close(leaf.grad, wish, torch.float64, times=2)


def test_the_input_comes_first_untouched(backend: str) -> None:
    given = inputs(PLAIN, torch.bfloat16)
    out = given.call(backend)
    assert torch.equal(out[:, : PLAIN.shape[1]], given.x)
    assert out.data_ptr() != given.x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_batch_in_parts(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking samples a few at a time changes the order of the weights' sums, and nothing else."""
    if ROWS[0].why_not():
        pytest.skip(ROWS[0].why_not())
    case = BlockCase("parts", (5, 8, 3, 4, 5), 8, (1, 2))
    whole = run(inputs(case, dtype), "cpu")
    monkeypatch.setattr(cpu, "VOXELS_AT_ONCE", at_once * 3 * 4 * 5)
    parts = run(inputs(case, dtype), "cpu")
    assert torch.equal(parts[0], whole[0])
    for one, other in zip(parts[1:], whole[1:], strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=4 * LAYER_TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_sample_alone(bad: float, backend: str) -> None:
    def one(spoilt: bool) -> list[torch.Tensor]:
        given = inputs(PLAIN, torch.float32, "channels_last")
        if spoilt:
            with torch.no_grad():
                given.x[1, 3, 2, 2, 2] = bad
        return run(given, backend)

    (clean, *clean_grads), (out, *grads) = one(False), one(True)
    new = PLAIN.shape[1]
    assert torch.equal(out[0], clean[0]) and out[1, new:].isnan().all()
    assert torch.equal(grads[0][0], clean_grads[0][0]) and grads[0][1, :8].isnan().all()
    for got in (g for g in grads[1:] if g.ndim == 2):  # of FiLM
        assert got[0].isfinite().all() and got[1].isnan().any()


def test_a_mean_far_from_zero(backend: str) -> None:
    given = inputs(BlockCase("far", (1, 8, 5, 6, 7), 8, (1,)), torch.float32)
    with torch.no_grad():
        given.x += 1e4
    exact = given.with_leaves([t.detach().double() for t in given.leaves()])
    got, want = given.call(backend), by_layers(exact)
    assert (got - want)[:, 8:].abs().max() < 1e-2  # x has the bits for 1e-3


# ---- layout, determinism, memory -----------------------------------------------------------------


@pytest.mark.parametrize("where", LAYOUTS)
def test_gradients_in_either_layout_and_strided(where: str, backend: str) -> None:
    given = inputs(PLAIN, torch.float32, where)
    out = given.call(backend)
    dy = upstream(out)
    wide = torch.stack([dy, torch.full_like(dy, math.nan)], dim=-1)[..., 0]
    runs = [
        torch.autograd.grad(out, given.leaves(), grad, retain_graph=True)
        for grad in (in_layout(dy, "contiguous"), in_layout(dy, "channels_last"), wide)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("how", ["every_other", "transposed", "first_channels"])
def test_inputs_that_are_not_contiguous(how: str, backend: str) -> None:
    def strided(tensor: torch.Tensor) -> torch.Tensor:
        if how == "transposed":
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if how == "first_channels" and tensor.ndim == 5:
            wide = in_layout(torch.cat([tensor, tensor], dim=1), "channels_last")
            return wide[:, : tensor.shape[1]]
        return torch.stack([tensor, torch.full_like(tensor, math.nan)], dim=-1)[..., 0]

    given = inputs(PLAIN, torch.float32)
    moved = given.with_leaves([strided(t.detach()).requires_grad_() for t in given.leaves()])
    assert not moved.x.is_contiguous()
    for got, want in zip(run(moved, backend), run(given, backend), strict=True):
        check_close(got, want.detach().double(), torch.float32, times=2)


def test_an_expanded_input_and_gradient(backend: str) -> None:
    given = inputs(PLAIN)
    x = given.x.detach()[:1, :, :, :1].expand(PLAIN.shape)
    expanded = given.with_leaves([x, *given.leaves()[1:]])
    dense = given.with_leaves([x.clone(), *given.leaves()[1:]])
    outs = [block.call(backend) for block in (expanded, dense)]
    assert torch.equal(*outs)
    leaves = given.leaves()[1:]
    got = torch.autograd.grad(outs[0].sum(), leaves)
    want = torch.autograd.grad(outs[1], leaves, torch.ones_like(outs[1]))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_every_run_and_for_any_number_of_threads(dtype: torch.dtype) -> None:
    if ROWS[0].why_not():
        pytest.skip(ROWS[0].why_not())
    case, runs = BlockCase("threads", (2, 16, 11, 9, 10), 16, (1, 2)), []
    for threads in (1, 2, 4, 2):
        torch.set_num_threads(threads)
        runs.append(run(inputs(case, dtype, "channels_last"), "cpu"))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_inputs_are_left_alone(backend: str) -> None:
    given = inputs(PLAIN, torch.float32, "channels_last")
    before = [leaf.detach().clone() for leaf in given.leaves()]
    out = given.call(backend)
    kept, dy = out.detach().clone(), in_layout(upstream(out), "channels_last")
    gradients(out, given, dy)
    assert all(torch.equal(a, b) for a, b in zip(before, given.leaves(), strict=True))
    assert torch.equal(out, kept) and torch.equal(dy, upstream(out))


def test_what_is_saved(backend: str) -> None:
    """The output, two numbers a channel, and the parameters: no activations."""
    given, saved = inputs(PLAIN, torch.float32, "channels_last"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = given.call(backend)
    parameters = {leaf.data_ptr() for leaf in given.leaves()[1:]}
    own = [t for t in saved if t.data_ptr() not in parameters]
    assert len(saved) == len(own) + len(parameters)
    assert own[0].data_ptr() == out.data_ptr()
    assert [t.shape for t in own] == [out.shape, (2, *out.shape[:2])]
    assert own[1].dtype == statistics_dtype(given.x)


def test_gradients_have_the_layout_that_ddp_wants(backend: str) -> None:
    """Dense, in their parameters' layout, though gammas and betas are halves of other tensors."""
    given = inputs(PLAIN, torch.float32)
    halves = [torch.cat(pair, dim=1).detach().requires_grad_() for pair in zip(*given.lists[3:])]
    gammas, betas = zip(*(half.chunk(2, dim=1) for half in halves), strict=True)
    given = Inputs(given.case, given.x, [*given.lists[:3], list(gammas), list(betas)])
    assert all(grad.is_contiguous() for grad in run(given, backend)[2:])


# ---- torch's own checks --------------------------------------------------------------------------


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize(("film", "dilations"), [(True, (1, 2)), (False, (2,)), (False, ())])
def test_opcheck(
    film: bool, dilations: tuple[int, ...], where: str, needs_grad: bool, backend: str
) -> None:
    given = inputs(BlockCase("opcheck", (2, 4, 3, 2, 3), 4, dilations, 4, film), where=where)
    given = given.with_leaves([t.detach().requires_grad_(needs_grad) for t in given.leaves()])
    problem = (*given.arguments(), 1e-5, backend)
    op = torch.ops.atlas_kernels.dense_block
    torch.library.opcheck(op.default, problem)
    if not needs_grad:
        out, statistics = op(*problem)
        backward = torch.ops.atlas_kernels.dense_block_backward.default
        torch.library.opcheck(backward, (out, out, statistics, *problem[1:]))


@pytest.mark.parametrize("where", LAYOUTS)
def test_compile_in_one_graph(where: str, backend: str) -> None:
    given = inputs(BlockCase("compile", (2, 8, 3, 2, 3)), torch.float32, where)

    def loss(*leaves: torch.Tensor) -> torch.Tensor:
        return (given.with_leaves(leaves).call(backend).square() * 2).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = function(*given.leaves())
        results.append([value, *torch.autograd.grad(value, given.leaves())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_autocast_casts_like_a_convolution(backend: str) -> None:
    given = inputs(PLAIN, torch.float32)
    want = given.with_leaves([given.x.bfloat16(), *given.leaves()[1:]]).call(backend)
    with torch.autocast("cpu", torch.bfloat16):
        out = given.call(backend)
        exact = inputs(PLAIN).call(backend)
    assert out.dtype == torch.bfloat16 and torch.equal(out, want)
    assert exact.dtype == torch.float64
    grads = gradients(out, given, upstream(out))
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_no_second_derivative(backend: str) -> None:
    given = inputs(PLAIN)
    (grad,) = torch.autograd.grad(given.call(backend).square().sum(), given.x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


# ---- the C++ that convolutions need --------------------------------------------------------------


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "channels", "growth", "dilation"),
    [
        ((2, 5, 6, 7), 16, 8, 2),
        ((1, 3, 4, 5), 1, 1, 1),
        ((1, 7, 5, 3), 17, 3, 2),
        ((3, 4, 3, 9), 33, 31, 4),
        ((1, 9, 8, 7), 5, 32, 9),  # no tap but the middle one reaches anything
        ((1, 3, 30, 29), 7, 24, 3),  # several strips
        ((1, 2, 3, 211), 8, 6, 1),  # longer than a strip
        ((3, 12, 11, 13), 48, 16, 1),  # in float32 by Winograd's tiles, in several parts
        ((0, 3, 4, 5), 8, 8, 1),
    ],
)
def test_weight_gradient(
    shape: tuple[int, ...], channels: int, growth: int, dilation: int, dtype: torch.dtype
) -> None:
    """Channels of wider rows; the same bits for any number of threads."""
    n, *grid = shape
    a = random(n, *grid, channels + 3, seed=1).to(dtype)
    g = random(n, *grid, growth + 2, seed=2).to(dtype)
    d = [dilation] * 3
    want = torch.ops.aten.convolution_backward(
        g[..., :growth].movedim(-1, 1).double(), a[..., :channels].movedim(-1, 1).double(),
        torch.empty(growth, channels, 3, 3, 3).double(), None, [1] * 3, d, d, False, [0] * 3, 1,
        [False, True, False],
    )[1]  # fmt: skip
    runs = []
    for threads in (1, 2, 3):
        dw = torch.full((growth, channels, 3, 3, 3), math.nan)
        _extension.kernels().conv_weight_gradient_cpu(
            a.data_ptr(), channels + 3, g.data_ptr(), growth + 2, str(dtype).removeprefix("torch."),
            n, tuple(grid), channels, growth, dilation, dw.data_ptr(), threads,
        )  # fmt: skip
        runs.append(dw)
    check_close(runs[0], want, torch.float32, scale=1)
    assert all(torch.equal(runs[0], other) for other in runs[1:])


@needs_extension
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("shape", "channels", "growth", "dilation"),
    [
        ((2, 5, 6, 7), 16, 8, 2),
        ((1, 12, 13, 11), 48, 16, 1),
        ((1, 3, 4, 5), 1, 1, 1),
        ((3, 7, 5, 3), 17, 35, 2),
        ((1, 9, 8, 7), 5, 32, 9),  # wider than the grid
        ((2, 1, 1, 1), 16, 16, 3),
        ((0, 3, 4, 5), 8, 8, 1),
    ],
)
def test_convolution(
    shape: tuple[int, ...], channels: int, growth: int, dilation: int, mirrored: bool
) -> None:
    """From and to channels of wider rows, whatever the order of the weights, in any threads."""
    n, *grid = shape
    a = random(n, *grid, channels + 3, seed=1).float()
    weight = random(growth, channels, 3, 3, 3, seed=2).float()
    given, strides = weight, (channels * 27, 27, 1)
    if mirrored:  # as the gradient of a convolution from `growth` to `channels` reads its weight
        given, strides = weight.flip(2, 3, 4).transpose(0, 1).contiguous(), (27, growth * 27, -1)
    x = a[..., :channels].movedim(-1, 1).double()
    want = F.conv3d(x, weight.double(), padding=dilation, dilation=dilation)
    runs = []
    for threads in (1, 2, 3):
        y = torch.full((n, *grid, growth + 2), 7.0)
        _extension.kernels().convolution_cpu(
            a.data_ptr(), channels + 3, y.data_ptr(), growth + 2, n, tuple(grid), channels, growth,
            dilation, given.data_ptr() + 26 * 4 * mirrored, strides, threads,
        )  # fmt: skip
        runs.append(y)
    check_close(runs[0][..., :growth].movedim(-1, 1), want, torch.float32, scale=1)
    assert (runs[0][..., growth:] == 7).all()
    assert all(torch.equal(runs[0], other) for other in runs[1:])


@needs_extension
def test_which_convolution() -> None:
    """Ours without dilation; the vendor's where nearly every tap lies outside the grid."""
    pays = _extension.kernels().convolution_pays
    assert pays((23, 28, 23), 32, 16, 1) and pays((6, 7, 6), 64, 16, 1)
    assert not pays((12, 14, 12), 112, 16, 8)


@needs_extension
def test_a_block_takes_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*unused: Any) -> torch.Tensor:
        raise AssertionError("the vendor's convolution")

    monkeypatch.setattr(cpu, "_vendor_convolution", refuse)
    case = BlockCase("ours", (2, 16, 8, 7, 9), 16, (1, 1))
    run(inputs(case, torch.float32), "cpu")
    with pytest.raises(AssertionError, match="vendor"):
        run(inputs(case, torch.float64), "cpu")


@pytest.mark.parametrize("level", ["any", "avx2", "avx512"])
def test_convolution_on_other_processors(level: str, tmp_path: Path) -> None:
    if level != "any" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("a level of x86-64")
    sources = [Path(__file__).with_name("winograd.cpp"), ROOT / "csrc" / "common" / "parallel.cpp"]
    flag = f"-DATLAS_LEVEL=code_{level}"
    printed = printed_by(tmp_path / "winograd", sources, flag).split()
    if printed == ["none"]:
        pytest.skip("not on this processor")
    assert len(printed) == 8
    assert max(map(float, printed)) <= LAYER_TOLERANCE[torch.float32]


@needs_extension
@pytest.mark.parametrize("channels", [1, 7, 8, 33])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        *((dtype, dtype) for dtype in LAYER_TOLERANCE),
        *((short, torch.float32) for short in (torch.bfloat16, torch.float16)),
        *((torch.float32, short) for short in (torch.bfloat16, torch.float16)),
    ],
    ids=str,
)
def test_copy_channels(source: torch.dtype, target: torch.dtype, channels: int) -> None:
    voxels, name = 4099, lambda t: str(t.dtype).removeprefix("torch.")  # more than one chunk
    generator = torch.Generator().manual_seed(0)
    one = torch.randn((voxels, channels + 2), generator=generator).to(source)
    one[0, 0], one[1, 0], one[2, 0] = math.nan, math.inf, 1e-42
    other = torch.full((voxels, channels + 5), 7.0, dtype=target)
    _extension.kernels().copy_channels_cpu(
        voxels, channels, one.data_ptr(), name(one), channels + 2, other.data_ptr(), name(other),
        channels + 5, 2,
    )  # fmt: skip
    exact, got = (t[:, :channels].double() for t in (one, other))
    want = exact.to(target).double()
    assert got[0, 0].isnan() and got[1, 0] == math.inf
    got[:2, 0] = want[:2, 0] = exact[:2, 0] = 0
    # To the nearest; which of two that are equally near, nobody promises.
    assert torch.equal((got - exact).abs(), (want - exact).abs())
    assert (other[:, channels:] == 7).all()


# ---- bad input -----------------------------------------------------------------------------------


def attempt(**changes: Any) -> torch.Tensor:
    arguments = {
        "x": torch.zeros(2, 8, 3, 3, 3),
        "conv_weights": [torch.zeros(8, 8, 3, 3, 3), torch.zeros(8, 16, 3, 3, 3)],
        "norm_weights": [torch.zeros(8), torch.zeros(16)],
        "norm_biases": [torch.zeros(8), torch.zeros(16)],
        "gammas": [torch.zeros(2, 8), torch.zeros(2, 16)],
        "betas": [torch.zeros(2, 8), torch.zeros(2, 16)],
        "dilations": [1, 2],
    }
    return atlas_kernels.dense_block(**{**arguments, **changes})


WEIGHT, META = torch.zeros(8, 8, 3, 3, 3), torch.zeros(16, device="meta")
WRONG_VALUES = [
    ({"x": torch.zeros(2, 8, 3, 3)}, r"x must be \(N, C, X, Y, Z\), got \(2, 8, 3, 3\)"),
    ({"x": torch.zeros(2, 8, 3, 0, 3)}, "x must have at least one voxel"),
    ({"x": torch.zeros(2, 8, 3, 3, 3).int()}, "x must be float32, bfloat16.* got int32"),
    ({"x": torch.zeros(2, 7, 3, 3, 3)}, "groups_size must divide the 7 channels of x, got 8"),
    ({"x": torch.zeros(2, 0, 3, 3, 3)}, "groups_size must divide the 0 channels of x, got 8"),
    ({"groups_size": 0}, "groups_size must divide the 8 channels of x, got 0"),
    ({"groups_size": -8}, "groups_size must divide the 8 channels of x, got -8"),
    ({"dilations": [1, 0]}, r"dilations must be at least 1, got \[1, 0\]"),
    ({"dilations": [1]}, "conv_weights must have one entry for each of the 1 dilations, got 2"),
    ({"norm_biases": []}, "norm_biases must have one entry for each of the 2 dilations, got 0"),
    ({"gammas": []}, "gammas must have one entry for each of the 2 dilations, got 0"),
    ({"betas": []}, "betas must have one entry for each of the 2 dilations, got 0"),
    ({"conv_weights": [torch.zeros(()), WEIGHT]}, r"conv_weights\[0\] must be \(growth, C, 3"),
    ({"conv_weights": [WEIGHT[:4], WEIGHT]}, "conv_weights must grow by a multiple of 8, got 4"),
    ({"conv_weights": [WEIGHT[:0], WEIGHT]}, "conv_weights must grow by a multiple of 8, got 0"),
    ({"conv_weights": [WEIGHT, WEIGHT]}, r"conv_weights\[1\] must be \(8, 16, 3, 3, 3\), got"),
    ({"norm_weights": [torch.zeros(8), META.long()]}, r"norm_weights\[1\] must be floating point"),
    ({"norm_weights": [torch.zeros(8), META]}, r"norm_weights\[1\] is on meta, but x is on cpu"),
    ({"gammas": [torch.zeros(8), torch.zeros(2, 16)]}, r"gammas\[0\] must be \(2, 8\), got \(8,\)"),
    ({"eps": -1.0}, "eps must be finite and not negative, got -1.0"),
    ({"eps": math.nan}, "eps must be finite"),
]


@pytest.mark.parametrize("name", ["auto", *NAMES])
@pytest.mark.parametrize(("changes", "message"), WRONG_VALUES)
def test_bad_input_gets_one_clear_sentence(changes: dict, message: str, name: str) -> None:
    with pytest.raises(ValueError, match=message):
        attempt(**changes, backend=name)


def test_autocast_takes_no_integers() -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="x must be float32, bfloat16.* got int32"),
    ):
        attempt(x=torch.zeros(2, 8, 3, 3, 3).int())


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, cpu, .* got 'abacus'"):
        attempt(backend="abacus")


@pytest.mark.parametrize("name", ["auto", *NAMES])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "x must be a tensor, got NoneType"),
        ({"conv_weights": None}, "conv_weights must be a list, got NoneType"),
        ({"conv_weights": WEIGHT}, "conv_weights must be a list, got Tensor"),
        ({"norm_biases": [0, 1]}, r"norm_biases\[0\] must be a tensor, got int"),
        ({"betas": None}, "betas must be a list, got NoneType"),
        ({"dilations": 2}, "dilations must be a list, got int"),
        ({"dilations": [1, 2.5]}, r"dilations\[1\] must be an integer, got float"),
        ({"groups_size": 8.0}, "groups_size must be an integer, got float"),
        ({"eps": None}, "eps must be a number, got NoneType"),
    ],
)
def test_wrong_types(changes: dict, message: str, name: str) -> None:
    with pytest.raises(TypeError, match=message):
        attempt(**changes, backend=name)
