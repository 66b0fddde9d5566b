"""group_norm_film as a torch operator: schema, checks, gradient, table of implementations."""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

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
from atlas_kernels._eager import below_autograd, unobserved

ACTIVATIONS = ("silu", "none")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Problem(NamedTuple):
    """What every implementation is given, in the order of the schema."""

    x: Tensor
    groups: int
    weight: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    activation: str
    eps: float

    def statistics_dtype(self) -> torch.dtype:
        """Return float32, or float64 for float64."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    def parameters(self) -> tuple[Tensor | None, ...]:
        """Return weight, bias, gamma, beta."""
        return self.weight, self.bias, self.gamma, self.beta


PROBLEM = (
    "Tensor x, int groups, Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, "
    "str activation, float eps"
)
N_ARGUMENTS = len(Problem._fields)
torch.library.define(
    "atlas_kernels::group_norm_film",
    f"({PROBLEM}, str backend) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "atlas_kernels::group_norm_film_backward",
    f"(Tensor grad, Tensor mean, Tensor rstd, {PROBLEM}, str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


# ---- the public function -------------------------------------------------------------------------


def group_norm_film(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    activation: str,
    eps: float,
    backend: str,
) -> Tensor:
    """Turn the arguments of ``atlas_kernels.group_norm_film`` into those of the op."""
    named = {"x": x, "weight": weight, "bias": bias, "gamma": gamma, "beta": beta}
    for name, value in named.items():
        if not (isinstance(value, Tensor) or (value is None and name != "x")):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    check_options(groups=(groups, INTEGER), eps=(eps, NUMBER))
    check_options(activation=(activation, str), backend=(backend, str))
    tensors, options = (weight, bias, gamma, beta), (activation, float(eps), backend)
    if unobserved(x, *tensors):
        outputs = _Differentiable.apply(True, x, index(groups), *tensors, *options)
    else:
        outputs = torch.ops.atlas_kernels.group_norm_film(x, groups, *tensors, *options)
    y: Tensor = outputs[0]
    return y


# Plain numbers first: to ask whether something supports a protocol takes microseconds.
INTEGER, NUMBER = (int, SupportsIndex), (float, int, SupportsFloat)
KINDS: dict[Any, str] = {INTEGER: "an integer", NUMBER: "a number", str: "a string"}


def check_options(**options: tuple[Any, Any]) -> None:
    """Refuse options of the wrong type, given as name=(value, type)."""
    for name, (value, kind) in options.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {KINDS[kind]}, got {type(value).__name__}")


def layout(x: Tensor) -> torch.memory_format:
    """Return the memory format that x has, contiguous where it has none that is known."""
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    if not x.is_contiguous() and x.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def check(problem: Problem) -> None:
    """Refuse wrong shapes, dtypes, devices and options; looks at no value."""
    x, groups = problem.x, problem.groups
    if x.ndim not in (4, 5):
        raise ValueError(f"x must be (N, C, Y, Z) or (N, C, X, Y, Z), got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be float32, bfloat16, float16 or float64, got {_name(x.dtype)}")
    c = x.shape[1]
    if groups < 1 or c < 1 or c % groups:
        raise ValueError(f"groups must divide the {c} channels of x, got {groups}")
    if problem.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation must be one of {known}, got {problem.activation!r}")
    if not 0 <= problem.eps < float("inf"):
        raise ValueError(f"eps must be finite and not negative, got {problem.eps}")
    _check_parameters(problem)


def _check_parameters(problem: Problem) -> None:
    x, (n, c) = problem.x, problem.x.shape[:2]
    shapes = {"weight": (c,), "bias": (c,), "gamma": (n, c), "beta": (n, c)}
    for name, shape in shapes.items():
        value = getattr(problem, name)
        if value is None:
            continue
        if tuple(value.shape) != shape:
            letters = "(C,)" if len(shape) == 1 else "(N, C)"
            raise ValueError(f"{name} must be {letters} = {shape}, got {tuple(value.shape)}")
        if value.dtype not in DTYPES:
            raise ValueError(f"{name} must be floating point, got {_name(value.dtype)}")
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device}, but x is on {x.device}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- the operators -------------------------------------------------------------------------------


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    problem, backend = Problem(*args[:N_ARGUMENTS]), args[N_ARGUMENTS]
    check(problem)
    problem = _laid_out(problem)
    return choose("group_norm_film", TABLE, backend, problem.x.device.type).forward(problem)


def _backward(grad: Tensor, mean: Tensor, rstd: Tensor, *args: Any) -> Gradients:
    problem, backend = _laid_out(Problem(*args[:N_ARGUMENTS])), args[N_ARGUMENTS]
    grad = grad.contiguous(memory_format=layout(problem.x))
    chosen = choose("group_norm_film", TABLE, backend, problem.x.device.type)
    dx, *grads = chosen.backward(grad, problem, mean, rstd)
    return dx, *(_like(value, of) for value, of in zip(grads, problem.parameters(), strict=True))


def _laid_out(problem: Problem) -> Problem:
    """Copy x where it has neither of the two layouts."""
    x, memory_format = problem.x, layout(problem.x)
    if x.is_contiguous(memory_format=memory_format):
        return problem
    return problem._replace(x=x.contiguous(memory_format=memory_format))


def _like(value: Tensor, parameter: Tensor | None) -> Tensor:
    """Give a gradient its parameter's dtype; nothing, as a tensor, where there is no parameter."""
    if parameter is None:
        return value.new_empty(0)
    return value if value.dtype == parameter.dtype else value.to(parameter.dtype)


torch.library.impl("atlas_kernels::group_norm_film", "default", _forward)
torch.library.impl("atlas_kernels::group_norm_film_backward", "default", _backward)


@torch.library.register_fake("atlas_kernels::group_norm_film")
def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    problem = Problem(*args[:N_ARGUMENTS])
    check(problem)
    x = problem.x
    statistics = x.new_empty((x.shape[0], problem.groups), dtype=problem.statistics_dtype())
    return _empty_like(x), statistics, torch.empty_like(statistics)


@torch.library.register_fake("atlas_kernels::group_norm_film_backward")
def _backward_fake(grad: Tensor, mean: Tensor, rstd: Tensor, *args: Any) -> Gradients:
    problem = Problem(*args[:N_ARGUMENTS])
    nothing = mean.new_empty(0)
    grads = (
        nothing.clone() if p is None else torch.empty_like(p, memory_format=torch.contiguous_format)
        for p in problem.parameters()
    )
    return (_empty_like(problem.x), *grads)  # type: ignore[return-value]


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


# ---- gradient ------------------------------------------------------------------------------------


# Not torch.library.register_autograd, which takes some 40 microseconds more a call.
class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, direct: bool, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        if direct:
            y, mean, rstd = _forward(*args)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                y, mean, rstd = torch.ops.atlas_kernels.group_norm_film(*args)
        problem = Problem(*args[:N_ARGUMENTS])
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(problem.x, *problem.parameters(), mean, rstd)
        ctx.groups, ctx.options = problem.groups, args[-3:]
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters, mean, rstd = ctx.saved_tensors
        args = (grad, mean, rstd, x, ctx.groups, *parameters, *ctx.options)
        if not torch.is_grad_enabled() and unobserved(grad, x):
            dx, *grads = _backward(*args)
        else:
            with below_autograd():
                dx, *grads = torch.ops.atlas_kernels.group_norm_film_backward(*args)
        found = (None if p is None else value for p, value in zip(parameters, grads, strict=True))
        return (None, dx, None, *found, None, None, None)


@torch.library.impl("atlas_kernels::group_norm_film", "Autograd")
def _forward_autograd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _Differentiable.apply(False, *args)


def _no_second_gradient(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("group_norm_film has no second derivative")


torch.library.register_autograd("atlas_kernels::group_norm_film_backward", _no_second_gradient)


# ---- implementations -----------------------------------------------------------------------------


def _reference_forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    from . import reference

    y, mean, rstd = reference.forward(problem)
    return y.contiguous(memory_format=layout(problem.x)), mean, rstd


def _reference_backward(
    grad: Tensor, problem: Problem, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    from . import reference

    dx, *grads = reference.backward(grad, problem, mean, rstd)
    return (dx.contiguous(memory_format=layout(problem.x)), *grads)


def _cpu_forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    from . import native

    return native.forward(problem)


def _cpu_backward(grad: Tensor, problem: Problem, mean: Tensor, rstd: Tensor) -> tuple[Tensor, ...]:
    from . import native

    return native.backward(grad, problem, mean, rstd)


def _triton_forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton_launch

    return triton_launch.forward(problem)


def _triton_backward(
    grad: Tensor, problem: Problem, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    from . import triton_launch

    return triton_launch.op_backward(grad, problem, mean, rstd)


def _cuda_forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    from . import native

    return native.forward_cuda(problem)


def _cuda_backward(
    grad: Tensor, problem: Problem, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    from . import native

    return native.backward_cuda(grad, problem, mean, rstd)


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
        name="triton",
        forward=_triton_forward,
        backward=_triton_backward,
        why_not=why_no_triton,
        devices=TRITON_DEVICES,
        note="compiled on first use",
    ),
    Implementation(
        name="cuda",
        forward=_cuda_forward,
        backward=_cuda_backward,
        why_not=lambda: _extension.why_no_cuda() or why_no_device(),
        devices=("cuda",),
        note="C++, where triton is missing",
    ),
    Implementation(
        name="reference",
        forward=_reference_forward,
        backward=_reference_backward,
        why_not=lambda: None,
        note="plain PyTorch, slow: the specification",
    ),
)
