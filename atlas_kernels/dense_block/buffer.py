"""dense_block over one buffer, whatever the device; what differs is in a module of primitives.

The buffer is the output, (N, X, Y, Z, channels) in memory, so that a layer's input is the first
channels of each voxel and its output the next ones: nothing is concatenated. Statistics are kept
for each channel and joined into groups when a layer needs them, so each channel is looked at once.

The backward goes from the last layer to the first with one buffer of gradients, to which every
layer adds; a layer's activations are computed again. Samples are taken a few at a time, so that the
scratch for activations and their gradients is small and stays in the cache.

Letters as in the models, and V voxels, K a layer's input channels, G groups, R growth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .op import Block, Layer, statistics_dtype

Film = tuple[Tensor | None, ...]  # weight, bias (K) and gamma, beta (N, K)


class Primitives(Protocol):
    """What a device must bring.

    Arguments named x or dx are the first channels of a buffer's voxels, (N, V, K) with strides
    (V * channels, channels, 1); a and da are dense.
    """

    VOXELS_AT_ONCE: int  # of the samples that are taken together, at least one

    def scratch_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return what convolutions are computed in, for a buffer of that dtype."""

    def prepare(self, film: Film) -> Film:
        """Return parameters as `apply` and `backward` want them."""

    def channel_statistics(self, x_NVK: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and sum of squared deviations, (N, K)."""

    def group_statistics(
        self, mean_NK: Tensor, m2_NK: Tensor, voxels: int, groups: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return mean and 1 / sqrt(variance + eps), (N, G)."""

    def apply(
        self, x_NVK: Tensor, film: Film, mean_NG: Tensor, rstd_NG: Tensor, a_NVK: Tensor
    ) -> None:
        """Write the activations to `a`."""

    def backward(
        self,
        da_NVK: Tensor,
        x_NVK: Tensor,
        film: Film,
        mean_NG: Tensor,
        rstd_NG: Tensor,
        dx_NVK: Tensor,
    ) -> tuple[Tensor, ...]:
        """Add to `dx`, perhaps spoil `da`, return the gradients of weight, bias, gamma and beta."""

    def copy(self, source_NVK: Tensor, target_NVK: Tensor) -> None:
        """Copy, casting; both may be channels of a buffer."""

    def convolution(self, a: Tensor, weight: Tensor, dilation: int) -> Tensor:
        """Return a 3^3 convolution that keeps the size, in channels last."""

    def convolution_backward(
        self, dy: Tensor, a: Tensor, weight: Tensor, dilation: int
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of `a`, in channels last, and of the weight."""


def forward(x: Tensor, block: Block, run: Primitives) -> tuple[Tensor, Tensor]:
    """Return the buffer and the statistics of its channels, (2, N, channels)."""
    n, channels = x.shape[:2]
    shape = (n, *x.shape[2:], block.out_channels(channels))
    buffer = torch.empty(shape, dtype=x.dtype, device=x.device)
    statistics = torch.empty((2, n, shape[-1]), dtype=statistics_dtype(x), device=x.device)
    flat_NVC = buffer.flatten(1, 3)
    run.copy(_flat(_last(x)), flat_NVC[..., :channels])
    _note(statistics, 0, flat_NVC[..., :channels], run)
    room = _Room(buffer, block, run)
    for layer in block.layers():
        k, weight = layer.channels, _last(layer.conv_weight.to(room.dtype))
        film, mean_NG, rstd_NG = _prepare(layer, statistics, flat_NVC.shape[1], block, run)
        for part in room.parts():
            a = room.take(part, k)
            run.apply(
                flat_NVC[part, :, :k], _of(film, part), mean_NG[part], rstd_NG[part], _flat(a)
            )
            y = run.convolution(a, weight, layer.dilation)
            run.copy(_flat(y), flat_NVC[part, :, k : k + block.growth()])
        _note(statistics, k, flat_NVC[..., k : k + block.growth()], run)
    return buffer.movedim(-1, 1), statistics


def backward(
    grad: Tensor, out: Tensor, statistics: Tensor, block: Block, run: Primitives
) -> tuple[Tensor, list[list[Tensor]]]:
    """Return the gradients of x and of the five lists of tensors."""
    buffer = out.movedim(1, -1)
    gradient = torch.empty(buffer.shape, dtype=out.dtype, device=out.device)
    gradient.copy_(grad.movedim(1, -1))
    flat_NVC, flat_gradient_NVC = buffer.flatten(1, 3), gradient.flatten(1, 3)
    room = _Room(buffer, block, run)
    found: list[tuple[Tensor, ...]] = []
    for layer in reversed(list(block.layers())):
        k, weight = layer.channels, _last(layer.conv_weight.to(room.dtype))
        film, mean_NG, rstd_NG = _prepare(layer, statistics, flat_NVC.shape[1], block, run)
        grads = []
        for part in room.parts():
            a = room.take(part, k)
            x_NVK, here = flat_NVC[part, :, :k], _of(film, part)
            run.apply(x_NVK, here, mean_NG[part], rstd_NG[part], _flat(a))
            dy = room.take_gradient(part, block.growth())
            run.copy(flat_gradient_NVC[part, :, k : k + block.growth()], _flat(dy))
            da, dw = run.convolution_backward(dy, a, weight, layer.dilation)
            dx_NVK = flat_gradient_NVC[part, :, :k]
            rest = run.backward(_flat(da), x_NVK, here, mean_NG[part], rstd_NG[part], dx_NVK)
            grads.append((dw, *rest))
        found.append(_joined(grads, layer))
    channels = out.shape[1] - len(block.dilations) * block.growth()
    dx = torch.empty((*buffer.shape[:4], channels), dtype=out.dtype, device=out.device)
    run.copy(flat_gradient_NVC[..., :channels], dx.flatten(1, 3))
    lists = [list(grads) for grads in zip(*reversed(found))] if found else [[] for _ in range(5)]
    return dx.movedim(-1, 1), lists if block.gammas else [*lists[:3], [], []]


class _Room:
    """Scratch for the activations of a few samples, used again by every layer."""

    def __init__(self, buffer: Tensor, block: Block, run: Primitives) -> None:
        self.samples, self.sizes = buffer.shape[0], buffer.shape[1:4]
        self.dtype = run.scratch_dtype(buffer.dtype)
        self.at_once = max(1, run.VOXELS_AT_ONCE // max(1, self.sizes.numel()))
        widest = max((layer.channels for layer in block.layers()), default=0)
        numbers = min(self.at_once, self.samples) * self.sizes.numel() * widest
        self.memory = torch.empty(numbers, dtype=self.dtype, device=buffer.device)

    def parts(self) -> Iterator[slice]:
        """Yield the samples, a few at a time."""
        for first in range(0, self.samples, self.at_once):
            yield slice(first, min(first + self.at_once, self.samples))

    def take(self, part: slice, channels: int) -> Tensor:
        """Return room for activations, (n, channels, X, Y, Z) in channels last."""
        shape = (part.stop - part.start, *self.sizes, channels)
        return self.memory[: torch.Size(shape).numel()].view(shape).movedim(-1, 1)

    def take_gradient(self, part: slice, channels: int) -> Tensor:
        """Return room for the gradient of what a layer appended, laid out alike."""
        shape = (part.stop - part.start, *self.sizes, channels)
        return self.memory.new_empty(shape).movedim(-1, 1)


def _note(statistics: Tensor, first: int, x_NVK: Tensor, run: Primitives) -> None:
    """Write down the statistics of channels that were just written."""
    for row, values_NK in zip(statistics, run.channel_statistics(x_NVK)):
        row[:, first : first + values_NK.shape[1]] = values_NK


def _prepare(
    layer: Layer, statistics: Tensor, voxels: int, block: Block, run: Primitives
) -> tuple[Film, Tensor, Tensor]:
    mean_NK, m2_NK = statistics[:, :, : layer.channels]
    groups = layer.channels // block.groups_size
    film = run.prepare((layer.norm_weight, layer.norm_bias, layer.gamma, layer.beta))
    return film, *run.group_statistics(mean_NK, m2_NK, voxels, groups, block.eps)


def _joined(grads: Sequence[tuple[Tensor, ...]], layer: Layer) -> tuple[Tensor, ...]:
    """Join the parts: gradients of weights are summed in order, those of FiLM put end to end."""
    if not grads:
        absent = (layer.conv_weight, layer.norm_weight, layer.norm_bias, layer.gamma, layer.beta)
        return tuple(torch.zeros_like(t) for t in absent if t is not None)
    if len(grads) == 1:
        return grads[0]
    columns = list(zip(*grads))
    summed = [torch.stack(column).sum(0) for column in columns[:3]]
    return (*summed, *(torch.cat(column) for column in columns[3:]))


def _of(film: Film, part: slice) -> Film:
    """Return a part's parameters: gamma and beta are its samples'."""
    weight, bias, gamma, beta = film
    return weight, bias, *(None if t is None else t[part] for t in (gamma, beta))


def _flat(a: Tensor) -> Tensor:
    """View (n, K, X, Y, Z) in channels last as (n, V, K)."""
    return a.movedim(1, -1).flatten(1, 3)


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last_3d)
