"""The compiled module, or the reason why it is not there."""

from __future__ import annotations

from types import ModuleType

_kernels: ModuleType | None
try:
    from . import _kernels  # type: ignore[no-redef]
except ImportError as error:
    _kernels = None
    _reason = (
        f"the C++ extension is not built ({error}): install a C++17 compiler and run pip again"
    )
else:
    _reason = ""


def why_missing() -> str | None:
    """Say why the compiled module cannot be used; None if it can."""
    return _reason or None


def why_no_cuda() -> str | None:
    """Say why the compiled module has no CUDA kernels; None if it has."""
    if _kernels is None:
        return _reason
    if "cuda" not in _kernels.built_for:
        return "the C++ extension is built without CUDA: install nvcc and run pip again"
    return None


def kernels() -> ModuleType:
    """Return the compiled module.

    Raises
    ------
    ImportError
        If it was not built or does not load.
    """
    if _kernels is None:
        raise ImportError(f"atlas_kernels: {_reason}")
    return _kernels
