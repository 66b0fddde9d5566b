"""Values of files that nobody vouches for, as one line of text or a finite number."""

from __future__ import annotations

import math
import reprlib

import numpy as np

SPACES = {"MNI": "MNI", "TAL": "TAL", "TALAIRACH": "TAL", "": "UNKNOWN"}


def text(value: object) -> str:
    """Return text on one line that UTF-8 can hold; "" for what is no text or number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    known = isinstance(value, str | int | float | np.integer) and not isinstance(value, bool)
    if not known or value != value:
        return ""
    line = " ".join(str(value).encode("utf-8", "replace").decode().split())
    return "" if line == "None" else line  # NeuroStore writes "None" where null was meant


def number(value: object) -> float | None:
    """Return a finite number, also one written as text; None for anything else."""
    try:
        found = float(text(value))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def show(value: object) -> str:
    """Return a short form of anything, for a message."""
    return text(reprlib.repr(value))
