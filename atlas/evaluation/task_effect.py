"""Whether changing the task moves the map to where studies of that task report peaks.

For each category c: the difference decode(z = 0, task = c) - decode(z = 0, no task), everything
else imputed, and its mean over the cells of the held-out peaks of studies whose main task is c:
first over a study's peaks, then over studies. The null permutes the studies' task labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from atlas.inference import Atlas

LEAST = 10  # held-out studies of a category, below which nothing is asked
PERMUTATIONS = 5000


def task_effects(
    atlas: Atlas, counts: np.ndarray, task: np.ndarray, mask: np.ndarray
) -> dict[str, dict[str, float]]:
    """Test every category with enough held-out studies.

    Parameters
    ----------
    atlas : Atlas
        A model that can be conditioned on the task.
    counts : (S, V) array
        Held-out peaks in each cell.
    task : (S, K) array
        Task weights, NaN where unknown.
    mask : (X, Y, Z) bool array

    Returns
    -------
    dict
        By category: ``studies``, ``moved`` (total variation between the two densities, 0 to 1),
        ``effect`` (mean difference at the category's peaks less that at all studies' peaks, in
        units of the uniform density), ``p`` (one-sided).
    """
    known = np.isfinite(task).all(1) & (counts.sum(1) > 0)
    counts, main = counts[known], task[known].argmax(1)
    without = atlas.decode_array(None, {})[0][mask]
    out = {}
    for k, category in enumerate(atlas.field("task").categories):
        members = main == k
        if members.sum() < LEAST:
            continue
        difference = atlas.decode_array(None, {"task": category})[0][mask] - without
        at_peaks = counts @ difference / counts.sum(1)
        out[category] = {
            "studies": int(members.sum()),
            "moved": round(float(np.abs(difference).mean() / 2), 5),
            "effect": round(float(at_peaks[members].mean() - at_peaks.mean()), 5),
            "p": permutation_p(at_peaks, members),
        }
    return out


def permutation_p(
    values: np.ndarray, members: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Return the one-sided p of the members' mean against random sets of as many studies.

    Phipson and Smyth 2010: (1 + draws at least as large) / (1 + draws).
    """
    rng, size = np.random.default_rng(seed), int(members.sum())
    observed = values[members].mean()
    drawn = np.array(
        [values[rng.permutation(len(values))[:size]].mean() for _ in range(permutations)]
    )
    # A map that does not move gives equal means: rounding must not make them differ.
    slack = 1e-12 * max(1.0, float(np.abs(values).max()))
    return round(float(1 + (drawn >= observed - slack).sum()) / (1 + permutations), 5)


def summary(effects: dict[str, dict[str, Any]], moved: float, level: float) -> tuple[str, bool]:
    """Say how many categories move visibly and plausibly, and whether all do.

    Asking all to pass needs no correction for their number (an intersection-union test).
    """
    good = [c for c, e in effects.items() if e["moved"] >= moved and e["p"] < level]
    lost = [c for c in effects if c not in good]
    said = f"{len(good)} of {len(effects)} categories"
    return said + (f"; not {', '.join(lost)}" if lost else ""), not lost
