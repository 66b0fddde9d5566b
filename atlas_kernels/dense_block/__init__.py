"""dense_block: a 3-D dilated DenseNet block as one op. See ``docs/kernels/dense_block.md``."""

# As in atlas_kernels.splat: nothing here may import torch before the function is called.
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["dense_block"]


def dense_block(
    x: torch.Tensor,
    conv_weights: Sequence[torch.Tensor],
    norm_weights: Sequence[torch.Tensor],
    norm_biases: Sequence[torch.Tensor],
    gammas: Sequence[torch.Tensor],
    betas: Sequence[torch.Tensor],
    dilations: Sequence[int],
    groups_size: int = 8,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> torch.Tensor:
    """Layers of GroupNorm, FiLM, SiLU and a dilated 3^3 convolution, each appended to its input.

    Equivalent to, with lists that have one entry a layer::

        for k, d in enumerate(dilations):
            groups = x.shape[1] // groups_size
            a = torch.nn.functional.group_norm(x, groups, norm_weights[k], norm_biases[k], eps)
            a = a * (1 + gammas[k][:, :, None, None, None]) + betas[k][:, :, None, None, None]
            a = torch.nn.functional.silu(a)
            y = torch.nn.functional.conv3d(a, conv_weights[k], padding=d, dilation=d)
            x = torch.cat([x, y], dim=1)

    but over one buffer: nothing is concatenated, a channel's statistics are taken once, and the
    backward computes the activations again instead of keeping them. It keeps the output alone.

    Parameters
    ----------
    x : (N, C, X, Y, Z) float32, bfloat16, float16 or float64
        C a multiple of ``groups_size``. Channels last (3-D) saves a copy on the CPU.
    conv_weights : list of (growth, C + k * growth, 3, 3, 3)
        One growth for all layers, a multiple of ``groups_size``. In the dtype of ``x`` or a wider
        one.
    norm_weights, norm_biases : lists of (C + k * growth,)
    gammas, betas : lists of (N, C + k * growth)
        FiLM; empty lists for none.
    dilations : list of int
    groups_size : int
        Channels of a group, so that groups never straddle what one layer wrote.
    eps : float
        Added to the variances.
    backend : {"auto", "cpu", "gpu", "reference"}
        Implementation; "auto" takes the fastest that runs (or what ATLAS_KERNELS_BACKEND names).

    Returns
    -------
    (N, C + layers * growth, X, Y, Z) tensor of the dtype and the layout of ``x``
        Under autocast ``x`` is cast to autocast's dtype first, as a convolution would.

    Raises
    ------
    TypeError
        If an argument that must be a tensor is not.
    ValueError
        If a shape, dtype, device or option is wrong; the message names the argument.
    RuntimeError
        If ``backend`` cannot run here.

    Notes
    -----
    Differentiable once in every tensor. The same bits on every run; on a GPU where cuDNN is told to
    be deterministic.

    References
    ----------
    DenseNet: Huang et al. 2017, CVPR; its memory: Pleiss et al. 2017, arXiv:1707.06990.
    """
    from . import op

    return op.dense_block(
        x,
        conv_weights,
        norm_weights,
        norm_biases,
        gammas,
        betas,
        dilations,
        groups_size,
        eps,
        backend,
    )
