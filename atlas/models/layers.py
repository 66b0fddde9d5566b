"""Layers that the models share: FiLM-modulated GroupNorm, dense blocks, gradient reversal.

The dense layer is GroupNorm in groups of 8 channels -> FiLM -> SiLU -> bias-free 3^3 convolution,
its output appended to its input. Channel counts are multiples of 8, so that groups never straddle
what one layer wrote. The layers hold the parameters; atlas_kernels computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from atlas.config import YearHead
from atlas.metadata import YEAR_BINS
from atlas_kernels import dense_block, group_norm_film

CHANNELS_PER_GROUP = 8
# "auto": the fused kernels of atlas_kernels; "reference": the same layers in plain PyTorch.
Kernels = Literal["auto", "reference"]


class NormFiLM(nn.Module):
    """SiLU(GroupNorm(x) * (1 + gamma) + beta), gamma and beta linear in the embedding.

    FiLM: Perez et al. 2018, AAAI. It starts as the identity.
    """

    def __init__(self, channels: int, embedding: int, kernels: Kernels = "auto") -> None:
        super().__init__()
        self.groups = channels // CHANNELS_PER_GROUP
        self.kernels = kernels
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.film = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def parameters_of(self, embedding_BE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weight and bias, (C,), gamma and beta, (B, C)."""
        gamma_BC, beta_BC = self.film(embedding_BE).chunk(2, dim=1)
        return self.weight, self.bias, gamma_BC, beta_BC

    def forward(self, x_BCXYZ: Tensor, embedding_BE: Tensor) -> Tensor:
        """Normalise, modulate, activate; same shape as the input."""
        weight, bias, gamma_BC, beta_BC = self.parameters_of(embedding_BE)
        if self.kernels == "auto":
            return group_norm_film(x_BCXYZ, self.groups, weight, bias, gamma_BC, beta_BC)
        gamma, beta = (t[..., None, None, None] for t in (gamma_BC, beta_BC))
        normed = F.group_norm(x_BCXYZ, self.groups, weight, bias)
        return F.silu(normed * (1 + gamma) + beta)


class DenseBlock(nn.Module):
    """Layers that each append `growth` channels; one dilation a layer.

    Densely connected networks: Huang et al. 2017, CVPR.
    """

    def __init__(
        self,
        channels: int,
        growth: int,
        dilations: Sequence[int],
        embedding: int,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        widths = [channels + k * growth for k in range(len(dilations))]
        self.kernels = kernels
        self.dilations = list(dilations)
        self.norms = nn.ModuleList(NormFiLM(width, embedding, kernels) for width in widths)
        self.convs = nn.ModuleList(
            nn.Conv3d(width, growth, 3, padding=d, dilation=d, bias=False)
            for width, d in zip(widths, dilations)
        )
        self.out_channels = channels + growth * len(dilations)

    def forward(self, x_BCXYZ: Tensor, embedding_BE: Tensor) -> Tensor:
        """Return (B, channels + growth * layers, X, Y, Z)."""
        if self.kernels == "auto":
            norms: Any = self.norms  # whose type does not say what it holds
            films = [norm.parameters_of(embedding_BE) for norm in norms]
            weights, biases, gammas, betas = ([film[i] for film in films] for i in range(4))
            convolutions: list[Any] = [conv.weight for conv in self.convs]
            return dense_block(
                x_BCXYZ, convolutions, weights, biases, gammas, betas, self.dilations
            )
        for norm, conv in zip(self.norms, self.convs):
            x_BCXYZ = torch.cat([x_BCXYZ, conv(norm(x_BCXYZ, embedding_BE))], dim=1)
        return x_BCXYZ


def transition(
    norm: nn.Module, conv: nn.Module, x_BCXYZ: Tensor, embedding_BE: Tensor, halve: bool = False
) -> Tensor:
    """Return ``conv(norm(x))``; with `halve`, the grid is halved between the two.

    The fused norm is quick enough to be computed again in the backward: its output, as large as its
    input, is not kept.
    """
    assert isinstance(norm, NormFiLM)
    kernels = norm.kernels

    def convolved(a: Tensor) -> Tensor:
        y: Tensor = conv(pool(a, kernels) if halve else a)
        return y

    if kernels == "reference" or torch.compiler.is_compiling():
        return convolved(norm(x_BCXYZ, embedding_BE))
    parameters = norm.parameters_of(embedding_BE)
    a = group_norm_film(x_BCXYZ, norm.groups, *parameters)
    with _forgotten(a, lambda: group_norm_film(x_BCXYZ, norm.groups, *parameters)):
        return convolved(a)


def _forgotten(tensor: Tensor, again: Callable[[], Tensor]) -> saved_tensors_hooks:
    """Within it, autograd keeps no view of a tensor, but what makes the tensor again."""
    memory = tensor.data_ptr()

    def pack(kept: Tensor) -> Any:
        ours = kept.untyped_storage().data_ptr() == memory
        return (kept.shape, kept.stride(), kept.storage_offset()) if ours else kept

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else again().as_strided(*packed)

    return saved_tensors_hooks(pack, unpack)


class Upsample(nn.Module):
    """Double the grid with a k4 s2 transposed convolution, then crop to `size`."""

    def __init__(
        self, channels: int, out_channels: int, size: Sequence[int], kernels: Kernels = "auto"
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(channels, out_channels, 4, stride=2, padding=1)
        self.size = tuple(size)
        # On a CPU a transposed convolution to two channels takes several times its arithmetic.
        self.by_phases = kernels == "auto" and out_channels < CHANNELS_PER_GROUP

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Return (B, out_channels, *size)."""
        x, y, z = self.size
        if self.by_phases and x_BCXYZ.device.type == "cpu":
            return self._phases(x_BCXYZ)[..., 1 : x + 1, 1 : y + 1, 1 : z + 1]
        return self.conv(x_BCXYZ)[..., :x, :y, :z]

    def _phases(self, x_BCXYZ: Tensor) -> Tensor:
        """Compute the same one cell further out on each side, as a 2^3 convolution.

        Cells 2j - 1 and 2j see x at j - 1 and j alone, the one through the kernel's entries 2 and
        0, the other through 3 and 1: they are channels of cell j.
        """
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        c, o = weight.shape[:2]
        taps = weight.reshape(c, o, 2, 2, 2, 2, 2, 2).flip(2, 4, 6).permute(1, 3, 5, 7, 0, 2, 4, 6)
        y = F.conv3d(x_BCXYZ, taps.reshape(8 * o, c, 2, 2, 2), bias.repeat_interleave(8), padding=1)
        phases = y.unflatten(1, (o, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return phases.reshape(len(y), o, *(2 * n for n in y.shape[2:]))


def pool(x_BCXYZ: Tensor, kernels: Kernels = "reference") -> Tensor:
    """Halve the grid, rounding up; a cell at the edge averages what there is of it."""
    if kernels == "reference":
        return F.avg_pool3d(x_BCXYZ, 2, ceil_mode=True, count_include_pad=False)
    # In two steps, planes and then rows: on a CPU PyTorch pools channels last, and bfloat16, in 2-D
    # alone.
    b, c, x, y, z = x_BCXYZ.shape
    planes = channels_last(x_BCXYZ, kernels).movedim(1, -1).view(b * x, y, z, c)
    halved = _pool_2d(planes, (2, 2))
    y, z = halved.shape[1:3]
    return _pool_2d(halved.view(b, x, y * z, c), (2, 1)).view(b, -1, y, z, c).movedim(-1, 1)


def _pool_2d(x_BYZC: Tensor, size: tuple[int, int]) -> Tensor:
    pooled = F.avg_pool2d(x_BYZC.movedim(-1, 1), size, ceil_mode=True, count_include_pad=False)
    return pooled.movedim(1, -1).contiguous()


def pyramid(shape: Sequence[int], halvings: int) -> list[list[int]]:
    """Grid sizes from the full one to the coarsest, each half the one before, rounded up."""
    sizes = [list(shape)]
    for _ in range(halvings):
        sizes.append([-(-n // 2) for n in sizes[-1]])
    return sizes


def double(x_BCXYZ: Tensor, size: Sequence[int]) -> Tensor:
    """Double the grid by trilinear interpolation, then crop to `size`; beyond its edge it is 0.

    One small matrix an axis, from the side that needs no transposed copy:
    `torch.nn.functional.interpolate` takes several times as long on a CPU.
    """
    return _along_axes(x_BCXYZ, [_tent(n, fine) for n, fine in zip(x_BCXYZ.shape[2:], size)])


def blur(x_BCXYZ: Tensor, fwhm: float) -> Tensor:
    """Smooth with a Gaussian of `fwhm` cells that sums to 1; beyond the grid's edge it is 0."""
    return _along_axes(x_BCXYZ, [_gaussian(n, fwhm) for n in x_BCXYZ.shape[2:]])


def _along_axes(x_BCXYZ: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Map each axis by a matrix of (cells, new cells)."""
    *outer, x, y, z = x_BCXYZ.shape
    to_x, to_y, to_z = (matrix.to(x_BCXYZ) for matrix in weights)
    new_z = x_BCXYZ.contiguous().view(-1, z) @ to_z
    new_yz = to_y.T @ new_z.view(-1, y, to_z.shape[1])
    new_xyz = to_x.T @ new_yz.view(-1, x, to_y.shape[1] * to_z.shape[1])
    return new_xyz.view(*outer, *(matrix.shape[1] for matrix in weights))


@lru_cache
def _tent(coarse: int, fine: int) -> Tensor:
    """Weights of `coarse` cells in `fine` cells of half the edge, (coarse, fine)."""
    centre = (torch.arange(fine) + 0.5) / 2 - 0.5
    return (1 - (centre - torch.arange(coarse)[:, None]).abs()).clamp_min(0)


@lru_cache
def _gaussian(cells: int, fwhm: float) -> Tensor:
    """Weights of cells in their smoothed selves, (cells, cells)."""
    distance = torch.arange(cells)[:, None] - torch.arange(cells)
    weights = torch.exp2(-4 * distance.square() / fwhm**2)
    return weights / weights[cells // 2].sum()


def channels_last(x_BCXYZ: Tensor, kernels: Kernels) -> Tensor:
    """Lay a volume out as the fused kernels and the vendors' convolutions like it best."""
    if kernels == "reference":
        return x_BCXYZ
    return x_BCXYZ.contiguous(memory_format=torch.channels_last_3d)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grads[0], None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """Pass x on; its gradient comes back times ``-weight`` (Ganin et al. 2016, JMLR)."""
    return _ReverseGradient.apply(x, weight)


def year_logits(head: YearHead) -> int:
    """Count a year head's logits: one a bin, or one of P(bin > k) for every k but the last.

    The second is ordinal regression by cumulative binary decisions (Frank & Hall 2001, ECML;
    Niu et al. 2016, CVPR). Loss and prediction tell the two by this number.
    """
    return YEAR_BINS if head == "bins" else YEAR_BINS - 1


def receptive_field(steps: Sequence[tuple[int, int, int]]) -> int:
    """Width in input cells that one output sees, from (kernel, stride, dilation) of each step."""
    width, jump = 1, 1
    for kernel, stride, dilation in steps:
        width += (kernel - 1) * dilation * jump
        jump *= stride
    return width
