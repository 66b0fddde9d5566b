"""dense_block as a torch operator: schema, checks, gradient and the table of implementations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atlas_kernels import _extension
from atlas_kernels._dispatch import Implementation, choose
from atlas_kernels._eager import below_autograd, unobserved
from atlas_kernels.group_norm_film import op as group_norm_film
from atlas_kernels.group_norm_film.op import DTYPES, INTEGER, NUMBER, check_options, layout

LISTS = ("conv_weights", "norm_weights", "norm_biases", "gammas", "betas")
Gradients = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class Layer(NamedTuple):
    """What one layer is made of; ``channels`` come in."""

    channels: int
    dilation: int
    conv_weight: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    gamma: Tensor | None
    beta: Tensor | None


class Block(NamedTuple):
    """What every implementation is given beside x, in the order of the schema."""

    conv_weights: Sequence[Tensor]
    norm_weights: Sequence[Tensor]
    norm_biases: Sequence[Tensor]
    gammas: Sequence[Tensor]
    betas: Sequence[Tensor]
    dilations: Sequence[int]
    groups_size: int
    eps: float

    def tensors(self) -> tuple[Sequence[Tensor], ...]:
        """Return the five lists of tensors."""
        return self[:5]

    def layers(self) -> Iterator[Layer]:
        """Yield the layers, first to last."""
        for k, dilation in enumerate(self.dilations):
            film = (self.gammas[k], self.betas[k]) if self.gammas else (None, None)
            weight = self.conv_weights[k]
            norm = (self.norm_weights[k], self.norm_biases[k])
            yield Layer(weight.shape[1], dilation, weight, *norm, *film)

    def growth(self) -> int:
        """Return the number of channels that each layer appends."""
        return self.conv_weights[0].shape[0] if self.conv_weights else 0

    def out_channels(self, channels: int) -> int:
        """Return the number of channels after the last layer."""
        return channels + len(self.dilations) * self.growth()


BLOCK = (
    "Tensor[] conv_weights, Tensor[] norm_weights, Tensor[] norm_biases, Tensor[] gammas, "
    "Tensor[] betas, int[] dilations, int groups_size, float eps"
)
N_ARGUMENTS = len(Block._fields)
# The second output, (2, N, channels), holds each channel's mean and sum of squared deviations.
torch.library.define(
    "atlas_kernels::dense_block",
    f"(Tensor x, {BLOCK}, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "atlas_kernels::dense_block_backward",
    f"(Tensor grad, Tensor out, Tensor statistics, {BLOCK}, str backend) -> "
    "(Tensor, Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])",
    tags=(torch.Tag.pt2_compliant_tag,),
)


# ---- the public function -------------------------------------------------------------------------


def dense_block(
    x: Tensor,
    conv_weights: Sequence[Tensor],
    norm_weights: Sequence[Tensor],
    norm_biases: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    dilations: Sequence[int],
    groups_size: int,
    eps: float,
    backend: str,
) -> Tensor:
    """Turn the arguments of ``atlas_kernels.dense_block`` into those of the op."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    given = (conv_weights, norm_weights, norm_biases, gammas, betas)
    lists = [_tensors(name, tensors) for name, tensors in zip(LISTS, given, strict=True)]
    dilations = _list("dilations", dilations)
    for k, dilation in enumerate(dilations):
        check_options(**{f"dilations[{k}]": (dilation, INTEGER)})
    check_options(groups_size=(groups_size, INTEGER), eps=(eps, NUMBER))
    check_options(backend=(backend, str))
    x = _autocast(x)
    if unobserved(x, *(tensor for tensors in lists for tensor in tensors)):
        options = ([index(d) for d in dilations], index(groups_size), float(eps), backend)
        out: Tensor = _differentiable(True, x, lists, options)[0]
    else:
        options = (dilations, groups_size, float(eps), backend)
        out = torch.ops.atlas_kernels.dense_block(x, *lists, *options)[0]
    return out.contiguous(memory_format=layout(x))


def _list(name: str, values: Any) -> list[Any]:
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list, got {type(values).__name__}")
    return list(values)


def _tensors(name: str, values: Any) -> list[Tensor]:
    tensors = _list(name, values)
    for k, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}[{k}] must be a tensor, got {type(tensor).__name__}")
    return tensors


def _autocast(x: Tensor) -> Tensor:
    """Cast as autocast would for a convolution."""
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return x
    takes_part = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(device)) if takes_part else x


def check(x: Tensor, block: Block) -> None:
    """Refuse wrong shapes, dtypes, devices and options; looks at no value."""
    size = block.groups_size
    if x.ndim != 5:
        raise ValueError(f"x must be (N, C, X, Y, Z), got {tuple(x.shape)}")
    if not x.shape[2:].numel():  # torch's convolutions refuse it
        raise ValueError(f"x must have at least one voxel, got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be float32, bfloat16, float16 or float64, got {_name(x)}")
    if size < 1 or x.shape[1] < 1 or x.shape[1] % size:
        raise ValueError(f"groups_size must divide the {x.shape[1]} channels of x, got {size}")
    if any(d < 1 for d in block.dilations):
        raise ValueError(f"dilations must be at least 1, got {list(block.dilations)}")
    if not 0 <= block.eps < float("inf"):
        raise ValueError(f"eps must be finite and not negative, got {block.eps}")
    _check_lists(block)
    _check_layers(x, block)


def _check_lists(block: Block) -> None:
    size, depth = block.groups_size, len(block.dilations)
    for name, tensors in zip(LISTS, block.tensors(), strict=True):
        film = name in ("gammas", "betas")
        if len(tensors) != depth and not (film and not block.gammas and not block.betas):
            raise ValueError(
                f"{name} must have one entry for each of the {depth} dilations, got {len(tensors)}"
            )
    if not depth:
        return
    shape = tuple(block.conv_weights[0].shape)
    if len(shape) != 5:
        raise ValueError(f"conv_weights[0] must be (growth, C, 3, 3, 3), got {shape}")
    if shape[0] < 1 or shape[0] % size:
        raise ValueError(f"conv_weights must grow by a multiple of {size}, got {shape[0]}")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_layers(x: Tensor, block: Block) -> None:
    n, channels, growth = x.shape[0], x.shape[1], block.growth()
    for k in range(len(block.dilations)):
        c = channels + k * growth
        shapes = ((growth, c, 3, 3, 3), (c,), (c,), (n, c), (n, c))
        for name, tensors, shape in zip(LISTS, block.tensors(), shapes, strict=True):
            if not tensors:
                continue
            tensor = tensors[k]
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name}[{k}] must be {shape}, got {tuple(tensor.shape)}")
            if tensor.dtype not in DTYPES:
                raise ValueError(f"{name}[{k}] must be floating point, got {_name(tensor)}")
            if tensor.device != x.device:
                raise ValueError(f"{name}[{k}] is on {tensor.device}, but x is on {x.device}")


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Return what statistics are kept in: float64 on the CPU, where it costs nothing."""
    on_gpu = x.device.type == "cuda" and x.dtype != torch.float64
    return torch.float32 if on_gpu else torch.float64


# ---- the operators -------------------------------------------------------------------------------


def _forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    block, backend = Block(*args[:N_ARGUMENTS]), args[N_ARGUMENTS]
    check(x, block)
    return choose("dense_block", TABLE, backend, x.device.type).forward(x, block)


def _backward(grad: Tensor, out: Tensor, statistics: Tensor, *args: Any) -> Gradients:
    block, backend = Block(*args[:N_ARGUMENTS]), args[N_ARGUMENTS]
    chosen = choose("dense_block", TABLE, backend, out.device.type)
    dx, lists = chosen.backward(grad, out, statistics, block)
    cast = [
        [g.to(t.dtype).contiguous() for g, t in zip(grads, tensors, strict=True)]
        for grads, tensors in zip(lists, block.tensors(), strict=True)
    ]
    return (dx, *cast)  # type: ignore[return-value]


torch.library.impl("atlas_kernels::dense_block", "default", _forward)
torch.library.impl("atlas_kernels::dense_block_backward", "default", _backward)


@torch.library.register_fake("atlas_kernels::dense_block")
def _forward_fake(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    block = Block(*args[:N_ARGUMENTS])
    check(x, block)
    out = _new(x, block.out_channels(x.shape[1]))
    return out, out.new_empty((2, *out.shape[:2]), dtype=statistics_dtype(x))


@torch.library.register_fake("atlas_kernels::dense_block_backward")
def _backward_fake(grad: Tensor, out: Tensor, statistics: Tensor, *args: Any) -> Gradients:
    block = Block(*args[:N_ARGUMENTS])
    channels = out.shape[1] - len(block.dilations) * block.growth()
    lists = ([t.new_empty(t.shape) for t in tensors] for tensors in block.tensors())
    return (_new(out, channels), *lists)  # type: ignore[return-value]


def _new(like: Tensor, channels: int) -> Tensor:
    """Return an empty tensor of that many channels in channels last, as the op always writes."""
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d
    )


# ---- gradient ------------------------------------------------------------------------------------


# Not torch.library.register_autograd: with lists of tensors it flattens all arguments as trees, a
# tenth of the time of a small block.
class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, direct: bool, lengths: list[int], options: tuple[Any, ...], *tensors: Tensor
    ) -> Any:
        args = (*_nested(lengths, tensors), *options)
        if direct:
            outputs = _forward(*args)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                outputs = torch.ops.atlas_kernels.dense_block(*args)
        ctx.mark_non_differentiable(outputs[1])
        ctx.save_for_backward(*outputs, *tensors[1:])
        ctx.lengths, ctx.options = lengths, options
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor, unused: Tensor) -> tuple[Any, ...]:
        out, *tensors = ctx.saved_tensors
        args = (grad, out, *_nested(ctx.lengths, tensors), *ctx.options)
        if not torch.is_grad_enabled() and unobserved(grad, out):
            dx, *lists = _backward(*args)
        else:
            with below_autograd():
                dx, *lists = torch.ops.atlas_kernels.dense_block_backward(*args)
        return None, None, None, dx, *(gradient for gradients in lists for gradient in gradients)


def _nested(lengths: list[int], tensors: Sequence[Tensor]) -> list[Any]:
    """Return the first tensor and the others in lists of those lengths."""
    rest = iter(tensors[1:])
    return [tensors[0], *([next(rest) for _ in range(length)] for length in lengths)]


def _differentiable(
    direct: bool, x: Tensor, lists: Sequence[Sequence[Tensor]], options: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    tensors = (tensor for tensors in lists for tensor in tensors)
    return _Differentiable.apply(direct, [len(tensors) for tensors in lists], options, x, *tensors)


@torch.library.impl("atlas_kernels::dense_block", "Autograd")
def _forward_autograd(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _differentiable(False, x, args[: len(LISTS)], args[len(LISTS) :])


def _no_second_gradient(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError("dense_block has no second derivative")


torch.library.register_autograd("atlas_kernels::dense_block_backward", _no_second_gradient)


# ---- implementations -----------------------------------------------------------------------------


def _cpu_forward(x: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    from . import buffer, cpu

    return buffer.forward(x, block, cpu)


def _cpu_backward(
    grad: Tensor, out: Tensor, statistics: Tensor, block: Block
) -> tuple[Tensor, list[list[Tensor]]]:
    from . import buffer, cpu

    return buffer.backward(grad, out, statistics, block, cpu)


def _gpu_forward(x: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    from . import buffer, gpu

    return buffer.forward(x, block, gpu)


def _gpu_backward(
    grad: Tensor, out: Tensor, statistics: Tensor, block: Block
) -> tuple[Tensor, list[list[Tensor]]]:
    from . import buffer, gpu

    return buffer.backward(grad, out, statistics, block, gpu)


def _reference_forward(x: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    from . import reference

    out = reference.forward(x, block).contiguous(memory_format=torch.channels_last_3d)
    if out is x:  # no layer; an op may not return its input
        out = x.clone(memory_format=torch.channels_last_3d)
    return out, out.new_zeros((2, *out.shape[:2]), dtype=statistics_dtype(x))  # of no use to it


def _reference_backward(
    grad: Tensor, out: Tensor, statistics: Tensor, block: Block
) -> tuple[Tensor, list[list[Tensor]]]:
    from . import reference

    dx, lists = reference.backward(grad, out, block)
    return dx.clone(memory_format=torch.channels_last_3d), lists


# What the layers of "gpu" need.
TRITON = next(row for row in group_norm_film.TABLE if row.name == "triton")
TABLE = (
    Implementation(
        name="cpu",
        forward=_cpu_forward,
        backward=_cpu_backward,
        why_not=_extension.why_missing,
        devices=("cpu",),
        note="one buffer, C++ layers, convolutions of ours or oneDNN's",
    ),
    Implementation(
        name="gpu",
        forward=_gpu_forward,
        backward=_gpu_backward,
        why_not=TRITON.why_not,
        devices=TRITON.devices,
        note="one buffer, Triton layers, cuDNN convolutions",
    ),
    Implementation(
        name="reference",
        forward=_reference_forward,
        backward=_reference_backward,
        why_not=lambda: None,
        note="plain PyTorch: the specification",
    ),
)
