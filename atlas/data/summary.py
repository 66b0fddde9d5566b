"""What a set of studies looks like, in a few numbers: subset and full set side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas.contracts import Study
from atlas.metadata import TASKS, FieldTable

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def summarise(studies: Sequence[Study]) -> dict[str, Any]:
    """Summarise studies for dataset.json.

    Returns
    -------
    dict
        studies, peaks, mean_peaks, peaks_quantiles (by percent), years (studies by year), tasks
        (share of the studies with a task in which each category is the strongest), coverage (share
        of the studies with each field).
    """
    sizes = np.array([len(s.peaks_mm) for s in studies])
    years = Counter(int(y) for s in studies if isinstance(y := s.metadata.get("year"), float))
    strongest = Counter(
        max(TASKS, key=lambda name: task.get(name, 0.0))
        for s in studies
        if isinstance(task := s.metadata.get("task"), dict)
    )
    return {
        "studies": len(studies),
        "peaks": int(sizes.sum()),
        "mean_peaks": float(sizes.mean()) if len(sizes) else 0.0,
        "peaks_quantiles": {
            f"{100 * q:g}": float(np.quantile(sizes, q)) if len(sizes) else 0.0 for q in _QUANTILES
        },
        "years": {str(year): years[year] for year in sorted(years)},
        "tasks": {task: strongest[task] / max(strongest.total(), 1) for task in TASKS},
        "coverage": {
            name: sum(s.metadata.get(name) is not None for s in studies) / max(len(studies), 1)
            for name in FieldTable().names
        },
    }
