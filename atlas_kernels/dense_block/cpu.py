"""dense_block's primitives on the CPU: C++ layers, our convolutions or oneDNN's.

Ours in float32 where most taps lie in the grid. The gradient of a weight is always ours: oneDNN's
takes 1.2 to 24 times as long where there are dilations, and as long or longer where there are none
(docs/kernels/dense_block.md).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas_kernels._extension import kernels
from atlas_kernels.group_norm_film.native import dense, describe, dtype_name, typed

from .buffer import Film

if TYPE_CHECKING:
    from atlas_kernels._kernels import GroupNormFilm

NO_FILM: Film = (None, None, None, None)
# Scratch stays in the cache; where convolutions are quick, calling them less often is worth more.
VOXELS_AT_ONCE = 2**15 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 2**14


@functools.cache
def scratch_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for a short dtype that oneDNN has no instructions for here."""
    native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return torch.float32 if dtype in native and not native[dtype]() else dtype


def prepare(film: Film) -> Film:
    """Return contiguous parameters."""
    return dense(film)


def channel_statistics(x_NVK: Tensor, statistics_NK: Tensor) -> None:
    """Write mean and sum of squared deviations, (2, N, K)."""
    kernels().channel_statistics_cpu(
        _shape(*x_NVK.shape, x_NVK.stride(1)),
        x_NVK.data_ptr(),
        dtype_name(x_NVK),
        *_channels(statistics_NK),
        torch.get_num_threads(),
    )


@functools.lru_cache
def _shape(samples: int, voxels: int, channels: int, row: int) -> GroupNormFilm:
    return describe(NO_FILM, samples, channels, voxels, 1, channels_last=True, row=row)


def activations(
    x_NVK: Tensor, film: Film, statistics_NK: Tensor, groups: int, eps: float, a_NVK: Tensor
) -> tuple[Tensor, GroupNormFilm]:
    """Write SiLU(FiLM(GroupNorm(x))) to `a`, return the groups' (2, N, G) and the description."""
    n, voxels, k = x_NVK.shape
    of_NG = torch.empty((2, n, groups), dtype=torch.float64)
    mean, rstd = of_NG.data_ptr(), of_NG.data_ptr() + n * groups * of_NG.element_size()
    problem = describe(film, n, k, voxels, groups, channels_last=True, row=x_NVK.stride(1), eps=eps)
    stride, channel_mean, channel_m2 = _channels(statistics_NK)
    kernels().group_statistics(problem, channel_mean, channel_m2, stride, mean, rstd)
    kernels().group_norm_film_apply_cpu(
        problem,
        x_NVK.data_ptr(),
        dtype_name(x_NVK),
        mean,
        rstd,
        a_NVK.data_ptr(),
        dtype_name(a_NVK),
        torch.get_num_threads(),
    )
    return of_NG, problem


def _channels(statistics_NK: Tensor) -> tuple[int, int, int]:
    """Return what lies between two samples, and where mean and squared deviations are."""
    step, stride, _ = statistics_NK.stride()
    first = statistics_NK.data_ptr()
    return stride, first, first + step * statistics_NK.element_size()


def backward(
    da_NVK: Tensor,
    x_NVK: Tensor,
    film: Film,
    of: tuple[Tensor, GroupNormFilm],
    dx_NVK: Tensor,
    whole: bool,
) -> tuple[Tensor, ...]:
    """Add to `dx`, spoil `da`, return the gradients of weight, bias, gamma and beta."""
    of_NG, problem = of
    mean, double = of_NG.data_ptr(), dtype_name(of_NG)
    # Those of other samples are added before rounding.
    dtype = None if whole else torch.float64
    grads = tuple(None if t is None else torch.empty_like(t, dtype=dtype) for t in film)
    kernels().group_norm_film_backward_cpu(
        problem,
        da_NVK.data_ptr(),
        dtype_name(da_NVK),
        x_NVK.data_ptr(),
        dtype_name(x_NVK),
        (mean, double),
        (mean + of_NG.stride(0) * of_NG.element_size(), double),
        da_NVK.data_ptr(),
        dx_NVK.data_ptr(),
        True,
        *map(typed, grads),
        torch.get_num_threads(),
    )
    return tuple(grad for grad in grads if grad is not None)


def prepare_weight(weight: Tensor) -> Tensor:
    """Return the weight in the order of its parameter."""
    return weight.contiguous()


def convolution(a: Tensor, weight: Tensor, dilation: int, y_NVR: Tensor) -> None:
    """Write a 3^3 convolution that keeps the size."""
    ours = _ours(a.dtype, a.shape[2:], *weight.shape[1::-1], dilation)
    if ours and y_NVR.dtype == a.dtype:
        _convolution(a, weight, dilation, y_NVR, y_NVR.stride(1))
    elif ours:
        dense_NVR = torch.empty_like(y_NVR, dtype=a.dtype, memory_format=torch.contiguous_format)
        _convolution(a, weight, dilation, dense_NVR, dense_NVR.stride(1))
        copy(dense_NVR, y_NVR)
    else:
        copy(_vendor_convolution(a, weight, dilation).movedim(1, -1).flatten(1, 3), y_NVR)


def convolution_backward(
    dy: Tensor, a: Tensor, weight: Tensor, dilation: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `a`, in channels last, and of the weight.

    The first is a convolution of `dy` with the weight mirrored.
    """
    if _ours(a.dtype, a.shape[2:], *weight.shape[:2], dilation):
        da = torch.empty_like(a)
        _convolution(dy, weight, dilation, da, a.shape[1], mirrored=True)
    else:
        da = _vendor_convolution(dy, weight.flip(2, 3, 4).transpose(0, 1), dilation)
    if a.dtype != torch.float64:
        return da, _weight_gradient(dy, a, dilation)
    d = [dilation] * 3
    _, dw, _ = torch.ops.aten.convolution_backward(
        dy, a, weight, None, [1] * 3, d, d, False, [0] * 3, 1, [False, True, False]
    )
    return da, dw


@functools.cache
def _ours(
    dtype: torch.dtype, shape: torch.Size, in_channels: int, out_channels: int, dilation: int
) -> bool:
    """Return whether our convolution is the faster one."""
    return dtype == torch.float32 and kernels().convolution_pays(
        shape, in_channels, out_channels, dilation
    )


def _convolution(
    a: Tensor, weight: Tensor, dilation: int, y: Tensor, row: int, mirrored: bool = False
) -> None:
    """Ours: `weight` is contiguous; mirrored, its taps are read backwards and from out to in.

    Voxels of `y` lie `row` numbers apart.
    """
    (out_channels, in_channels), first = weight.shape[:2], weight.data_ptr()
    strides = [in_channels * 27, 27, 1]
    if mirrored:
        out_channels, in_channels = in_channels, out_channels
        strides, first = [27, strides[0], -1], first + 26 * weight.element_size()
    kernels().convolution_cpu(
        a.data_ptr(),
        in_channels,
        y.data_ptr(),
        row,
        a.shape[0],
        a.shape[2:],
        in_channels,
        out_channels,
        dilation,
        first,
        strides,
        torch.get_num_threads(),
    )


def _vendor_convolution(a: Tensor, weight: Tensor, dilation: int) -> Tensor:
    d = [dilation] * 3
    if a.dtype != torch.float64 and torch.backends.mkldnn.is_available() and a.numel() > 0:
        # By its own name: `conv3d` takes a slower path for a single small sample.
        y: Tensor = torch.ops.aten.mkldnn_convolution(a, weight, None, d, [1] * 3, d, 1)
    else:
        y = torch.nn.functional.conv3d(a, weight, padding=d, dilation=d)
    return y.contiguous(memory_format=torch.channels_last_3d)


def _weight_gradient(dy: Tensor, a: Tensor, dilation: int) -> Tensor:
    growth, k = dy.shape[1], a.shape[1]
    dw = torch.empty((growth, k, 3, 3, 3), dtype=torch.float32)
    kernels().conv_weight_gradient_cpu(
        a.data_ptr(),
        k,
        dy.data_ptr(),
        growth,
        dtype_name(a),
        a.shape[0],
        a.shape[2:],
        k,
        growth,
        dilation,
        dw.data_ptr(),
        torch.get_num_threads(),
    )
    return dw


def copy(source_NVK: Tensor, target_NVK: Tensor) -> None:
    """Copy, casting; each is the first or some channels of its buffer's voxels."""
    n, voxels, k = source_NVK.shape
    kernels().copy_channels_cpu(
        n * voxels,
        k,
        source_NVK.data_ptr(),
        dtype_name(source_NVK),
        source_NVK.stride(1),
        target_NVK.data_ptr(),
        dtype_name(target_NVK),
        target_NVK.stride(1),
        torch.get_num_threads(),
    )
