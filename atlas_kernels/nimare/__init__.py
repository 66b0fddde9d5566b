"""NiMARE made fast: kernel transformers and estimators that take the place of its own.

``FastMKDAKernel``, ``FastKDAKernel`` and ``FastALEKernel`` give the maps of ``MKDAKernel``,
``KDAKernel`` and ``ALEKernel``; any estimator takes them:
``ALE(kernel_transformer=FastALEKernel())``. ``FastALE`` and ``FastMKDADensity`` are NiMARE's
estimators with these kernels and fast permutations: the same seed gives the same null
distributions. docs/kernels/nimare.md says what equals what.

They subclass NiMARE 0.22 and need the C++ extension. Where either is missing, or a kernel is one
that the C++ code does not draw, NiMARE's own code runs and one warning says why.

Importing this package imports neither NiMARE nor torch: the first name taken from it loads NiMARE,
which loads torch itself where that is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .estimators import FastALE, FastMKDADensity
    from .kernels import FastALEKernel, FastKDAKernel, FastMKDAKernel

__all__ = ["FastALE", "FastALEKernel", "FastKDAKernel", "FastMKDADensity", "FastMKDAKernel"]

_HOMES = {
    name: f"{__name__}.kernels" if name.endswith("Kernel") else f"{__name__}.estimators"
    for name in __all__
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "nimare":
            raise
        raise ImportError(f"{name} needs NiMARE: pip install 'nimare>=0.22,<0.23'") from error
