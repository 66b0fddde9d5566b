"""splat as a torch operator: schema, checks, gradient and the table of implementations.

The schema is declared here, in Python, so that the op exists even where the extension was not
built. All implementations share one fake and one autograd formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atlas_kernels import _extension
from atlas_kernels._dispatch import Implementation, choose
from atlas_kernels.grid import Grid

from . import reference
from .checks import FLOATS, check_layout, check_options, check_values, dtype_name
from .native import native_problem


class Problem(NamedTuple):
    """What every implementation is given, in the order of the schema."""

    peaks_mm: Tensor
    offsets: Tensor
    fwhm: Tensor
    weights: Tensor | None
    shape: Sequence[int]
    spacing: Sequence[float]
    origin: Sequence[float]
    mode: str
    support: str
    truncate: float

    def output_shape(self) -> tuple[int, ...]:
        """Return (B, K, X, Y, Z)."""
        return (self.offsets.shape[0] - 1, self.fwhm.shape[0], *self.shape)


# "splat_mode": torch passes the arguments of ops that mutate by name, beside a `mode` of its own.
PROBLEM = (
    "Tensor peaks_mm, Tensor offsets, Tensor fwhm, Tensor? weights, int[] shape, "
    "float[] spacing, float[] origin, str splat_mode, str support, float truncate"
)
torch.library.define(
    "atlas_kernels::splat",
    f"({PROBLEM}, ScalarType dtype, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "atlas_kernels::splat_out",
    f"({PROBLEM}, Tensor(a!) out, str backend) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "atlas_kernels::splat_backward",
    f"(Tensor grad_out, {PROBLEM}, str backend) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


# ---- the public function -------------------------------------------------------------------------


def splat(
    peaks_mm: Tensor,
    offsets: Tensor,
    grid: Grid,
    fwhm: float | Sequence[float] | Tensor,
    weights: Tensor | None,
    mode: str,
    truncate: float,
    support: str,
    dtype: torch.dtype | None,
    out: Tensor | None,
    backend: str,
) -> Tensor:
    """Turn the arguments of ``atlas_kernels.splat`` into those of the op."""
    _check_types(peaks_mm=peaks_mm, offsets=offsets, weights=weights, out=out)
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be an atlas_kernels.Grid, got {type(grid).__name__}")
    if not isinstance(fwhm, Tensor):
        fwhm = torch.tensor(fwhm, dtype=torch.float64, device=peaks_mm.device)
    widths = fwhm.reshape(1) if fwhm.ndim == 0 else fwhm
    geometry = (list(grid.shape), list(grid.spacing), list(grid.origin))
    problem = (peaks_mm, offsets, widths, weights, *geometry, mode, support, float(truncate))
    if out is None:
        volumes: Tensor = torch.ops.atlas_kernels.splat(
            *problem, peaks_mm.dtype if dtype is None else dtype, backend
        )
        return volumes
    if dtype not in (None, out.dtype):
        raise ValueError(f"dtype is {dtype} but out is {out.dtype}: give one of the two")
    _check_no_gradient(peaks_mm=peaks_mm, fwhm=fwhm, weights=weights, out=out)
    torch.ops.atlas_kernels.splat_out(*problem, out, backend)
    return out


def _check_types(**tensors: Tensor | None) -> None:
    for name, value in tensors.items():
        optional = name in ("weights", "out")
        if not (isinstance(value, Tensor) or (optional and value is None)):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def _check_no_gradient(**tensors: Tensor | None) -> None:
    """Refuse what would lose the gradient without a word."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise RuntimeError(f"out= has no gradient, but {name} requires one")


# ---- the operators -------------------------------------------------------------------------------


@torch.library.impl("atlas_kernels::splat", "default")
def _splat(*args: Any) -> Tensor:
    problem, dtype, backend = Problem(*args[:10]), args[10], args[11]
    _check(problem, dtype)
    out = problem.peaks_mm.new_empty(problem.output_shape(), dtype=dtype)
    _run(problem, out, backend)
    return out


@torch.library.impl("atlas_kernels::splat_out", "default")
def _splat_out(*args: Any) -> None:
    problem, out, backend = Problem(*args[:10]), args[10], args[11]
    _check_out(problem, out)
    if out.is_contiguous():
        _run(problem, out, backend)
    else:
        dense = torch.empty_like(out, memory_format=torch.contiguous_format)
        _run(problem, dense, backend)
        out.copy_(dense)


@torch.library.impl("atlas_kernels::splat_backward", "default")
def _splat_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_out, problem, backend = args[0], Problem(*args[1:11]), args[11]
    chosen = choose("splat", TABLE, backend, problem.peaks_mm.device.type)
    grad_peaks, grad_weights, grad_fwhm = chosen.backward(grad_out.contiguous(), problem)
    weights_dtype = _weights_dtype(problem)
    peaks, fwhm = problem.peaks_mm, problem.fwhm
    return grad_peaks.to(peaks.dtype), grad_weights.to(weights_dtype), grad_fwhm.to(fwhm.dtype)


def _run(problem: Problem, out: Tensor, backend: str) -> None:
    if problem.peaks_mm.device.type == "cpu":
        check_values(torch, problem.peaks_mm, problem.offsets, problem.fwhm, problem.weights)
    chosen = choose("splat", TABLE, backend, problem.peaks_mm.device.type)
    chosen.forward(problem, out)


@torch.library.register_fake("atlas_kernels::splat")
def _splat_fake(*args: Any) -> Tensor:
    problem, dtype = Problem(*args[:10]), args[10]
    _check(problem, dtype)
    return problem.peaks_mm.new_empty(problem.output_shape(), dtype=dtype)


@torch.library.register_fake("atlas_kernels::splat_out")
def _splat_out_fake(*args: Any) -> None:
    _check_out(Problem(*args[:10]), args[10])


@torch.library.register_fake("atlas_kernels::splat_backward")
def _splat_backward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    problem = Problem(*args[1:11])
    peaks, fwhm = problem.peaks_mm, problem.fwhm
    return (
        peaks.new_empty(peaks.shape),
        peaks.new_empty(peaks.shape[:1], dtype=_weights_dtype(problem)),
        fwhm.new_empty(fwhm.shape),
    )


def _weights_dtype(problem: Problem) -> torch.dtype:
    return problem.peaks_mm.dtype if problem.weights is None else problem.weights.dtype


def _check(problem: Problem, dtype: torch.dtype) -> None:
    check_options(problem.mode, problem.support, problem.truncate)
    check_layout(problem.peaks_mm, problem.offsets, problem.fwhm, problem.weights)
    if dtype_name(dtype) not in FLOATS:
        raise ValueError(f"dtype must be {' or '.join(FLOATS)}, got {dtype_name(dtype)}")
    device = problem.peaks_mm.device
    for name in ("offsets", "fwhm", "weights"):
        tensor = getattr(problem, name)
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but peaks_mm is on {device}")


def _check_out(problem: Problem, out: Tensor) -> None:
    _check(problem, out.dtype)
    if tuple(out.shape) != problem.output_shape():
        shapes = f"{problem.output_shape()}, got {tuple(out.shape)}"
        raise ValueError(f"out must be (B, K, X, Y, Z) = {shapes}")
    if out.device != problem.peaks_mm.device:
        raise ValueError(f"out is on {out.device}, but peaks_mm is on {problem.peaks_mm.device}")


# ---- gradient ------------------------------------------------------------------------------------


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options, ctx.backend = inputs[4:10], inputs[11]


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grad_peaks, grad_weights, grad_fwhm = torch.ops.atlas_kernels.splat_backward(
        grad_out, *ctx.saved_tensors, *ctx.options, ctx.backend
    )
    weights = None if ctx.saved_tensors[3] is None else grad_weights
    return (grad_peaks, None, grad_fwhm, weights, *[None] * 8)


def _no_second_gradient(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("splat has no second derivative")


torch.library.register_autograd("atlas_kernels::splat", _gradient, setup_context=_save_inputs)
torch.library.register_autograd("atlas_kernels::splat_backward", _no_second_gradient)


# ---- implementations -----------------------------------------------------------------------------


def _native(problem: Problem) -> tuple[Any, Problem]:
    """Return the C++ problem and the tensors whose memory it points to."""
    held = problem._replace(
        peaks_mm=_dense_double(problem.peaks_mm),
        offsets=problem.offsets.contiguous(),
        fwhm=_dense_double(problem.fwhm),
        weights=None if problem.weights is None else _dense_double(problem.weights),
    )
    return native_problem(Tensor.data_ptr, *held), held


def _dense_double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64).contiguous()


def _cpu_forward(problem: Problem, out: Tensor) -> None:
    native, _held = _native(problem)
    _extension.kernels().splat_cpu(
        native, out.data_ptr(), dtype_name(out.dtype), torch.get_num_threads()
    )


def _cpu_backward(grad_out: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    native, held = _native(problem)
    grads = (
        torch.empty_like(held.peaks_mm),
        held.peaks_mm.new_empty(len(held.peaks_mm)),
        torch.empty_like(held.fwhm),
    )
    _extension.kernels().splat_backward_cpu(
        native,
        grad_out.data_ptr(),
        dtype_name(grad_out.dtype),
        *(grad.data_ptr() for grad in grads),
        torch.get_num_threads(),
    )
    return grads


def _reference_forward(problem: Problem, out: Tensor) -> None:
    out.copy_(reference.forward(*problem))


def _reference_backward(grad_out: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return reference.backward(grad_out, *problem)


TABLE = (
    Implementation(
        name="cpu",
        forward=_cpu_forward,
        backward=_cpu_backward,
        why_not=_extension.why_missing,
        devices=("cpu",),
        note="C++, multithreaded",
    ),
    Implementation(
        name="reference",
        forward=_reference_forward,
        backward=_reference_backward,
        why_not=lambda: None,
        note="plain PyTorch, slow: the specification",
    ),
)
