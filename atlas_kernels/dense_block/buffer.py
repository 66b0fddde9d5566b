"""dense_block over one buffer, whatever the device; what differs is in a module of primitives.

The buffer is the output, (N, X, Y, Z, channels) in memory, so that a layer's input is the first
channels of each voxel and its output the next ones: nothing is concatenated. Statistics are kept
for each channel and joined into groups when a layer needs them, so each channel is looked at once.

Samples are taken a few at a time through all the layers, so that the scratch for activations and
gradients is small and stays in the cache. The backward goes from the last layer to the first with
one buffer of gradients, to which every layer adds; a layer's activations are computed again.

Letters as in the models, and V voxels, K a layer's input channels, G groups, R growth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

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
        """Return parameters as `activations` and `backward` want them."""

    def channel_statistics(self, x_NVK: Tensor, statistics_NK: Tensor) -> None:
        """Write mean and sum of squared deviations, (2, N, K), perhaps the first of more."""

    def activations(
        self,
        x_NVK: Tensor,
        film: Film,
        statistics_NK: Tensor,
        groups: int,
        eps: float,
        a_NVK: Tensor,
    ) -> Any:
        """Write SiLU(FiLM(GroupNorm(x))) to `a`; return mean and 1 / sqrt(variance + eps).

        ``statistics_NK`` are the channels', (2, N, K), perhaps the first of more. What is returned
        is for `backward` alone.
        """

    def backward(
        self,
        da_NVK: Tensor,
        x_NVK: Tensor,
        film: Film,
        of_NG: Any,
        dx_NVK: Tensor,
        whole: bool,
    ) -> tuple[Tensor, ...]:
        """Add to `dx`, perhaps spoil `da`, return the gradients of weight, bias, gamma and beta.

        ``whole``: of all samples, so that they may be rounded to the parameters' dtypes.
        """

    def copy(self, source_NVK: Tensor, target_NVK: Tensor) -> None:
        """Copy, casting; both may be channels of a buffer."""

    def prepare_weight(self, weight: Tensor) -> Tensor:
        """Return the weight as convolutions want it."""

    def convolution(self, a: Tensor, weight: Tensor, dilation: int, y_NVR: Tensor) -> None:
        """Write a 3^3 convolution that keeps the size, casting, to channels of a buffer."""

    def convolution_backward(
        self, dy: Tensor, a: Tensor, weight: Tensor, dilation: int
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of `a`, in channels last, and of the weight."""


def forward(x: Tensor, block: Block, run: Primitives) -> tuple[Tensor, Tensor]:
    """Return the buffer and the statistics of its channels, (2, N, channels)."""
    n, channels, growth = *x.shape[:2], block.growth()
    shape = (n, *x.shape[2:], block.out_channels(channels))
    buffer = torch.empty(shape, dtype=x.dtype, device=x.device)
    statistics = torch.empty((2, n, shape[-1]), dtype=statistics_dtype(x), device=x.device)
    layers = list(block.layers())
    room = _Room(buffer, layers, run)
    steps = _steps(layers, block, room.dtype, run)
    for part in room.parts():
        x_NVC, known = buffer[part].flatten(1, 3), statistics[:, part]
        given_NVC = x_NVC.narrow(2, 0, channels)
        run.copy(_flat(_last(x[part])), given_NVC)
        run.channel_statistics(given_NVC, known.narrow(2, 0, channels))
        for step in steps:
            new_NVR = x_NVC.narrow(2, step.channels, growth)
            x_NVK = x_NVC.narrow(2, 0, step.channels)
            a, _ = room.activations(x_NVK, known, step.of(part), run)
            run.convolution(a, step.weight, step.dilation, new_NVR)
            run.channel_statistics(new_NVR, known.narrow(2, step.channels, growth))
    return buffer.movedim(-1, 1), statistics


def backward(
    grad: Tensor, out: Tensor, statistics: Tensor, block: Block, run: Primitives
) -> tuple[Tensor, list[list[Tensor]]]:
    """Return the gradients of x and of the five lists of tensors."""
    buffer, growth = out.movedim(1, -1), block.growth()
    channels = out.shape[1] - len(block.dilations) * growth
    dx = torch.empty((*buffer.shape[:4], channels), dtype=out.dtype, device=out.device)
    layers = list(block.layers())
    room = _Room(buffer, layers, run)
    steps = _steps(layers, block, room.dtype, run)
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in steps]
    for part in room.parts():
        x_NVC, known = buffer[part].flatten(1, 3), statistics[:, part]
        gradient_NVC = grad[part].movedim(1, -1).clone(memory_format=torch.contiguous_format)
        gradient_NVC = gradient_NVC.flatten(1, 3)
        for step, grads in reversed(list(zip(steps, found))):
            grads.append(_step_backward(x_NVC, known, gradient_NVC, step.of(part), room, run))
        run.copy(gradient_NVC.narrow(2, 0, channels), dx[part].flatten(1, 3))
        del gradient_NVC  # before the next one is made
    joined = [_joined(grads, layer) for grads, layer in zip(found, layers)]
    lists = [list(grads) for grads in zip(*joined)] if joined else [[] for _ in range(5)]
    return dx.movedim(-1, 1), lists if block.gammas else [*lists[:3], [], []]


def _step_backward(
    x_NVC: Tensor, known: Tensor, gradient_NVC: Tensor, step: _Step, room: _Room, run: Primitives
) -> tuple[Tensor, ...]:
    """Add a layer's gradient to that of its input; return those of its parameters.

    A function of its own, so that its scratch is gone before the next layer's is made.
    """
    k, growth, n = step.channels, step.weight.shape[0], x_NVC.shape[0]
    x_NVK, dx_NVK = x_NVC.narrow(2, 0, k), gradient_NVC.narrow(2, 0, k)
    a, of_NG = room.activations(x_NVK, known, step, run)
    dy_NVR = room.memory.new_empty((n, x_NVC.shape[1], growth))
    run.copy(gradient_NVC.narrow(2, k, growth), dy_NVR)
    da, dw = run.convolution_backward(room.volumes(dy_NVR), a, step.weight, step.dilation)
    return dw, *run.backward(_flat(da), x_NVK, step.film, of_NG, dx_NVK, n == room.samples)


class _Step(NamedTuple):
    """What a layer is made of, as the primitives want it."""

    channels: int
    groups: int
    dilation: int
    eps: float
    weight: Tensor
    film: Film

    def of(self, part: slice) -> _Step:
        """Return it for some samples: gamma and beta are theirs."""
        weight, bias, gamma, beta = self.film
        if gamma is None or gamma.shape[0] == part.stop - part.start:
            return self
        theirs = (None if t is None else t[part] for t in (gamma, beta))
        return self._replace(film=(weight, bias, *theirs))


def _steps(
    layers: Sequence[Layer], block: Block, dtype: torch.dtype, run: Primitives
) -> list[_Step]:
    return [
        _Step(
            layer.channels,
            layer.channels // block.groups_size,
            layer.dilation,
            block.eps,
            run.prepare_weight(layer.conv_weight.to(dtype)),
            run.prepare((layer.norm_weight, layer.norm_bias, layer.gamma, layer.beta)),
        )
        for layer in layers
    ]


class _Room:
    """Scratch for the activations of a few samples, used again by every layer."""

    def __init__(self, buffer: Tensor, layers: Sequence[Layer], run: Primitives) -> None:
        self.samples, self.sizes = buffer.shape[0], buffer.shape[1:4]
        self.dtype = run.scratch_dtype(buffer.dtype)
        self.at_once = max(1, run.VOXELS_AT_ONCE // max(1, self.sizes.numel()))
        widest = max((layer.channels for layer in layers), default=0)
        numbers = min(self.at_once, self.samples) * self.sizes.numel() * widest
        self.memory = torch.empty(numbers, dtype=self.dtype, device=buffer.device)

    def parts(self) -> Iterator[slice]:
        """Yield the samples, a few at a time."""
        for first in range(0, self.samples, self.at_once):
            yield slice(first, min(first + self.at_once, self.samples))

    def activations(
        self, x_NVK: Tensor, statistics: Tensor, step: _Step, run: Primitives
    ) -> tuple[Tensor, Any]:
        """Return a layer's, (n, K, X, Y, Z) in channels last, and what belongs to its groups."""
        n, voxels, k = x_NVK.shape
        a_NVK = self.memory.as_strided((n, voxels, k), (voxels * k, k, 1))
        known_NK = statistics.narrow(2, 0, k)
        of_NG = run.activations(x_NVK, step.film, known_NK, step.groups, step.eps, a_NVK)
        return self.volumes(a_NVK), of_NG

    def volumes(self, a_NVK: Tensor) -> Tensor:
        """View dense (n, V, K) as (n, K, X, Y, Z) in channels last."""
        n, _, k = a_NVK.shape
        return a_NVK.view(n, *self.sizes, k).movedim(-1, 1)


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


def _flat(a: Tensor) -> Tensor:
    """View (n, K, X, Y, Z) in channels last as (n, V, K)."""
    return a.movedim(1, -1).flatten(1, 3)


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last_3d)
