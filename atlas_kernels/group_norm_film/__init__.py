"""group_norm_film: normalise, modulate, activate. See ``docs/kernels/group_norm_film.md``."""

# As in atlas_kernels.splat: nothing here may import torch before the function is called.
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["group_norm_film"]


def group_norm_film(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    activation: str = "silu",
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> torch.Tensor:
    """Group normalisation, FiLM and SiLU in one read for the statistics and one for the rest.

    Equivalent to, but with the statistics in float32 and one rounding at the end::

        y = torch.nn.functional.group_norm(x, groups, weight, bias, eps)
        y = y * (1 + gamma[:, :, None, None, None]) + beta[:, :, None, None, None]
        y = torch.nn.functional.silu(y)

    Parameters
    ----------
    x : (N, C, Y, Z) or (N, C, X, Y, Z) float32, bfloat16, float16 or float64
        Contiguous or channels last, both native; anything else is copied first.
    groups : int
        Number of groups; divides C.
    weight, bias : (C,), optional
        Affine map of the normalised values; 1 and 0 without.
    gamma, beta : (N, C), optional
        FiLM: times ``1 + gamma``, plus ``beta``; 0 without. Parameters may be of another floating
        dtype than ``x``.
    activation : {"silu", "none"}
    eps : float
        Added to the variance.
    backend : {"auto", "cpu", "triton", "cuda", "reference"}
        Implementation; "auto" takes the fastest that runs (or what ATLAS_KERNELS_BACKEND names).

    Returns
    -------
    tensor like ``x``
        In the layout of ``x`` where that is contiguous or channels last, else contiguous.

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
    Differentiable once in every tensor; saves ``x`` and two numbers a group. The same bits for any
    number of threads. An empty batch is legal.

    References
    ----------
    GroupNorm: Wu & He 2018, ECCV. FiLM: Perez et al. 2018, AAAI. SiLU: Elfwing et al. 2018.
    """
    from . import op

    return op.group_norm_film(x, groups, weight, bias, gamma, beta, activation, eps, backend)
