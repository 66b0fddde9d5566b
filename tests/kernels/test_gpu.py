"""group_norm_film's GPU kernels against the reference: on a GPU, or interpreted.

With TRITON_INTERPRET=1 the Triton kernels run as Python on the CPU, so only on tiny inputs; that is
how test_gpu_sources.py calls this file where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch

import atlas_kernels
from atlas_kernels._dispatch import INTERPRETED, Implementation
from atlas_kernels.group_norm_film import reference
from atlas_kernels.group_norm_film.op import TABLE, Problem, layout

from .cases import LAYER_TOLERANCE, LAYOUTS, in_layout

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no CUDA device (nor TRITON_INTERPRET=1)", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"
BACKENDS = ("triton",) if INTERPRETED else ("triton", "cuda")
ROWS = {row.name: row for row in TABLE}
# (shape, groups): a single voxel a channel, one channel a group, one group, sizes that nothing
# divides, several tiles, several blocks of channels, no batch.
SHAPES = [
    ((2, 6, 5, 7, 3), 3),
    ((1, 3, 61, 73), 1),
    ((3, 4, 2, 1, 1), 4),
    ((1, 48, 1, 2, 3), 6),
    ((1, 5, 3, 3, 3), 5),
    ((0, 4, 3, 3), 2),
]
if not INTERPRETED:
    SHAPES += [
        ((4, 16, 46, 55, 46), 2),
        ((2, 64, 23, 28, 23), 8),
        ((1, 16, 91, 109, 91), 2),
        ((3, 33, 9, 11, 7), 3),
        ((2, 160, 13, 5, 7), 20),
        ((1, 4, 1025, 1023), 1),
        ((70000, 2, 3, 3), 1),
    ]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
if INTERPRETED:
    DTYPES = [torch.float32, torch.float16]  # its bfloat16 cannot be trusted, float64 is as float32
# The interpreter's NumPy speaks of e^90 and of inf - inf.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value) encountered:RuntimeWarning"
)


@pytest.fixture(params=BACKENDS)
def row(request: pytest.FixtureRequest) -> Implementation:
    chosen = ROWS[request.param]
    reason = chosen.refuses(DEVICE)
    if reason:
        pytest.skip(f"{chosen.name}: {reason}")
    return chosen


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def problem(
    shape: tuple[int, ...],
    groups: int,
    dtype: torch.dtype,
    where: str = "contiguous",
    given: str = "weight bias gamma beta",
    activation: str = "silu",
) -> Problem:
    n, c = shape[:2]
    x = in_layout((torch.randn(shape, device=DEVICE) * 2 + 3).to(dtype), where)
    number = torch.float64 if dtype == torch.float64 else torch.float32
    values = [torch.randn(c, device=DEVICE, dtype=number) for _ in range(2)]
    values += torch.randn(n, 2 * c, device=DEVICE, dtype=number).chunk(
        2, 1
    )  # as a model makes them
    names = ("weight", "bias", "gamma", "beta")
    parameters = [v if name in given else None for v, name in zip(values, names, strict=True)]
    return Problem(x, groups, *parameters, activation, 1e-5)


def exactly(of: Problem) -> Problem:
    """The same in float64."""
    return Problem(*(v.double() if isinstance(v, torch.Tensor) else v for v in of))


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, scale: float = 1) -> None:
    assert got.shape == want.shape
    if not want.numel():
        return
    largest = max(float(want.abs().max()), 1e-30)
    error = float((got.double() - want).abs().max()) / largest
    assert error <= LAYER_TOLERANCE[dtype] * scale, f"{error:.2g}"


def compare(row: Implementation, of: Problem) -> None:
    wanted = exactly(of)
    y, mean, rstd = row.forward(of)
    want = reference.forward(wanted)
    number = of.statistics_dtype()
    form = layout(of.x)
    assert y.dtype == of.x.dtype and y.is_contiguous(memory_format=form) and mean.dtype == number
    for got, wish, dtype in zip((y, mean, rstd), want, (of.x.dtype, number, number), strict=True):
        close(got, wish, dtype)
    dy = torch.randn_like(of.x)
    dx, *grads = row.backward(dy, of, mean, rstd)
    want_dx, *want_grads = reference.backward(dy.double(), wanted, *want[1:])
    assert dx.dtype == of.x.dtype and dx.is_contiguous(memory_format=form)
    # dx is what is left of differences, so it is measured by what is subtracted.
    whole = float((want[2] * dy.abs().max()).max()) if dy.numel() else 0
    close(
        dx,
        want_dx,
        of.x.dtype,
        max(1.0, whole / max(float(want_dx.abs().max()), 1e-9)) if whole else 1,
    )
    for got, wish, parameter in zip(grads, want_grads, of.parameters(), strict=True):
        if parameter is not None:
            close(got, wish, number, 10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_shapes(
    row: Implementation, shape: tuple[int, ...], groups: int, where: str, dtype: torch.dtype
) -> None:
    compare(row, problem(shape, groups, dtype, where))


GIVEN = ["", "weight", "bias", "gamma", "beta", "weight gamma", "bias gamma beta"]


@pytest.mark.parametrize(
    ("given", "activation"), [*product(GIVEN, ["silu"]), ("", "none"), ("weight gamma", "none")]
)
def test_absent_parameters(row: Implementation, given: str, activation: str) -> None:
    of = problem((2, 4, 3, 5, 2), 2, torch.float32, "channels_last", given, activation)
    compare(row, of)


def test_memory_that_is_not_aligned(row: Implementation) -> None:
    x = torch.randn(1 + 2 * 4 * 105, device=DEVICE)[1:].view(2, 4, 7, 5, 3)
    assert x.is_contiguous() and x.data_ptr() % 16
    compare(row, problem((2, 4, 7, 5, 3), 2, torch.float32)._replace(x=x))


@pytest.mark.parametrize("where", LAYOUTS)
def test_a_mean_far_from_zero(row: Implementation, where: str) -> None:
    of = problem((1, 2, 17, 31, 11), 1, torch.float32, where)
    of = of._replace(x=of.x + 3000)
    y, mean, rstd = row.forward(of)
    want = reference.forward(exactly(of))
    assert float((mean - want[1]).abs()) <= 3e-4  # the last bit of 3000
    close(rstd, want[2], torch.float32)
    close(y, want[0], torch.float32, 100)  # x itself has this few bits


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", LAYOUTS)
def test_non_finite_values_stay_in_their_group(row: Implementation, where: str, bad: float) -> None:
    of = problem((2, 4, 3, 5, 2), 2, torch.float32, where)
    of.x[0, 1, 2, 3, 1] = bad
    y, mean, rstd = row.forward(of)
    dx = row.backward(torch.ones_like(of.x), of, mean, rstd)[0]
    for got in (y, dx):
        assert got[0, :2].isnan().all() and got[0, 2:].isfinite().all() and got[1].isfinite().all()


@pytest.mark.parametrize("where", LAYOUTS)
def test_same_bits_every_time(row: Implementation, where: str) -> None:
    shape = (1, 8, 17, 19, 5) if INTERPRETED else (2, 64, 46, 55, 46)
    of = problem(shape, 2, torch.float32 if INTERPRETED else torch.bfloat16, where)
    dy = torch.randn_like(of.x)

    def once() -> list[torch.Tensor]:
        y, mean, rstd = row.forward(of)
        return [y, mean, rstd, *row.backward(dy, of, mean, rstd)]

    first = once()
    for _ in range(1 if INTERPRETED else 5):
        for one, other in zip(first, once(), strict=True):
            assert torch.equal(one, other)


# ---- the parts that dense_block is made of -------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("first", "channels"), [(0, 24), (24, 8), (8, 16)])
def test_channels_of_a_wider_buffer(dtype: torch.dtype, first: int, channels: int) -> None:
    kernels = pytest.importorskip("atlas_kernels.group_norm_film.triton_launch")
    samples, voxels, groups = 2, 187, channels // 8
    of = problem((samples, channels, 11, 17), groups, dtype)
    buffer = torch.full((samples, voxels, 40), 7.0, device=DEVICE, dtype=dtype)
    x = buffer[:, :, first : first + channels]
    x.copy_(of.x.flatten(2).transpose(1, 2))
    wanted = exactly(of)
    want_y, want_mean, want_rstd = reference.forward(wanted)

    number = of.statistics_dtype()
    wider = torch.full((2, samples, 40), 7.0, device=DEVICE, dtype=number)
    wider[:, :, first : first + channels] = torch.stack(kernels.channel_statistics(x))
    close(wider[0, :, first : first + channels], wanted.x.mean((2, 3)), number)
    m2 = wider[1, :, first : first + channels]
    close(m2, wanted.x.flatten(2).var(2, correction=0) * voxels, number)
    mean, rstd = kernels.group_statistics(
        wider[0, :, first : first + channels], m2, voxels, groups, of.eps
    )
    close(mean, want_mean, number)
    close(rstd, want_rstd, number)

    out = torch.empty((samples, voxels, channels), device=DEVICE, dtype=number)
    kernels.apply(x, of.parameters(), mean, rstd, out, "silu")
    close(out.transpose(1, 2).reshape(want_y.shape), want_y, number, 4)

    dy = torch.randn((samples, voxels, channels), device=DEVICE, dtype=number)
    gradient = torch.ones_like(buffer)
    dx = gradient[:, :, first : first + channels]
    grads = kernels.backward(dy, x, of.parameters(), mean, rstd, dx, "silu", accumulate=True)
    as_x = dy.double().transpose(1, 2).reshape(want_y.shape)
    want_dx, *want_grads = reference.backward(as_x, wanted, want_mean, want_rstd)
    close(dx.transpose(1, 2).reshape(want_y.shape), want_dx + 1, dtype, 4)
    for got, wish in zip(grads, want_grads, strict=True):
        close(got, wish, number, 10)
    dx.fill_(1)
    assert (gradient == 1).all(), "something beside the slice was written"
    kernels.backward(dy, x, of.parameters(), mean, rstd, dx, "silu")
    close(dx.transpose(1, 2).reshape(want_y.shape), want_dx, dtype, 4)


# ---- the op --------------------------------------------------------------------------------------


def leaves(of: Problem) -> list[torch.Tensor]:
    return [t.requires_grad_() for t in (of.x, *of.parameters()) if t is not None]


def call(of: Problem, backend: str) -> torch.Tensor:
    return atlas_kernels.group_norm_film(*of[:6], of.activation, eps=of.eps, backend=backend)


def test_gradient_that_arrives_in_the_other_layout(row: Implementation) -> None:
    of = problem((2, 4, 3, 5, 2), 2, torch.float32, "channels_last", "weight bias")
    x, weight, bias = leaves(of)
    dy = torch.randn(of.x.shape, device=DEVICE)
    got = torch.autograd.grad(call(of, row.name), (x, weight, bias), dy)
    want = torch.autograd.grad(
        call(of, "reference"), (x, weight, bias), in_layout(dy, "channels_last")
    )
    assert got[0].stride() == x.stride()
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="interpreted: no CUDA device")


@on_a_gpu
def test_auto_takes_the_first(row: Implementation) -> None:
    of = problem((1, 4, 3, 5, 2), 2, torch.float32)
    first = next(r.name for r in TABLE if not r.refuses("cuda"))
    assert torch.equal(call(of, "auto"), call(of, first))


@on_a_gpu
def test_opcheck(row: Implementation) -> None:
    of = problem((2, 4, 3, 5, 2), 2, torch.float32, "channels_last")
    leaves(of)
    arguments = (*of, row.name)
    torch.library.opcheck(torch.ops.atlas_kernels.group_norm_film.default, arguments)


@on_a_gpu
def test_gradcheck(row: Implementation) -> None:
    of = problem((2, 4, 3, 2, 2), 2, torch.float64)
    inputs = [t.detach().clone().requires_grad_() for t in (of.x, *of.parameters())]

    def apply(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return call(Problem(x, of.groups, *parameters, "silu", 1e-5), row.name)

    assert torch.autograd.gradcheck(apply, inputs)


@on_a_gpu
@pytest.mark.parametrize("where", LAYOUTS)
def test_compiled_and_in_a_graph(row: Implementation, where: str) -> None:
    of = problem((2, 16, 23, 28, 23), 2, torch.bfloat16, where)
    want = call(of, row.name)
    compiled = torch.compile(lambda x: call(of._replace(x=x), row.name) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(of.x), want * 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(of, row.name)
    graph.replay()
    assert torch.equal(captured, want) and captured.is_contiguous(memory_format=layout(of.x))


@on_a_gpu
def test_autocast(row: Implementation) -> None:
    of = problem((2, 4, 3, 5, 2), 2, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        y = call(of, row.name)
    assert y.dtype == torch.float32 and torch.equal(y, call(of, row.name))


@on_a_gpu
def test_another_stream_and_the_last_device(row: Implementation) -> None:
    of = problem((1, 4, 3, 5, 2), 2, torch.float32)
    want = call(of, row.name)
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    moved = Problem(*(v.to(last) if isinstance(v, torch.Tensor) else v for v in of))
    torch.cuda.synchronize(last)
    with torch.cuda.stream(torch.cuda.Stream(last)):
        got = call(moved, row.name)
        torch.cuda.current_stream().synchronize()
    assert got.device == last and torch.equal(got.cpu(), want.cpu())


@on_a_gpu
def test_mixed_devices(row: Implementation) -> None:
    of = problem((1, 4, 3, 5, 2), 2, torch.float32)
    with pytest.raises(ValueError, match="weight is on cpu, but x is on cuda"):
        call(of._replace(weight=torch.ones(4)), row.name)


@on_a_gpu
@pytest.mark.slow
def test_more_than_two_to_the_31_numbers(row: Implementation) -> None:
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("needs 14 GB of free GPU memory")
    of = problem((1, 1, 1), 1, torch.float32)._replace(
        x=torch.randn((2, 16, 4200, 128, 128), device="cuda", dtype=torch.bfloat16),
        weight=None, bias=None, gamma=None, beta=None, groups=2,
    )  # fmt: skip
    y = row.forward(of)[0]
    one = of._replace(x=of.x[1:, 8:], groups=1)
    torch.testing.assert_close(y[1:, 8:], row.forward(one)[0], rtol=1e-2, atol=1e-2)
