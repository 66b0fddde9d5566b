"""From tensors to the Triton kernels of splat.

Sizes of tiles follow from dtypes alone, so the bits of a result do not depend on how large the
GPU is; nothing is tuned while running. No call waits for the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atlas_kernels._dispatch import INTERPRETED

from . import triton_focus
from . import triton_kernel as kernels
from .problem import Problem

FOCI = 128  # that one program describes
CHUNK = 1024  # numbers that one program writes, half of it in float64
TILE = (16, 16)  # rows of a box of voxels, half of them in float64, and columns
REGISTERS = {"maxnreg": 128}  # a thread in `moments`: ptxas' own choice spills
SUMMED = 1024  # gradients of a shared width that are added at a time
EXACT = {"enable_fp_fusion": False}  # see triton_kernel.py


class Foci(NamedTuple):
    """Every peak at every width; triton_kernel.py says what the two hold."""

    records: Tensor
    boxes: Tensor
    number: int


class Shape(NamedTuple):
    """What the values of a kernel depend on beside its record; compiled in."""

    box: bool
    edge: float  # 0 without taper
    end: float


def forward(problem: Problem, out: Tensor) -> None:
    """Write the volumes to ``out``, dense and of any dtype that ``splat`` gives."""
    if not out.numel():
        return
    held, shape = _dense(problem), _shape(problem)
    size = CHUNK // 2 if out.dtype == torch.float64 else CHUNK
    sphere = problem.splat_mode == "sphere"
    mode = ("sum" if problem.counts else "max") if sphere else problem.splat_mode
    with _on(out):
        foci = _foci(held, shape)
        kernels.splat_kernel[(triton.cdiv(out.numel(), size),)](
            out, held.offsets, held.voxels, foci.records, foci.boxes, out.numel(),
            _elements(held), len(held.peaks_mm), foci.number, held.n_kernels, *_geometry(held),
            *held.shape[1:], mode, sphere, *shape, _index(held), size, **EXACT,
        )  # fmt: skip


def backward(grad_out: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return the float64 gradients of ``peaks_mm`` (P, 3), ``weights`` (P,) and ``widths``."""
    held, shape, peaks = _dense(problem), _shape(problem), len(problem.peaks_mm)
    each = grad_out.new_empty((problem.n_kernels, peaks, 3), dtype=torch.float64)
    weights, widths = grad_out.new_empty((2, *each.shape[:2]), dtype=torch.float64).unbind()
    if not (grad_out.numel() and peaks):
        return _zeros(held.peaks_mm), _zeros(held.peaks_mm[:, 0]), _zeros(held.widths)
    with _on(grad_out):
        foci = _foci(held, shape)
        (rows, columns), limit = TILE, REGISTERS
        if grad_out.dtype == torch.float64:
            rows, limit = rows // 2, {}
        kernels.moments_kernel[(foci.number,)](
            grad_out, held.offsets, _ranks(held), foci.records, foci.boxes, each, weights, widths,
            _elements(held), peaks, foci.number, held.n_kernels, *_search(held), *held.shape[1:],
            *_geometry(held), held.splat_mode, *shape, held.centre == "voxel", _index(held), rows,
            columns, **limit, **EXACT,
        )  # fmt: skip
        return _in_order(each), _in_order(weights), _widths(held, widths)


def _in_order(each: Tensor) -> Tensor:
    """Add the kernels up, one after the other."""
    return reduce(torch.add, each.unbind())


def _widths(problem: Problem, each: Tensor) -> Tensor:
    if problem.widths_of == "peaks":
        return each[0]
    grad = each.new_empty(problem.widths.shape)
    kernels.widths_kernel[(len(grad),)](
        each, grad, problem.offsets, each.shape[1], problem.widths_of == "studies", SUMMED
    )
    return grad


def _ranks(problem: Problem) -> Tensor | None:
    """Return, for every voxel of the grid, where it is in a masked volume, or -1."""
    if problem.voxels is None:
        return None
    total, elements = math.prod(problem.shape), len(problem.voxels)
    ranks = torch.full((total,), -1, device=problem.voxels.device)
    kernels.rank_kernel[(triton.cdiv(elements, CHUNK),)](
        problem.voxels, ranks, elements, total, CHUNK
    )
    return ranks


def _foci(problem: Problem, shape: Shape) -> Foci:
    peaks, sphere = problem.peaks_mm, problem.splat_mode == "sphere"
    number = len(peaks) * problem.n_kernels
    records = peaks.new_empty((number, triton_focus.RECORD.value), dtype=torch.float64)
    boxes = peaks.new_empty((6, number), dtype=torch.int32)
    if not number:
        return Foci(records, boxes, number)
    triton_focus.focus_kernel[(triton.cdiv(number, FOCI),)](
        peaks, problem.offsets, problem.widths, problem.weights, records, boxes, len(peaks), number,
        *_search(problem), *problem.shape, *_geometry(problem), problem.truncate,
        1 / (1 - shape.edge * (1 + shape.end)),
        problem.widths_of, sphere, problem.centre == "voxel", FOCI, **EXACT,
    )  # fmt: skip
    if problem.normalize != "peak":
        steps = problem.affine[:11:5]
        mm3 = abs(math.prod(steps)) if problem.normalize == "mm3" else 1.0
        triton_focus.normalize_kernel[(number,)](
            records, boxes, number, *_geometry(problem), problem.truncate, 2 * math.hypot(*steps),
            mm3, *shape, *TILE, **EXACT,
        )  # fmt: skip
    return Foci(records, boxes, number)


# ---- what the kernels are told -------------------------------------------------------------------


def _dense(problem: Problem) -> Problem:
    fields: Any = (f.contiguous() if isinstance(f, Tensor) else f for f in problem)
    return Problem(*fields)


def _shape(problem: Problem) -> Shape:
    end = 0.5 * problem.truncate**2
    if problem.support != "taper" or end == math.inf:
        return Shape(problem.support == "box", 0.0, 0.0)
    return Shape(False, math.exp(-end), end)


def _geometry(problem: Problem) -> Sequence[float]:
    """Return origin and steps, mm, each along x, y and z."""
    return (*problem.affine[3::4], *problem.affine[:11:5])


def _elements(problem: Problem) -> int:
    """Numbers of one volume."""
    return math.prod(problem.output_shape()[2:])


def _search(problem: Problem) -> tuple[int, int]:
    """Return how many studies there are, and halvings to find one."""
    return problem.n_studies, problem.n_studies.bit_length()


def _index(problem: Problem) -> Any:
    """Return the type that holds a voxel's number, also a chunk away from the grid."""
    return tl.int32 if math.prod(problem.shape) < 2**31 - CHUNK else tl.int64


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float64)


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    return nullcontext() if INTERPRETED else torch.cuda.device(tensor.device)
