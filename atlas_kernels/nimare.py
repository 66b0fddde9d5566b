"""NiMARE made fast: kernel transformers and estimators that take the place of its own.

``FastMKDAKernel``, ``FastKDAKernel`` and ``FastALEKernel`` give the maps of ``MKDAKernel``,
``KDAKernel`` and ``ALEKernel``; any estimator takes them: ``ALE(kernel_transformer=FastALEKernel())``.
``FastALE`` and ``FastMKDADensity`` are NiMARE's estimators with these kernels and fast permutations:
the same seed gives the same null distributions. docs/kernels/nimare.md says what equals what.

They subclass NiMARE 0.22 and need the C++ extension. Where either is missing, or a kernel is one that
the C++ code does not draw, NiMARE's own code runs and one warning says why. Imports no torch.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import nimare
import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Memory
from nimare.meta.cbma import ALE, MKDADensity
from nimare.meta.kernel import ALEKernel, KDAKernel, MKDAKernel
from nimare.nimads import Studyset
from nimare.studyset import normalize_collection
from scipy import ndimage, sparse

from atlas_kernels._extension import why_missing
from atlas_kernels.ma_maps import MaMaps, Mask, Support, Unsupported, cluster_maxima

__all__ = ["FastALE", "FastALEKernel", "FastKDAKernel", "FastMKDADensity", "FastMKDAKernel"]

Array = npt.NDArray[Any]

# What is used of NiMARE beyond its public names, and where it is.
HOOKS = {
    "nimare.meta.utils": ("_kernel_to_sparse_support", "get_ale_kernel", "sphere_kernel_offsets"),
    "nimare.utils": ("_mask_img_to_bool",),
    "nimare.meta.kernel:ALEKernel": ("_prepare_transform", "_transform"),
    "nimare.meta.kernel:KDAKernel": ("_transform",),
    "nimare.meta.cbma.permutation": ("CoveragePlan", "PermutationPlan"),
    "nimare.meta.cbma:ALE": ("_correct_fwe_montecarlo_permutation", "_permutation_plan"),
}
SIX_NEIGHBOURS = ndimage.generate_binary_structure(3, 1)
_warned: set[str] = set()


# ---- whether the fast code can run ---------------------------------------------------------------


@lru_cache(maxsize=1)
def _missing_hook() -> str | None:
    for place, names in HOOKS.items():
        module, _, attribute = place.partition(":")
        try:
            owner = import_module(module)
        except ImportError:
            return f"NiMARE {nimare.__version__} has no {module}"
        owner = getattr(owner, attribute) if attribute else owner
        for name in names:
            if not hasattr(owner, name):
                return f"NiMARE {nimare.__version__} has no {place}.{name}"
    return None


def _can_run() -> bool:
    """Tell whether the fast code can run here at all; warn once if not."""
    reason = why_missing() or _missing_hook()
    if reason:
        _fall_back(reason)
    return reason is None


def _fall_back(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        text = f"atlas_kernels.nimare: NiMARE's own code runs, slower, because {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


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


def _mask(image: Any) -> Mask:
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
    def of(cls, ids: Array) -> _Studies:
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
    ijk = coordinates[["i", "j", "k"]].values.astype(np.int32, copy=False)
    return np.ascontiguousarray(studies.sort(ijk))


def _csr(maps: MaMaps, ijk: Array, kind: str, value: float = 1.0) -> sparse.csr_matrix:
    data, indices, starts = maps.csr(ijk, kind, value)
    shape = (len(maps.kinds), maps.mask.n_voxels)
    matrix = sparse.csr_matrix((data, indices, starts), shape=shape, dtype=np.float32)
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


# ---- kernel transformers -------------------------------------------------------------------------


class _FastSpheres(KDAKernel):
    """What the two sphere kernels share."""

    def _transform(self, mask: Any, coordinates: pd.DataFrame, return_type: str = "sparse") -> Any:
        # KDA has no summary across studies: NiMARE says so.
        if return_type in _SPHERES[self._sum_overlap] and _can_run():
            try:
                return self._fast(mask, coordinates, return_type)
            except Unsupported as reason:
                _fall_back(str(reason))
        return super()._transform(mask, coordinates, return_type)

    def _fast(self, mask: Any, coordinates: pd.DataFrame, return_type: str) -> Any:
        support = _sphere(tuple(mask.header.get_zooms()), self.r)
        studies = _Studies.of(coordinates["id"].values)
        kinds = np.zeros(len(studies.ids), np.int64)
        maps = MaMaps(_mask(mask), [support], studies.offsets, kinds)
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
        """Return the modeled activation maps of a Studyset, a Dataset or a DataFrame.

        As ``KernelTransformer.transform``, which looks up sample sizes, study by study, also where
        one width was given for all: a table of coordinates spares it that.
        """
        one_width = self.fwhm is not None or self.sample_size is not None
        if one_width and masker is None and isinstance(dataset, Studyset):
            dataset = normalize_collection(dataset)
            masker, dataset = dataset.masker, dataset.coordinates[["id", "x", "y", "z"]]
        return super().transform(dataset, masker, return_type)

    def _transform(self, mask: Any, coordinates: pd.DataFrame, return_type: str = "sparse") -> Any:
        if _can_run() and self._is_usual(coordinates):
            try:
                return self._fast(mask, coordinates)
            except Unsupported as reason:
                _fall_back(str(reason))
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
        maps = MaMaps(_mask(mask), supports, studies.offsets, kinds)
        return _csr(maps, _foci(coordinates, studies), "max"), studies.ids


# ---- permutations --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FastPlan:
    """NiMARE's plan of a permutation run, with the statistic computed by the C++ code."""

    plan: Any
    maps: MaMaps
    is_ale: bool

    @property
    def n_foci(self) -> int:
        return int(self.plan.n_foci)

    @property
    def n_groups(self) -> int:
        return int(self.plan.n_groups)

    def summary_stat(self, ijk: Array, weights: Array | None = None) -> Array:
        """Return the statistic of one permutation, as NiMARE's plans do."""
        if self.is_ale:
            return self.maps.ale(ijk)
        weights = np.ones(self.n_groups) if weights is None else weights
        value = float(self.plan.value)
        return self.maps.coverage(ijk, weights * value, count=bool(self.plan.sum_overlap))


def _fast_plan(plan: Any, mask: Any) -> _FastPlan:
    """Restate a ``PermutationPlan`` or a ``CoveragePlan``. Raises Unsupported where it cannot be."""
    from nimare.meta.cbma.permutation import PermutationPlan

    is_ale = isinstance(plan, PermutationPlan)
    if is_ale:
        spans = zip(plan.kernel_starts[:-1], plan.kernel_starts[1:])
        parts = [(plan.kernel_offsets[a:b], plan.kernel_values[a:b]) for a, b in spans]
        kinds = np.ascontiguousarray(plan.group_kernel, np.int64)
    else:
        parts = [(plan.kernel_offsets,)]
        kinds = np.zeros(plan.n_groups, np.int64)
    supports = [Support.from_offsets(*part) for part in parts]
    offsets = np.ascontiguousarray(plan.offsets, np.int64)
    maps = MaMaps(_mask(mask), supports, offsets, kinds)
    return _FastPlan(plan, maps, is_ale)


class _FastPermutations:
    """Mixed into a NiMARE estimator: the same permutations, each of them faster."""

    # The C++ code leaves Python's lock: threads share what processes would copy.
    _permutation_parallel_backend = "threading"

    def _fit(self, dataset: Any) -> Any:
        # NiMARE keeps the plan of an earlier fit, also where the foci are others.
        for name in ("_permutation_plan_", "_fast_plan_"):
            self.__dict__.pop(name, None)
        return super()._fit(dataset)  # type: ignore[misc]

    def _permutation_plan(self, iter_df: pd.DataFrame) -> Any:
        known = self.__dict__.get("_fast_plan_")
        if known is None:
            known = super()._permutation_plan(iter_df)  # type: ignore[misc]
            if known is not None and _can_run():
                try:
                    known = _fast_plan(known, self.masker.mask_img)  # type: ignore[attr-defined]
                except Unsupported as reason:
                    _fall_back(str(reason))
            self.__dict__["_fast_plan_"] = known
        return known

    def _correct_fwe_montecarlo_permutation(
        self,
        iter_ijk: Array,
        iter_df: pd.DataFrame,
        conn: Array,
        voxel_thresh: Any,
        vfwe_only: bool,
        mask_arr: Array | None = None,
    ) -> tuple[Any, Any, Any]:
        plan = self._permutation_plan(iter_df)
        # NiMARE compares in float64 where the threshold is one of NumPy's; other cases are left to it.
        usual = isinstance(voxel_thresh, (np.float64, np.integer)) and voxel_thresh >= 0
        if vfwe_only or not (
            isinstance(plan, _FastPlan) and usual and np.array_equal(conn, SIX_NEIGHBOURS)
        ):
            return super()._correct_fwe_montecarlo_permutation(  # type: ignore[misc]
                iter_ijk, iter_df, conn, voxel_thresh, vfwe_only, mask_arr
            )
        statistic = self._compute_permutation_summarystat(iter_ijk, iter_df)  # type: ignore[attr-defined]
        size, mass = cluster_maxima(plan.maps.mask, statistic, float(voxel_thresh))
        return np.max(statistic), size, mass


def _instance(kernel: Any, options: dict[str, Any], **memory: Any) -> Any:
    """Make the kernel that a class and ``kernel__`` options name, as NiMARE would.

    Its estimators take a class other than their default for one that they are not made for.
    """
    if not isinstance(kernel, type):
        return kernel
    given = {k: options.pop(k) for k in list(options) if k.startswith("kernel__")}
    given = {name.removeprefix("kernel__"): value for name, value in given.items()}
    return kernel(**(given if given.keys() & memory.keys() else memory | given))


class FastALE(_FastPermutations, ALE):
    """``nimare.meta.cbma.ALE`` with ``FastALEKernel`` and faster Monte Carlo permutations.

    Parameters and results are those of ALE; the same ``random_state`` gives the same distributions.
    """

    def __init__(
        self,
        kernel_transformer: Any = FastALEKernel,
        null_method: str = "approximate",
        n_iters: int | None = 5000,
        memory: Memory = Memory(location=None, verbose=0),  # noqa: B008  as ALE's
        memory_level: int = 0,
        n_cores: int = 1,
        random_state: int | None = None,
        **kwargs: Any,
    ) -> None:
        kernel = _instance(kernel_transformer, kwargs, memory=memory, memory_level=memory_level)
        super().__init__(
            kernel, null_method, n_iters, memory, memory_level, n_cores, random_state, **kwargs
        )


class FastMKDADensity(_FastPermutations, MKDADensity):
    """``nimare.meta.cbma.MKDADensity`` with ``FastMKDAKernel`` and faster Monte Carlo permutations.

    Parameters and results are those of MKDADensity; the same ``random_state`` gives the same
    distributions.
    """

    def __init__(
        self,
        kernel_transformer: Any = FastMKDAKernel,
        null_method: str = "approximate",
        n_iters: int | None = 5000,
        weighting: Any = None,
        n_histogram_bins: int = 100_000,
        memory: Memory = Memory(location=None, verbose=0),  # noqa: B008  as MKDADensity's
        memory_level: int = 0,
        n_cores: int = 1,
        random_state: int | None = None,
        **kwargs: Any,
    ) -> None:
        kernel = _instance(kernel_transformer, kwargs, memory=memory, memory_level=memory_level)
        super().__init__(
            kernel, null_method, n_iters, weighting, n_histogram_bins, memory, memory_level,
            n_cores, random_state, **kwargs,
        )  # fmt: skip
