"""How many threads a kernel may use where the caller does not say."""

from __future__ import annotations

import os


def available_threads() -> int:
    """Count the cores that this process may use, where the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
