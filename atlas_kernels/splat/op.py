"""splat as a torch operator: schema, checks, gradient and the table of implementations.

The schema is declared here, in Python, so that the op exists even where the extension was not
built. All implementations share one fake and one autograd formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas_kernels import _extension
from atlas_kernels._dispatch import (
    TRITON_DEVICES,
    Implementation,
    choose,
    why_no_device,
    why_no_triton,
)

from . import reference, tensors
from .checks import check_layout, check_options, check_output, check_values
from .native import why_no_numba, why_not_diagonal
from .problem import Problem, make_problem, schema

N = len(Problem._fields)
for name, signature in (
    ("splat", f"({schema()}, ScalarType dtype, str backend) -> Tensor"),
    ("splat_out", f"({schema()}, Tensor(a!) out, str backend) -> ()"),
    ("splat_backward", f"(Tensor grad_out, {schema()}, str backend) -> (Tensor, Tensor, Tensor)"),
):
    torch.library.define(f"atlas_kernels::{name}", signature, tags=(torch.Tag.pt2_compliant_tag,))


# ---- the public function -------------------------------------------------------------------------


def splat(
    peaks_mm: Tensor,
    *arguments: Any,
    dtype: torch.dtype | None,
    out: Tensor | None,
    backend: str,
    **options: Any,
) -> Tensor:
    """Turn the arguments of ``atlas_kernels.splat`` into those of the op."""
    _check_types(peaks_mm, *arguments, out=out, **options)
    problem = make_problem(
        lambda widths: _as_widths(widths, peaks_mm.device),
        lambda mask: mask.nonzero().squeeze(1),
        peaks_mm,
        *arguments,
        **options,
    )
    if problem.splat_mode == "sphere":
        _refuse_gradient("mode 'sphere' has no gradient", problem)
    if out is None:
        usual = torch.uint8 if problem.splat_mode == "sphere" else peaks_mm.dtype
        volumes: Tensor = torch.ops.atlas_kernels.splat(*problem, dtype or usual, backend)
        return volumes
    if dtype not in (None, out.dtype):
        raise ValueError(f"dtype is {dtype} but out is {out.dtype}: give one of the two")
    _refuse_gradient("out= has no gradient", problem, out)
    torch.ops.atlas_kernels.splat_out(*problem, out, backend)
    return out


def _as_widths(widths: Any, device: torch.device) -> Tensor:
    if isinstance(widths, (int, float)):  # filled there: to copy it would wait for a GPU
        return torch.full((1,), widths, dtype=torch.float64, device=device)
    if not isinstance(widths, Tensor):
        widths = torch.tensor(widths, dtype=torch.float64, device=device)
    return widths.reshape(1) if widths.ndim == 0 else widths


def _check_types(
    peaks_mm: Any,
    offsets: Any,
    grid: Any,
    fwhm: Any,
    weights: Any,
    *,
    peak_fwhm: Any,
    study_fwhm: Any,
    mask: Any,
    out: Any,
    **options: Any,
) -> None:
    required = {"peaks_mm": peaks_mm, "offsets": offsets}
    optional = {
        "weights": weights,
        "peak_fwhm": peak_fwhm,
        "study_fwhm": study_fwhm,
        "mask": mask,
        "out": out,
    }
    for name, value in {**required, **optional}.items():
        if not (isinstance(value, Tensor) or (name in optional and value is None)):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def _refuse_gradient(sentence: str, problem: Problem, out: Tensor | None = None) -> None:
    """Refuse what would lose the gradient without a word."""
    if not torch.is_grad_enabled():
        return
    tensors = {"peaks_mm": problem.peaks_mm, problem.widths_name(): problem.widths}
    for name, tensor in {**tensors, "weights": problem.weights, "out": out}.items():
        if tensor is not None and tensor.requires_grad:
            raise RuntimeError(f"{sentence}, but {name} requires one")


# ---- the operators -------------------------------------------------------------------------------


@torch.library.impl("atlas_kernels::splat", "default")
def _splat(*args: Any) -> Tensor:
    problem, dtype, backend = Problem(*args[:N]), args[N], args[N + 1]
    _check(problem, dtype)
    out = problem.peaks_mm.new_empty(problem.output_shape(), dtype=dtype)
    _run(problem, out, backend)
    return out


@torch.library.impl("atlas_kernels::splat_out", "default")
def _splat_out(*args: Any) -> None:
    problem, out, backend = Problem(*args[:N]), args[N], args[N + 1]
    _check_out(problem, out)
    if out.is_contiguous():
        _run(problem, out, backend)
    else:
        dense = torch.empty_like(out, memory_format=torch.contiguous_format)
        _run(problem, dense, backend)
        out.copy_(dense)


@torch.library.impl("atlas_kernels::splat_backward", "default")
def _splat_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_out, problem, backend = args[0], Problem(*args[1 : N + 1]), args[N + 1]
    chosen = choose("splat", TABLE, backend, problem.peaks_mm.device.type, problem)
    grad_peaks, grad_weights, grad_widths = chosen.backward(grad_out.contiguous(), problem)
    weights_dtype = _weights_dtype(problem)
    peaks, widths = problem.peaks_mm, problem.widths
    return grad_peaks.to(peaks.dtype), grad_weights.to(weights_dtype), grad_widths.to(widths.dtype)


def _run(problem: Problem, out: Tensor, backend: str) -> None:
    chosen = choose("splat", TABLE, backend, problem.peaks_mm.device.type, problem)
    if not chosen.checks_values:
        _check_values_where_asked(problem)
        chosen.forward(problem, out)
        return
    try:
        chosen.forward(problem, out)
    except ValueError:
        _check_values_where_asked(problem)  # says which number it is
        raise


def _check_values_where_asked(problem: Problem) -> None:
    """Look at the numbers: always on the CPU, elsewhere only with ``check`` (it waits for them)."""
    device = problem.peaks_mm.device
    if device.type == "cpu" or problem.check:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("check=True waits for the GPU, which a CUDA graph cannot record")
        if device.type == "cpu":  # small arrays, for which NumPy is several times faster
            import numpy

            check_values(numpy, _as_numpy(problem))
        else:
            check_values(torch, problem)


@torch.library.register_fake("atlas_kernels::splat")
def _splat_fake(*args: Any) -> Tensor:
    problem, dtype = Problem(*args[:N]), args[N]
    _check(problem, dtype)
    return problem.peaks_mm.new_empty(problem.output_shape(), dtype=dtype)


@torch.library.register_fake("atlas_kernels::splat_out")
def _splat_out_fake(*args: Any) -> None:
    _check_out(Problem(*args[:N]), args[N])


@torch.library.register_fake("atlas_kernels::splat_backward")
def _splat_backward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    problem = Problem(*args[1 : N + 1])
    peaks, widths = problem.peaks_mm, problem.widths
    return (
        peaks.new_empty(peaks.shape),
        peaks.new_empty(peaks.shape[:1], dtype=_weights_dtype(problem)),
        widths.new_empty(widths.shape),
    )


def _weights_dtype(problem: Problem) -> torch.dtype:
    return problem.peaks_mm.dtype if problem.weights is None else problem.weights.dtype


def _check(problem: Problem, dtype: torch.dtype) -> None:
    check_options(problem)
    check_layout(problem)
    check_output(problem, dtype)
    device = problem.peaks_mm.device
    tensors = {"offsets": problem.offsets, problem.widths_name(): problem.widths}
    for name, tensor in {**tensors, "weights": problem.weights, "mask": problem.voxels}.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but peaks_mm is on {device}")


def _check_out(problem: Problem, out: Tensor) -> None:
    _check(problem, out.dtype)
    if tuple(out.shape) != problem.output_shape():
        axes = "(B, K, X, Y, Z)" if problem.voxels is None else "(B, K, V)"
        raise ValueError(f"out must be {axes} = {problem.output_shape()}, got {tuple(out.shape)}")
    if out.device != problem.peaks_mm.device:
        raise ValueError(f"out is on {out.device}, but peaks_mm is on {problem.peaks_mm.device}")


# ---- gradient ------------------------------------------------------------------------------------


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    problem = Problem(*inputs[:N])
    tensors = [field for field in problem if isinstance(field, Tensor)]
    ctx.save_for_backward(*tensors)
    # What is not a tensor stays; each tensor leaves its place in the list.
    places = iter(range(len(tensors)))
    ctx.problem = [next(places) if isinstance(f, Tensor) else (f,) for f in problem]
    ctx.backend = inputs[N + 1]


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    problem = Problem(*(tensors[f] if isinstance(f, int) else f[0] for f in ctx.problem))
    if problem.splat_mode == "sphere":
        raise NotImplementedError("splat: mode 'sphere' has no gradient")
    grad_peaks, grad_weights, grad_widths = torch.ops.atlas_kernels.splat_backward(
        grad_out, *problem, ctx.backend
    )
    weights = None if problem.weights is None else grad_weights
    given = {"peaks_mm": grad_peaks, "widths": grad_widths, "weights": weights}
    return (*(given.get(name) for name in Problem._fields), None, None)


def _no_second_gradient(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("splat has no second derivative")


torch.library.register_autograd("atlas_kernels::splat", _gradient, setup_context=_save_inputs)
torch.library.register_autograd("atlas_kernels::splat_backward", _no_second_gradient)


# ---- implementations -----------------------------------------------------------------------------


def _as_numpy(problem: Problem) -> Problem:
    fields: Any = (f.detach().numpy() if isinstance(f, Tensor) else f for f in problem)
    return Problem(*fields)


def _numba_forward(problem: Problem, out: Tensor) -> None:
    from . import numba_kernel

    # NumPy has no bfloat16: such volumes are rounded from float32 here.
    volumes = out.float() if out.dtype == torch.bfloat16 else out
    numba_kernel.forward(_as_numpy(problem), volumes.numpy(), torch.get_num_threads())
    if volumes is not out:
        out.copy_(volumes)


def _numba_backward(grad_out: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    from . import numba_kernel

    grad = grad_out.float() if grad_out.dtype in (torch.bfloat16, torch.float16) else grad_out
    grads = numba_kernel.backward(grad.numpy(), _as_numpy(problem), torch.get_num_threads())
    peaks, weights, widths = map(torch.from_numpy, grads)
    return peaks, weights, widths


def _triton_forward(problem: Problem, out: Tensor) -> None:
    from . import triton_launch

    triton_launch.forward(problem, out)


def _triton_backward(grad_out: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton_launch

    return triton_launch.backward(grad_out, problem)


def _reference_forward(problem: Problem, out: Tensor) -> None:
    volumes = reference.forward(problem)
    out.copy_(volumes.clamp(max=255) if out.dtype == torch.uint8 else volumes)


TABLE = (
    Implementation(
        name="cpu",
        forward=tensors.forward_cpu,
        backward=tensors.backward_cpu,
        why_not=_extension.why_missing,
        devices=("cpu",),
        note="C++, multithreaded",
        cannot=why_not_diagonal,
        checks_values=True,
    ),
    Implementation(
        name="numba",
        forward=_numba_forward,
        backward=_numba_backward,
        why_not=why_no_numba,
        devices=("cpu",),
        note="compiled when first called",
        cannot=why_not_diagonal,
    ),
    Implementation(
        name="cuda",
        forward=tensors.forward_cuda,
        backward=tensors.backward_cuda,
        why_not=lambda: _extension.why_no_cuda() or why_no_device(),
        devices=("cuda",),
        note="CUDA C++, needs no Triton",
        cannot=why_not_diagonal,
    ),
    Implementation(
        name="triton",
        forward=_triton_forward,
        backward=_triton_backward,
        why_not=why_no_triton,
        devices=TRITON_DEVICES,
        note="compiled on first use",
        cannot=why_not_diagonal,
    ),
    Implementation(
        name="reference",
        forward=_reference_forward,
        backward=reference.backward,
        why_not=lambda: None,
        note="plain PyTorch, slow: the specification",
    ),
)
