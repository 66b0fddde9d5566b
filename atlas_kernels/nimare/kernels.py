"""NiMARE's kernel transformers, with maps drawn by the C++ code."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from nimare.meta.kernel import ALEKernel, KDAKernel, MKDAKernel
from nimare.nimads import Studyset
from nimare.studyset import normalize_collection
from nimare.utils import mm2vox
from scipy import sparse

from atlas_kernels.ma_maps import MaMaps, Mask, Support, Unsupported

from .fallback import can_run, fall_back

Array = npt.NDArray[Any]

# ---- kernels as supports -------------------------------------------------------------------------


class _LastMask:
    """The mask that was packed last: packing it again would take longer than a map."""

    inside: Array = np.zeros(0, bool)
    packed: Mask

    def pack(self, image: Any) -> Mask:
        from nimare.utils import _mask_img_to_bool

        inside = _mask_img_to_bool(image)
        if not np.array_equal(inside, self.inside):
            self.packed, self.inside = Mask.from_array(inside), inside.copy(order="K")
        return self.packed


_last_mask = threading.local()


def pack_mask(image: Any) -> Mask:
    """Pack a mask image to bits."""
    if not hasattr(_last_mask, "cache"):
        _last_mask.cache = _LastMask()
    packed: Mask = _last_mask.cache.pack(image)
    return packed


@lru_cache(maxsize=64)
def _sphere(zooms: tuple[float, ...], r: float) -> Support:
    from nimare.meta.utils import sphere_kernel_offsets

    return Support.from_offsets(sphere_kernel_offsets(r, zooms))


@lru_cache(maxsize=1024)
def _gaussian(zooms: tuple[float, ...], sample_size: float | None, fwhm: float | None) -> Support:
    from nimare.meta.utils import _kernel_to_sparse_support, get_ale_kernel

    image = SimpleNamespace(header=SimpleNamespace(get_zooms=lambda: zooms))
    _, kernel = get_ale_kernel(image, sample_size=sample_size, fwhm=fwhm)
    return Support.from_offsets(*_kernel_to_sparse_support(kernel))


@dataclass(frozen=True)
class _Studies:
    """Foci put in the order of their studies, which is that of the sorted ids."""

    ids: Array
    offsets: Array
    order: Array | None  # of the rows; None where they are in order already

    @classmethod
    def of(cls, ids: Any) -> _Studies:
        codes, names = pd.factorize(ids, use_na_sentinel=False)
        rank = np.argsort(names)
        place = np.empty(len(names), np.int64)
        place[rank] = np.arange(len(names))
        study = place[codes]
        offsets = np.r_[0, np.cumsum(np.bincount(study, minlength=len(names)))].astype(np.int64)
        in_order = bool((study[1:] >= study[:-1]).all())
        return cls(names[rank], offsets, None if in_order else np.argsort(study, kind="stable"))

    def sort(self, rows: Array) -> Array:
        return rows if self.order is None else rows[self.order]


def _foci(coordinates: pd.DataFrame, studies: _Studies) -> Array:
    columns = [coordinates[axis].to_numpy().astype(np.int32, copy=False) for axis in "ijk"]
    return np.ascontiguousarray(studies.sort(np.column_stack(columns)))


def _to_table(studyset: Any) -> tuple[pd.DataFrame, Any]:
    """Give the ids and voxels of a Studyset's foci, all that most kernels need, and its masker."""
    studyset = normalize_collection(studyset)
    masker, coordinates = studyset.masker, studyset.coordinates
    xyz = np.column_stack([coordinates[axis].to_numpy() for axis in "xyz"])
    i, j, k = mm2vox(xyz, masker.mask_img.affine).T
    return pd.DataFrame({"id": coordinates["id"], "i": i, "j": j, "k": k}), masker


def _csr(maps: MaMaps, ijk: Array, kind: str, value: float = 1.0) -> sparse.csr_matrix:
    data, indices, starts = maps.csr(ijk, kind, value)
    shape = (len(maps.kinds), maps.mask.n_voxels)
    matrix = sparse.csr_matrix((data, indices, starts), shape=shape, dtype=np.float32)
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


# ---- kernel transformers -------------------------------------------------------------------------


class _FastSpheres(KDAKernel):
    """What the two sphere kernels share."""

    def transform(self, dataset: Any, masker: Any = None, return_type: str = "image") -> Any:
        """Return the modeled activation maps, as ``KernelTransformer.transform`` does."""
        if masker is None and isinstance(dataset, Studyset):
            dataset, masker = _to_table(dataset)
        return super().transform(dataset, masker, return_type)

    def _transform(self, mask: Any, coordinates: pd.DataFrame, return_type: str = "sparse") -> Any:
        # KDA has no summary across studies: NiMARE says so.
        if return_type in _SPHERES[self._sum_overlap] and can_run():
            try:
                return self._fast(mask, coordinates, return_type)
            except Unsupported as reason:
                fall_back(str(reason))
        return super()._transform(mask, coordinates, return_type)

    def _fast(self, mask: Any, coordinates: pd.DataFrame, return_type: str) -> Any:
        support = _sphere(tuple(mask.header.get_zooms()), self.r)
        studies = _Studies.of(coordinates["id"].values)
        kinds = np.zeros(len(studies.ids), np.int64)
        maps = MaMaps(pack_mask(mask), [support], studies.offsets, kinds)
        ijk = _foci(coordinates, studies)
        if return_type == "summary_array":
            weights = np.full(len(studies.ids), np.int32(self.value), np.float64)
            return maps.coverage(ijk, weights).astype(np.int32), studies.ids
        kind = "count" if self._sum_overlap else "cover"
        return _csr(maps, ijk, kind, float(np.float32(self.value))), studies.ids


_SPHERES = {False: ("sparse", "summary_array"), True: ("sparse",)}  # by whether overlaps are summed


class FastKDAKernel(_FastSpheres):
    """``nimare.meta.kernel.KDAKernel``, faster; parameters and results are the same."""

    _sum_overlap = True


class FastMKDAKernel(_FastSpheres, MKDAKernel):
    """``nimare.meta.kernel.MKDAKernel``, faster; parameters and results are the same."""

    _sum_overlap = False


class FastALEKernel(ALEKernel):
    """``nimare.meta.kernel.ALEKernel``, faster; parameters and results are the same."""

    def transform(self, dataset: Any, masker: Any = None, return_type: str = "image") -> Any:
        """Return the modeled activation maps, as ``KernelTransformer.transform`` does.

        That looks up sample sizes, study by study, also where all studies have one width.
        """
        one_width = self.fwhm is not None or self.sample_size is not None
        if one_width and masker is None and isinstance(dataset, Studyset):
            dataset, masker = _to_table(dataset)
        return super().transform(dataset, masker, return_type)

    def _transform(self, mask: Any, coordinates: pd.DataFrame, return_type: str = "sparse") -> Any:
        if can_run() and self._is_usual(coordinates):
            try:
                return self._fast(mask, coordinates)
            except Unsupported as reason:
                fall_back(str(reason))
        return super()._transform(mask, coordinates, return_type)

    def _is_usual(self, coordinates: pd.DataFrame) -> bool:
        """Tell whether the widths are plain numbers: if not, NiMARE says what is wrong."""
        if self.fwhm is not None:
            return bool(np.isfinite(self.fwhm))
        if self.sample_size is not None:
            return isinstance(self.sample_size, int)
        if "sample_size" not in coordinates or coordinates["sample_size"].dtype.kind not in "iuf":
            return False
        sizes = coordinates["sample_size"].to_numpy()
        return bool(np.isfinite(sizes).all() and (sizes > 0).all())

    def _fast(self, mask: Any, coordinates: pd.DataFrame) -> tuple[sparse.csr_matrix, Array]:
        zooms = tuple(mask.header.get_zooms())
        studies = _Studies.of(coordinates["id"].values)
        kinds = np.zeros(len(studies.ids), np.int64)
        if self.fwhm is not None or self.sample_size is not None:
            supports = [_gaussian(zooms, self.sample_size, self.fwhm)]
        else:
            # As NiMARE: a study has the sample size of its first focus.
            sizes = studies.sort(coordinates["sample_size"].to_numpy())[studies.offsets[:-1]]
            unique, kinds = np.unique(sizes, return_inverse=True)
            supports = [_gaussian(zooms, size, None) for size in unique]
        kinds = np.ascontiguousarray(kinds, np.int64)
        maps = MaMaps(pack_mask(mask), supports, studies.offsets, kinds)
        return _csr(maps, _foci(coordinates, studies), "max"), studies.ids
