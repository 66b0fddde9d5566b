"""From tensors to the C++ kernels of splat, which know addresses only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas_kernels._extension import kernels

from .checks import dtype_name
from .native import native_problem
from .problem import Problem

if TYPE_CHECKING:
    from atlas_kernels._kernels import SplatProblem

Gradients = tuple[Tensor, Tensor, Tensor]


def native(problem: Problem) -> tuple[SplatProblem, Problem]:
    """Return the C++ problem and the tensors whose memory it points to."""
    held = problem._replace(
        peaks_mm=_dense_double(problem.peaks_mm),
        offsets=problem.offsets.contiguous(),
        widths=_dense_double(problem.widths),
        weights=None if problem.weights is None else _dense_double(problem.weights),
        voxels=None if problem.voxels is None else problem.voxels.contiguous(),
    )
    return native_problem(Tensor.data_ptr, held), held


def _dense_double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64).contiguous()


def _gradients(held: Problem) -> Gradients:
    weights = held.peaks_mm.new_empty(len(held.peaks_mm))
    return torch.empty_like(held.peaks_mm), weights, torch.empty_like(held.widths)


def forward_cpu(problem: Problem, out: Tensor) -> None:
    """Write the volumes to ``out``, which is contiguous."""
    described, _held = native(problem)
    kernels().splat_cpu(described, out.data_ptr(), dtype_name(out.dtype), torch.get_num_threads())


def backward_cpu(grad_out: Tensor, problem: Problem) -> Gradients:
    """Return the float64 gradients of peaks, weights and widths; ``grad_out`` is contiguous."""
    described, held = native(problem)
    grads = _gradients(held)
    kernels().splat_backward_cpu(
        described,
        grad_out.data_ptr(),
        dtype_name(grad_out.dtype),
        *(grad.data_ptr() for grad in grads),
        torch.get_num_threads(),
    )
    return grads


def forward_cuda(problem: Problem, out: Tensor) -> None:
    """Do the same on a GPU, on the current stream."""
    with torch.cuda.device(out.device):
        described, held = native(problem)
        kernels().splat_cuda(
            described,
            out.data_ptr(),
            dtype_name(out.dtype),
            _room(described, held).data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )


def backward_cuda(grad_out: Tensor, problem: Problem) -> Gradients:
    """Do the same on a GPU, on the current stream."""
    with torch.cuda.device(grad_out.device):
        described, held = native(problem)
        grads = _gradients(held)
        kernels().splat_backward_cuda(
            described,
            grad_out.data_ptr(),
            dtype_name(grad_out.dtype),
            *(grad.data_ptr() for grad in grads),
            _room(described, held).data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
        return grads


def _room(described: SplatProblem, held: Problem) -> Tensor:
    # The allocator reuses it for later work of the same stream alone, so it may be dropped at once.
    return held.peaks_mm.new_empty(kernels().splat_room(described) // 8)
