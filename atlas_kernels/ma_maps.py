"""Modeled activation (MA) maps and their statistics, on whole voxels of a mask, for NumPy arrays.

What ``atlas_kernels.nimare`` is made of; knows neither NiMARE nor torch. A kernel is a list of
voxel offsets, with values where it is not constant (``Support``); a study's MA map holds, at each
voxel, the union, the number or the greatest value of its foci's kernels. The maths:
docs/kernels/nimare.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from atlas_kernels._extension import kernels
from atlas_kernels._threads import available_threads

if TYPE_CHECKING:
    from atlas_kernels._kernels import FociProblem

__all__ = ["MaMaps", "Mask", "Support", "Unsupported", "cluster_maxima"]

Array = npt.NDArray[Any]
LONGEST_ROW = 64  # voxels: the width of a word of bits


class Unsupported(ValueError):
    """A kernel or a grid that the C++ code does not draw."""


@dataclass(frozen=True)
class Mask:
    """The voxels that maps are made of, packed to bits.

    Parameters
    ----------
    inside : (X, Y, Z) bool
    """

    shape: tuple[int, int, int]
    bits: Array  # (X, Y, words) uint64
    first: Array  # (X, Y, words) int64: voxels of the mask before each word
    n_voxels: int

    @classmethod
    def from_array(cls, inside: Array) -> Mask:
        """Pack an (X, Y, Z) array of bool."""
        if inside.ndim != 3:
            raise Unsupported(f"the mask has {inside.ndim} dimensions, not 3")
        x, y, z = inside.shape
        packed = np.packbits(inside, axis=-1, bitorder="little")
        octets = np.zeros((x, y, -(-z // 64) * 8), np.uint8)
        octets[..., : packed.shape[-1]] = packed
        bits = octets.view("<u8").astype(np.uint64, copy=False)
        first = np.empty(bits.shape, np.int64)
        n = kernels().count_mask(_address(bits), bits.size, _address(first))
        return cls((x, y, z), bits, first, n)


@dataclass(frozen=True)
class Support:
    """One kernel as a box of rows along z. Use ``from_offsets``.

    Raises ``Unsupported`` where the kernel is longer than 64 voxels along z.
    """

    box: tuple[int, int, int, int, int, int]  # first and length along x, y and z
    patterns: Array  # (R,) uint64: which voxels of each row it holds
    values: Array  # (R, length along z) float32: ones where none were given

    @classmethod
    def from_offsets(cls, offsets: Array, values: Array | float = 1.0) -> Support:
        """Sort the (M, 3) voxel offsets of a kernel, and its (M,) values, into rows."""
        if not len(offsets):
            return cls((0, 0, 0, 0, 0, 0), np.zeros(0, np.uint64), np.zeros((0, 0), np.float32))
        low = offsets.min(axis=0).astype(np.int64)
        x, y, z = (offsets - low).T.astype(np.int64)
        n_x, n_y, n_z = (int(axis.max()) + 1 for axis in (x, y, z))
        if n_z > LONGEST_ROW:
            raise Unsupported(f"the kernel is {n_z} voxels long, more than {LONGEST_ROW}")
        held, table = np.zeros((n_x * n_y, n_z), bool), np.zeros((n_x * n_y, n_z), np.float32)
        held[x * n_y + y, z], table[x * n_y + y, z] = True, values
        patterns = (held << np.arange(n_z, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
        return cls((int(low[0]), n_x, int(low[1]), n_y, int(low[2]), n_z), patterns, table)


@dataclass(frozen=True)
class MaMaps:
    """Maps of studies whose foci may move, while the studies' sizes and kernels stay.

    Parameters
    ----------
    mask : Mask
    supports : sequence of Support
        The different ones.
    offsets : (B + 1,) int64
        Study b owns the foci ``offsets[b]:offsets[b + 1]``.
    kinds : (B,) int64
        Which support each study has.
    """

    mask: Mask
    supports: Sequence[Support]
    offsets: Array
    kinds: Array

    def csr(self, ijk: Array, kind: str, value: float = 1.0) -> tuple[Array, Array, Array]:
        """Return the maps as data (float32), indices (int32) and starts (int64) of CSR rows.

        Parameters
        ----------
        ijk : (P, 3) int32, voxel indices
        kind : {"cover", "count", "max"}
            ``value`` where a focus reaches; ``value`` times the number of foci that do; the
            greatest of the kernels' values.
        """
        problem, _keep = self._problem(ijk, None if kind == "cover" else self._values)
        native, threads = kernels(), available_threads()
        starts = np.zeros(len(self.offsets), np.int64)
        native.ma_sizes(problem, _address(starts) + starts.itemsize, threads)
        np.cumsum(starts, out=starts)
        indices, data = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
        addresses = _address(starts), _address(indices), _address(data)
        native.ma_fill(problem, kind, value, *addresses, threads)
        return data, indices, starts

    def coverage(self, ijk: Array, weights: Array, count: bool = False) -> Array:
        """Sum over studies of weight times cover, or count, on one core: (V,) float32."""
        problem, _keep = self._problem(ijk, None)
        weights = np.ascontiguousarray(weights, np.float64)
        if weights.shape != self.kinds.shape:
            raise ValueError(
                f"weights must be one a study, {self.kinds.shape}, got {weights.shape}"
            )
        out = np.empty(self.mask.n_voxels, np.float32)
        kernels().coverage_statistic(problem, _address(weights), count, _address(out))
        return out

    def ale(self, ijk: Array) -> Array:
        """One minus the product over studies of one minus the greatest value: (V,) float32."""
        problem, _keep = self._problem(ijk, self._log_values)
        out = np.empty(self.mask.n_voxels, np.float32)
        kernels().ale_statistic(problem, _address(out))
        return out

    def _problem(self, ijk: Array, values: Array | None) -> tuple[FociProblem, tuple[Array, ...]]:
        """Describe one call, which keeps addresses only, and the arrays that must outlive it."""
        ijk = np.ascontiguousarray(ijk, np.int32)
        if ijk.shape != (self.offsets[-1], 3):
            raise ValueError(f"ijk must be ({self.offsets[-1]}, 3), got {ijk.shape}")
        offsets = np.ascontiguousarray(self.offsets, np.int64)
        kinds = np.ascontiguousarray(self.kinds, np.int64)
        if offsets.shape != (len(kinds) + 1,):
            raise ValueError(f"offsets must be ({len(kinds) + 1},), got {offsets.shape}")
        if len(kinds) and not 0 <= kinds.min() <= kinds.max() < len(self.supports):
            raise ValueError(f"kinds must name one of {len(self.supports)} supports")
        boxes, patterns = self._tables
        problem: FociProblem = kernels().FociProblem(
            bits=_address(self.mask.bits),
            first=_address(self.mask.first),
            shape=self.mask.shape,
            boxes=_address(boxes),
            patterns=_address(patterns),
            values=0 if values is None else _address(values),
            stride=0 if values is None else values.shape[1],
            ijk=_address(ijk),
            offsets=_address(offsets),
            kinds=_address(kinds),
            n_studies=len(kinds),
        )
        keep = (ijk, offsets, kinds, boxes, patterns)
        return problem, keep if values is None else (*keep, values)

    @cached_property
    def _tables(self) -> tuple[Array, Array]:
        before = np.cumsum([0, *(len(support.patterns) for support in self.supports)])
        boxes = [(*support.box, n) for support, n in zip(self.supports, before)]
        patterns = [np.zeros(0, np.uint64), *(support.patterns for support in self.supports)]
        return np.array(boxes, np.int64).reshape(-1, 7), np.concatenate(patterns)

    @cached_property
    def _values(self) -> Array:
        """Tables of all supports below each other, (R, stride), the stride a multiple of 8."""
        tables = [support.values for support in self.supports]
        stride = -(-max((table.shape[1] for table in tables), default=1) // 8) * 8
        return np.concatenate(
            [np.zeros((0, stride), np.float32)]
            + [np.pad(table, ((0, 0), (0, stride - table.shape[1]))) for table in tables]
        )

    @cached_property
    def _log_values(self) -> Array:
        with np.errstate(divide="ignore"):  # a kernel of one voxel has the value 1
            return -np.log1p(-self._values.astype(np.float64))


def cluster_maxima(mask: Mask, statistic: Array, threshold: float) -> tuple[int, float]:
    """Return the greatest size and the greatest mass of the clusters above a threshold.

    Parameters
    ----------
    mask : Mask
    statistic : (V,) float32
    threshold : float, not negative
        Clusters are voxels above it that share a face; the mass is the sum of what exceeds it.
    """
    statistic = np.ascontiguousarray(statistic, np.float32)
    if statistic.shape != (mask.n_voxels,):
        raise ValueError(f"statistic must be ({mask.n_voxels},), got {statistic.shape}")
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative, got {threshold}")
    where = _address(mask.bits), _address(mask.first), mask.shape
    size, mass = kernels().cluster_maxima(*where, _address(statistic), threshold)
    return size, mass


def _address(array: Array) -> int:
    return int(array.ctypes.data)
