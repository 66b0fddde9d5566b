"""Whether the fast code can run; if not, one warning says why NiMARE's own does."""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib import import_module

import nimare

from atlas_kernels._extension import why_missing

# What is used of NiMARE beyond its public names, and where it is.
HOOKS = {
    "nimare.meta.utils": ("_kernel_to_sparse_support", "get_ale_kernel", "sphere_kernel_offsets"),
    "nimare.utils": ("_mask_img_to_bool",),
    "nimare.meta.kernel:ALEKernel": ("_prepare_transform", "_transform"),
    "nimare.meta.kernel:KDAKernel": ("_transform",),
    "nimare.meta.cbma.permutation": ("CoveragePlan", "PermutationPlan"),
    "nimare.meta.cbma:ALE": ("_correct_fwe_montecarlo_permutation", "_permutation_plan"),
}
_warned: set[str] = set()


@lru_cache(maxsize=1)
def missing_hook() -> str | None:
    """Name what NiMARE lacks of what is used here."""
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


def can_run() -> bool:
    """Tell whether the fast code can run here at all; warn once if not."""
    reason = why_missing() or missing_hook()
    if reason:
        fall_back(reason)
    return reason is None


def fall_back(reason: str) -> None:
    """Warn, once for each reason."""
    if reason not in _warned:
        _warned.add(reason)
        text = f"atlas_kernels.nimare: NiMARE's own code runs, slower, because {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
