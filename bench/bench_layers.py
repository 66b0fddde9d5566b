"""group_norm_film, dense_block and a whole training step beside eager PyTorch and torch.compile.

Every contender keeps the memory that it frees (bench/conftest.py). Peak memory is that of a fresh
process each, for a block above what it held before the first call.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import atlas_kernels
from atlas import config
from atlas.models import build
from atlas_kernels.dense_block import reference
from atlas_kernels.dense_block.op import Block

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = [(4, 16, 46, 55, 46), (4, 64, 23, 28, 23), (1, 16, 91, 109, 91), (8, 16, 46, 55, 46)]

# Of the models at 4 mm: (samples, channels, growth, dilations, size).
BLOCKS = [
    (4, 32, 16, (1, 2, 4), (23, 28, 23)),
    (4, 64, 16, (1, 2, 4, 8), (12, 14, 12)),
    (4, 64, 16, (1, 2, 4), (6, 7, 6)),
    (4, 16, 16, (1, 1), (23, 28, 23)),
    (4, 32, 16, (1, 1), (12, 14, 12)),
    (4, 16, 16, (1, 1), (46, 55, 46)),
]
TINY = (1, 16, 16, (1, 2), (3, 3, 3))
Run = Callable[[], Sequence[Tensor]]

in_every_layout = pytest.mark.parametrize("layout", LAYOUTS)
in_every_dtype = pytest.mark.parametrize("dtype", DTYPES)
on_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


def gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor) -> Run:
    """Return a call of forward and backward; with it, the output and every gradient."""

    def run() -> Sequence[Tensor]:
        out = function(*leaves)
        return out, *torch.autograd.grad(out, leaves, upstream)

    return run


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


# ---- group_norm_film -----------------------------------------------------------------------------


def eager_norm(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """What a user writes."""
    y = F.group_norm(x, x.shape[1] // 8, weight, bias)
    return F.silu(y * (1 + gamma[:, :, None, None, None]) + beta[:, :, None, None, None])


def fused_norm(x: Tensor, *parameters: Tensor) -> Tensor:
    return atlas_kernels.group_norm_film(x, x.shape[1] // 8, *parameters)


def norm_inputs(shape: tuple[int, ...], layout: str, dtype: str) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    n, c = shape[:2]
    kind, memory_format = DTYPES[dtype], LAYOUTS[layout]
    x, upstream = (
        torch.randn(shape).to(kind).contiguous(memory_format=memory_format) for _ in range(2)
    )
    parameters = [torch.randn(size).to(kind) for size in ((c,), (c,), (n, c), (n, c))]
    return [tensor.requires_grad_() for tensor in (x, *parameters)], upstream


@on_every_shape
@in_every_layout
@in_every_dtype
def test_group_norm_film(measure: Any, shape: tuple[int, ...], layout: str, dtype: str) -> None:
    leaves, upstream = norm_inputs(shape, layout, dtype)
    torch.compiler.reset()
    ours, eager, compiled = (
        gradients(function, leaves, upstream)
        for function in (fused_norm, eager_norm, torch.compile(eager_norm))
    )
    assert_close(ours(), eager(), 1e-4 if dtype == "float32" else 2e-2)
    measure(ours, eager=eager, compile=compiled)


@on_every_shape
@in_every_layout
def test_group_norm_film_forward(measure: Any, shape: tuple[int, ...], layout: str) -> None:
    leaves, _ = norm_inputs(shape, layout, "float32")
    x, *parameters = (leaf.detach() for leaf in leaves)
    copied = torch.empty_like(x)
    measure(lambda: fused_norm(x, *parameters), copy=lambda: copied.copy_(x))


# ---- dense_block ---------------------------------------------------------------------------------


def block_inputs(
    samples: int, channels: int, growth: int, dilations: Sequence[int], size: Sequence[int]
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Block], Tensor]:
    """Return x and the parameters, how to make a Block of the latter, and an upstream gradient."""
    torch.manual_seed(0)
    widths = [channels + k * growth for k in range(len(dilations))]
    leaves = [torch.randn(samples, channels, *size)]
    leaves += [torch.randn(growth, c, 3, 3, 3) * (27 * c) ** -0.5 for c in widths]
    leaves += [1 + 0.1 * torch.randn(c) for c in widths] + [0.1 * torch.randn(c) for c in widths]
    leaves += [0.1 * torch.randn(samples, c) for _ in range(2) for c in widths]
    depth = len(dilations)

    def block(parameters: Sequence[Tensor]) -> Block:
        lists = [parameters[k * depth : (k + 1) * depth] for k in range(5)]
        return Block(*lists, list(dilations), 8, 1e-5)

    return leaves, block, torch.randn(samples, channels + growth * depth, *size)


def block_contenders(shape: tuple[Any, ...], dtype: torch.dtype) -> dict[str, Run]:
    """Return ours, eager in both layouts, compiled and checkpointed, forward and backward."""
    leaves, block, upstream = block_inputs(*shape)
    leaves = [leaves[0].to(dtype), *(p.to(dtype) for p in leaves[1:])]

    def ours(x: Tensor, *parameters: Tensor) -> Tensor:
        return atlas_kernels.dense_block(x, *block(parameters)[:7])

    def eager(x: Tensor, *parameters: Tensor) -> Tensor:
        return reference.forward(x, block(parameters))

    def checkpointed(x: Tensor, *parameters: Tensor) -> Tensor:
        return checkpoint(eager, x, *parameters, use_reentrant=False)  # type: ignore[no-any-return]

    def run(function: Callable[..., Tensor], layout: str) -> Run:
        last = LAYOUTS[layout]
        x = leaves[0].clone(memory_format=last).requires_grad_()
        others = [leaf.clone().requires_grad_() for leaf in leaves[1:]]
        return gradients(function, [x, *others], upstream.to(dtype).contiguous(memory_format=last))

    return {
        "ours": run(ours, "channels_last"),
        "eager": run(eager, "contiguous"),
        "eager_channels_last": run(eager, "channels_last"),
        "compile": run(torch.compile(eager), "channels_last"),
        "checkpoint": run(checkpointed, "channels_last"),
    }


@pytest.mark.parametrize(
    "shape", BLOCKS, ids=lambda s: f"{s[0]}x{s[1]}+{s[2]}-d{''.join(map(str, s[3]))}-{s[4][0]}"
)
@in_every_dtype
def test_dense_block(measure: Any, benchmark: Any, shape: tuple[Any, ...], dtype: str) -> None:
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 convolutions on this processor: eager takes seconds")
    torch.compiler.reset()
    contenders = block_contenders(shape, DTYPES[dtype])
    assert_close(contenders["ours"](), contenders["eager"](), 1e-4 if dtype == "float32" else 5e-2)
    measure(contenders.pop("ours"), **contenders)
    memory = {name: memory_mb("block", name, str(BLOCKS.index(shape)), dtype) for name in PEAKS}
    note_memory(
        benchmark, "eager_memory", {name: peak - held for name, (peak, held) in memory.items()}
    )


PEAKS = ("ours", "eager", "eager_channels_last")


def note_memory(benchmark: Any, what: str, peaks: dict[str, float]) -> None:
    """Record peak memory, MB, and ours beside the least of the others."""
    ours, best = peaks["ours"], min(mb for name, mb in peaks.items() if name != "ours")
    rounded = {name: round(mb, 1) for name, mb in peaks.items()}
    benchmark.extra_info.setdefault("peak_mb", {})[what] = rounded
    benchmark.extra_info.setdefault("ratio", {})[what] = float(f"{ours / best:.3g}")


# ---- a training step -----------------------------------------------------------------------------

SAMPLES, FIELDS = 4, 84


def step_contenders(dtype: torch.dtype) -> dict[str, Callable[[], Run]]:
    """Return what makes a training step of the default 4 mm model: fused, eager, compiled. No
    loading, no loss but what decoder and encoder put out, AdamW included.
    """
    torch.manual_seed(0)
    volume = torch.rand(SAMPLES, 1, 46, 55, 46) ** 20
    fields, kept = torch.randn(SAMPLES, FIELDS), torch.ones(SAMPLES, FIELDS)

    def contender(kernels: str, layout: str, wrap: Callable[[Any], Any]) -> Run:
        torch.manual_seed(0)
        made = config.load(None, [f"model.kernels={kernels}"])
        model = build(made.model, FIELDS, 4).to(memory_format=LAYOUTS[layout])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def loss() -> Tensor:
            mean, log_variance = model.encode(volume, fields, kept)
            decoded = model.decode(mean, fields)
            terms = decoded.log_density_BV.mean(), decoded.log_variance_BV.mean()
            return mean.square().mean() + log_variance.square().mean() + terms[1] - terms[0]

        compiled = wrap(loss)

        def step() -> Sequence[Tensor]:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                value = compiled()
            value.backward()
            optimizer.step()
            return [value.detach()]

        return step

    plain = lambda function: function  # noqa: E731
    return {
        "ours": lambda: contender("auto", "contiguous", plain),
        "eager": lambda: contender("reference", "contiguous", plain),
        "eager_channels_last": lambda: contender("reference", "channels_last", plain),
        "compile": lambda: contender("reference", "contiguous", torch.compile),
    }


@in_every_dtype
def test_model_step(measure: Any, benchmark: Any, dtype: str) -> None:
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 convolutions on this processor: eager takes seconds")
    torch.compiler.reset()
    contenders = {name: make() for name, make in step_contenders(DTYPES[dtype]).items()}
    assert_close(contenders["ours"](), contenders["eager"](), 1e-4 if dtype == "float32" else 2e-2)
    measure(contenders.pop("ours"), **contenders)
    memory = {name: memory_mb("step", name, "", dtype) for name in PEAKS}
    note_memory(benchmark, "eager_memory", {name: peak for name, (peak, _) in memory.items()})
    above = {name: peak - held for name, (peak, held) in memory.items()}
    note_memory(benchmark, "eager_memory_above", above)


# ---- peak memory, in a process of its own --------------------------------------------------------


def memory_mb(*arguments: str) -> tuple[float, float]:
    """Return the peak of one contender's process, MB, and what it holds between calls.

    What is held is libraries and, of a step, parameters, their gradients and AdamW's moments.
    """
    command = [sys.executable, "-m", "bench.bench_layers", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, held = map(float, done.stdout.split())
    return peak, held


def status_mb(key: str) -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def held_mb() -> float:
    """Give back what was freed, let the peak begin from here (Linux), and return what is left."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_mb("VmRSS")


def main(what: str, name: str, index: str, dtype: str) -> None:
    """Print the peak memory of three runs of one contender, and what is held without them."""
    if what == "block":
        run = block_contenders(BLOCKS[int(index)], DTYPES[dtype])[name]
        block_contenders(TINY, DTYPES[dtype])[name]()  # what libraries take once, whatever the size
        held = held_mb()
    else:
        run = step_contenders(DTYPES[dtype])[name]()
    for _ in range(3):
        run()
    peak = status_mb("VmHWM")
    print(peak, held if what == "block" else held_mb())


if __name__ == "__main__":
    main(*sys.argv[1:])
