"""Which implementation of an op runs, and why the others do not.

Each op has a TABLE of implementations in its ``op.py``, fastest first. A new implementation is one
row there; a new op is one row in OPS here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from . import _extension

OPS = ("splat", "group_norm_film", "dense_block")
FOR_ARRAYS = ("splat",)  # those that atlas_kernels.numpy has too
ENVIRONMENT = "ATLAS_KERNELS_BACKEND"
# Triton's own switch: its kernels run on CPU tensors, slowly, as Python. For tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes
    ----------
    name : str
        What ``backend=`` calls it.
    forward, backward : callable
        Same arguments in every row of a table.
    why_not : callable
        Returns the reason why this machine cannot run it, None if it can.
    devices : tuple of str, or None
        Device types whose tensors it takes; None for all.
    note : str
        A few words for the table that ``python -m atlas_kernels`` prints.
    cannot : callable
        Given the call, returns what about it this implementation does not do, None if nothing.
    checks_values : bool
        It refuses bad numbers itself, with a ValueError, before it writes anything.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    why_not: Callable[[], str | None]
    devices: tuple[str, ...] | None = None
    note: str = ""
    cannot: Callable[[Any], str | None] = lambda call: None
    checks_values: bool = False

    def refuses(self, device: str, call: Any = None) -> str | None:
        """Say why ``call``, with tensors on ``device``, cannot be given to it; None if it can."""
        if self.devices is not None and device not in self.devices:
            return f"it takes {' and '.join(self.devices)} tensors, these are on {device}"
        return self.why_not() or self.cannot(call)


@cache
def why_no_device() -> str | None:
    """Say why CUDA kernels cannot be launched; None if they can."""
    import torch

    return None if torch.cuda.is_available() else "there is no CUDA device"


@cache
def why_no_triton() -> str | None:
    """Say why Triton kernels cannot be launched; None if they can."""
    if not find_spec("triton"):
        return "triton is not installed"
    return None if INTERPRETED else why_no_device()


def choose(
    op: str, table: Sequence[Implementation], backend: str, device: str, call: Any = None
) -> Implementation:
    """Return the implementation that ``backend`` names, or for "auto" the first that can run.

    ``call`` is handed to ``Implementation.cannot``.

    Raises
    ------
    ValueError
        If no implementation has that name.
    RuntimeError
        If the named implementation cannot run, or none can; the message has the reasons.
    """
    if backend == "auto":
        backend = _wanted(table)
    if backend != "auto":
        return _named(op, table, backend, device, call)
    refusals = []
    for row in table:
        reason = row.refuses(device, call)
        if reason is None:
            _warn_if_slower(op, row, table, device)
            return row
        refusals.append(f"{row.name}: {reason}")
    raise RuntimeError(f"{op}: no implementation runs here. " + "; ".join(refusals))


def _named(
    op: str, table: Sequence[Implementation], name: str, device: str, call: Any
) -> Implementation:
    for row in table:
        if row.name == name:
            reason = row.refuses(device, call)
            if reason is None:
                return row
            raise RuntimeError(f"{op}: backend {name!r} cannot run: {reason}")
    names = ", ".join(["auto", *(row.name for row in table)])
    raise ValueError(f"{op}: backend must be one of {names} (or {ENVIRONMENT}), got {name!r}")


def _wanted(table: Sequence[Implementation]) -> str:
    """Return what the environment names; "auto" also where only other ops have it (triton)."""
    name = os.environ.get(ENVIRONMENT) or "auto"
    if name == "auto" or any(row.name == name for row in table):
        return name
    others = {row["implementation"] for row in implementations()}
    return "auto" if name in others else name


def _warn_if_slower(
    op: str, chosen: Implementation, table: Sequence[Implementation], device: str
) -> None:
    """Say so, once, if a faster row takes these tensors and only this machine is in its way."""
    for row in table:
        if row is chosen:
            return
        reason = row.why_not() if row.devices is None or device in row.devices else None
        if reason:
            warnings.warn(
                f"{op} runs on the slower {chosen.name!r} implementation: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            return


def implementations() -> list[dict[str, str | None]]:
    """List every op's implementations and what keeps each from running on this machine.

    Returns
    -------
    list of dict
        One row each, in order of preference: ``op``, ``implementation``, ``devices``, ``note`` and
        ``why_not`` (None where it can run).
    """
    rows: list[dict[str, str | None]] = []
    for op in OPS:
        rows += _torch_rows(op)
        if op in FOR_ARRAYS:
            note = f"atlas_kernels.numpy.{op}, no torch needed"
            rows.append(_row(op, "numpy", "arrays", note, _extension.why_missing()))
    return rows


def _torch_rows(op: str) -> list[dict[str, str | None]]:
    if find_spec("torch") is None:
        return [_row(op, "torch", "tensors", "", "torch is not installed")]
    table: Sequence[Implementation] = import_module(f"atlas_kernels.{op}.op").TABLE
    return [
        _row(op, row.name, ", ".join(row.devices or ("any",)), row.note, row.why_not())
        for row in table
    ]


def _row(op: str, name: str, devices: str, note: str, why_not: str | None) -> dict[str, str | None]:
    return {"op": op, "implementation": name, "devices": devices, "note": note, "why_not": why_not}
