"""Which counterfactual to show of a model: a study of one task, moved to the other."""

from __future__ import annotations

from collections import Counter

from atlas.data.dataset import Dataset
from atlas.inference import Atlas, Counterfactual
from atlas.metadata import Value


def example_counterfactual(
    atlas: Atlas, dataset: Dataset, split: str
) -> tuple[Counterfactual, str, dict[str, Value]] | None:
    """Move the largest held-out study of the commonest task to the second commonest.

    Where no task is known, the sample size is doubled.

    Returns
    -------
    (Counterfactual, study id, changes), or None for a model with neither field.
    """
    rows = sorted(dataset.rows(split), key=lambda r: -len(dataset.peaks(r)))
    tasks = Counter(t for r in dataset.rows("train") if (t := _main_task(dataset, r)))
    common = [task for task, _ in tasks.most_common(2)]
    for row in rows:
        n = dataset.metadata[row].get("n")
        if len(common) == 2 and _main_task(dataset, row) == common[0]:
            changes: dict[str, Value] = {"task": {common[1]: 1.0}}
        elif not common and isinstance(n, float):
            changes = {"n": 2 * n}
        else:
            continue
        metadata = atlas.usable(dataset.metadata[row])
        code = atlas.encode(dataset.peaks(row), metadata)
        return atlas.counterfactual(code, metadata, changes), dataset.ids[row], changes
    return None


def _main_task(dataset: Dataset, row: int) -> str | None:
    weights = dataset.metadata[row].get("task")
    return max(weights, key=weights.__getitem__) if isinstance(weights, dict) else None


def describe_changes(changes: dict[str, Value]) -> str:
    """Say changed metadata in words: ``task attention control``, ``n 40``."""
    words = []
    for name, value in changes.items():
        said = ", ".join(value).replace("_", " ") if isinstance(value, dict) else f"{value:g}"
        words.append(f"{name} {said}")
    return "; ".join(words)
