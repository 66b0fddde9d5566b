"""NiMARE's estimators, with Monte Carlo permutations computed by the C++ code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Memory
from nimare.meta.cbma import ALE, MKDADensity
from scipy import ndimage

from atlas_kernels.ma_maps import MaMaps, Support, Unsupported, cluster_maxima

from .fallback import can_run, fall_back
from .kernels import FastALEKernel, FastMKDAKernel, pack_mask

Array = npt.NDArray[Any]
SIX_NEIGHBOURS = ndimage.generate_binary_structure(3, 1)


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
    """Restate a ``PermutationPlan`` or ``CoveragePlan``; Unsupported where it cannot be."""
    from nimare.meta.cbma.permutation import PermutationPlan

    is_ale = isinstance(plan, PermutationPlan)
    if is_ale:
        spans = zip(plan.kernel_starts[:-1], plan.kernel_starts[1:])
        parts = [(plan.kernel_offsets[a:b], plan.kernel_values[a:b]) for a, b in spans]
        kinds = np.ascontiguousarray(plan.group_kernel, np.int64)
    else:
        parts = [(plan.kernel_offsets, 1.0)]
        kinds = np.zeros(plan.n_groups, np.int64)
    supports = [Support.from_offsets(*part) for part in parts]
    offsets = np.ascontiguousarray(plan.offsets, np.int64)
    maps = MaMaps(pack_mask(mask), supports, offsets, kinds)
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
            if known is not None and can_run():
                try:
                    known = _fast_plan(known, self.masker.mask_img)  # type: ignore[attr-defined]
                except Unsupported as reason:
                    fall_back(str(reason))
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
        # NiMARE compares in float64 where the threshold is one of NumPy's; the rest is left to it.
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
