"""The mission's criteria, held against a run's results: a list of name, value, bar, pass.

``pass`` is None where a criterion cannot be asked: no baseline given, no year in the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas import space
from atlas.errors import AtlasError
from atlas.inference import Atlas

from . import task_effect

YEAR_MARGIN = 0.10  # of the adversary's balanced accuracy over chance
YEARS = (1990, 2030)
RATE_MARGIN = 0.10  # within which two rates count as equal
MOVED, LEVEL = 0.02, 0.05

Criterion = dict[str, Any]


def judge(
    atlas: Atlas,
    results: dict[str, Any],
    effects: dict[str, dict[str, float]] | None,
    baseline: dict[str, Any] | None = None,
) -> list[Criterion]:
    """Return every criterion.

    Parameters
    ----------
    atlas : Atlas
    results : dict
        What `evaluate` found so far: ``methods``, ``latent``, ``year``.
    effects : dict or None
        From `task_effects`; None for a model without a task.
    baseline : dict, optional
        The same results of the baseline model, on the same studies.
    """
    return [
        *_beside_baseline(results, baseline),
        _adversary(results["year"]),
        _years(atlas),
        _task(effects),
        _missing(atlas),
    ]


def of_split(
    atlas: Atlas, counts: np.ndarray, metadata: np.ndarray, observed: np.ndarray
) -> dict[str, dict[str, float]] | None:
    """Return the task effects on held-out studies, or None for a model without a task."""
    if not _can(atlas, "task"):
        return None
    table = atlas.card.table()
    part = table.slices["task"]
    task = np.where(observed[:, part] > 0, metadata[:, part], np.nan)
    mask = space.load(atlas.card.data.resolution).mask
    return task_effect.task_effects(atlas, counts, task, mask)


def _criterion(name: str, value: str, bar: str, passed: bool | None) -> Criterion:
    return {"name": name, "value": value, "bar": bar, "pass": passed}


def _beside_baseline(results: dict[str, Any], baseline: dict[str, Any] | None) -> list[Criterion]:
    """Held-out MSE below and bits above the baseline's, said together with the rates."""
    names = ("held-out MSE against the baseline VAE", "held-out bits against the baseline VAE")
    if baseline is None:
        return [_criterion(name, "no --baseline given", "better", None) for name in names]
    ours, theirs = (r["methods"]["atlas"] for r in (results, baseline))
    rate, other = (r["latent"]["kl_nats"] for r in (results, baseline))
    equal = abs(rate - other) <= RATE_MARGIN * max(other, 1e-9)
    said = f"KL {rate:.1f} and {other:.1f} nats" + ("" if equal else ": not within 10 %")
    out = []
    for name, key, sign in zip(names, ("mse", "bits_half"), (-1, 1)):
        mine, yours = ours[key][0], theirs[key][0]
        value = f"{mine:.5f}, baseline {yours:.5f}; {said}"
        out.append(_criterion(name, value, "better", sign * (mine - yours) > 0))
    return out


def _adversary(year: dict[str, Any] | None) -> Criterion:
    name, bar = "year adversary", f"at most {100 * YEAR_MARGIN:.0f} points over chance"
    if year is None:
        return _criterion(name, "no year in this data set", bar, None)
    accuracy, chance = year["balanced_accuracy"], year["chance"]
    said = f"balanced accuracy {accuracy:.3f}, chance {chance:.3f}"
    return _criterion(name, said, bar, accuracy - chance <= YEAR_MARGIN)


def _years(atlas: Atlas) -> Criterion:
    """Decode the ends of the range; those outside of training must be said to be extrapolated."""
    name = f"year accepts {YEARS[0]} to {YEARS[1]}"
    bar = "finite maps; 'extrapolated' said outside the trained years, and only there"
    if not _can(atlas, "year"):
        return _criterion(name, "this model has no year", bar, None)
    used = atlas.card.used["year"]
    low, high = used.low or YEARS[0], used.high or YEARS[1]
    asked = {year: not low <= year <= high for year in (*YEARS, low, high)}
    wrong = [
        f"{year:g}" for year, outside in asked.items() if not _year_is_fine(atlas, year, outside)
    ]
    said = f"trained on {low:g} to {high:g}" + (f"; wrong: {', '.join(wrong)}" if wrong else "")
    return _criterion(name, said, bar, not wrong)


def _year_is_fine(atlas: Atlas, year: float, outside: bool) -> bool:
    try:
        maps = atlas.decode(None, {"year": year})
    except AtlasError:
        return False
    return ("year" in maps.extrapolated) == outside and _finite(maps.mean.get_fdata())


def _task(effects: dict[str, dict[str, float]] | None) -> Criterion:
    name = "a task category moves the map to its own peaks"
    bar = f"every category: total variation at least {MOVED:g}, permutation p < {LEVEL:g}"
    if not effects:
        why = "this model has no task" if effects is None else "too few held-out studies a category"
        return _criterion(name, why, bar, None)
    said, passed = task_effect.summary(effects, MOVED, LEVEL)
    return _criterion(name, said, bar, passed)


def _missing(atlas: Atlas) -> Criterion:
    """Encode and decode with nothing known, with each field missing, with each alone."""
    name, bar = "missing metadata are accepted", "every pattern gives a finite map"
    names = [field.name for field in atlas.card.table()]
    usable = [n for n in names if n != "fwhm" and _can(atlas, n)]
    typical = {n: _typical(atlas, n) for n in usable}
    patterns = [{}, typical]
    patterns += [{n: typical[n]} for n in usable]
    patterns += [{**typical, n: None} for n in usable]
    good = sum(_accepts(atlas, pattern) for pattern in patterns)
    said = f"{good} of {len(patterns)} patterns of {len(usable)} fields"
    return _criterion(name, said, bar, good == len(patterns))


def _accepts(atlas: Atlas, metadata: dict[str, Any]) -> bool:
    try:
        code = atlas.encode(np.array([[-40.0, -22.0, 56.0], [0.0, 2.0, 40.0]]), metadata)
        maps = [atlas.decode_array(z, metadata)[0] for z in (code, None)]
    except AtlasError:
        return False
    return all(map(_finite, maps))


def _typical(atlas: Atlas, name: str) -> Any:
    """Return a legal value: the middle of the trained range, equal weights."""
    field = atlas.field(name)
    if field.kind == "category":
        return dict.fromkeys(field.categories, 1.0)
    used = atlas.card.used[name]
    return ((used.low or field.low) + (used.high or field.high)) / 2


def _can(atlas: Atlas, name: str) -> bool:
    try:
        atlas.field(name)
    except AtlasError:
        return False
    return True


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


def verdict(criterion: Criterion) -> str:
    """Say PASS, FAIL, or that a criterion cannot be asked."""
    return "n/a" if criterion["pass"] is None else "PASS" if criterion["pass"] else "FAIL"


def lines(criteria: Sequence[Criterion]) -> list[str]:
    """Return one line a criterion, for people."""
    return [f"{verdict(c):4}  {c['name']}: {c['value']} ({c['bar']})" for c in criteria]
