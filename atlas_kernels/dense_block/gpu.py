"""dense_block's primitives on a GPU: the Triton layers and the vendor's convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_kernels.group_norm_film import triton_launch

from .buffer import Film

VOXELS_AT_ONCE = 2**20  # enough to fill a GPU, little beside the buffer of a large batch


def scratch_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what convolutions are computed in: what the buffer holds."""
    return dtype


def channel_statistics(x_NVK: Tensor, statistics_NK: Tensor) -> None:
    """Write mean and sum of squared deviations, (2, N, K)."""
    torch.stack(triton_launch.channel_statistics(x_NVK), out=statistics_NK)


def prepare(film: Film) -> Film:
    """Return the parameters as they are."""
    return film


def activations(
    x_NVK: Tensor, film: Film, statistics_NK: Tensor, groups: int, eps: float, a_NVK: Tensor
) -> tuple[Tensor, Tensor]:
    """Write SiLU(FiLM(GroupNorm(x))) to `a`, return the groups' mean and rstd, (N, G) each."""
    mean_NK, m2_NK = statistics_NK.unbind()
    voxels = x_NVK.shape[1]
    mean_NG, rstd_NG = triton_launch.group_statistics(mean_NK, m2_NK, voxels, groups, eps)
    triton_launch.apply(x_NVK, film, mean_NG, rstd_NG, a_NVK, "silu")
    return mean_NG, rstd_NG


def backward(
    da_NVK: Tensor,
    x_NVK: Tensor,
    film: Film,
    of_NG: tuple[Tensor, Tensor],
    dx_NVK: Tensor,
    whole: bool,
) -> tuple[Tensor, ...]:
    """Add to `dx`, return the gradients of weight, bias, gamma and beta."""
    of = (da_NVK, x_NVK, film, *of_NG, dx_NVK)
    grads = triton_launch.backward(*of, "silu", accumulate=True)
    return tuple(grad for grad in grads if grad is not None)


def copy(source_NVK: Tensor, target_NVK: Tensor) -> None:
    """Copy, casting; both may be channels of a buffer."""
    target_NVK.copy_(source_NVK)


def convolution(a: Tensor, weight: Tensor, dilation: int, y_NVR: Tensor) -> None:
    """Write a 3^3 convolution that keeps the size."""
    y = torch.nn.functional.conv3d(a, weight, padding=dilation, dilation=dilation)
    y_NVR.copy_(y.movedim(1, -1).flatten(1, 3))


def prepare_weight(weight: Tensor) -> Tensor:
    """Return the weight in channels last, as the activations are."""
    return weight.contiguous(memory_format=torch.channels_last_3d)


def convolution_backward(
    dy: Tensor, a: Tensor, weight: Tensor, dilation: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `a`, in channels last, and of the weight."""
    d = [dilation] * 3
    da, dw, _ = torch.ops.aten.convolution_backward(
        dy, a, weight, None, [1] * 3, d, d, False, [0] * 3, 1, [True, True, False]
    )
    return da.contiguous(memory_format=torch.channels_last_3d), dw
