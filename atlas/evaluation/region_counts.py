"""Task (d) of the benchmark: numbers of hidden peaks in regions, and how sure one may be of them.

Half of a study's peaks are given; predicted is the law of how many of the others lie in each of 100
regions that hold the same mass of the training studies' mean density. Every row, peer or run, is
recalibrated alike (`count_law.fit`): on validation studies alone, or on a half of them where the
other half is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from atlas import metrics, progress, space
from atlas.errors import AtlasError

from . import count_law
from .count_law import CountLaw, Scores
from .protocol import RESOLUTION, Benchmark, Predictor, region_draws
from .regions import LOBES, equal_mass, lobes, pool
from .uncertainty import LEVELS

REGIONS, DRAWS = 100, 200
FIT_STUDIES, FIT_DRAWS = 400, 25  # recalibration has four numbers to find
EXPECTED = (0.1, 0.3, 1.0)  # peaks, between the groups by what a row expects of a region
BASE = "mean map"  # the row that cuts the regions, and that gains are over
_BLOCK, _PIT_BINS = 64, 20


def score(
    bench: Benchmark,
    peers: Mapping[str, Predictor],
    predictors: Sequence[Predictor],
    split: str,
    studies: int | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Score peers and predictors.

    Parameters
    ----------
    peers : dict
        Predictor by the name of its row, `BASE` among them.
    studies : int, optional
        Score so many studies, drawn by chance; by default all.
    draws : int
        Densities that a predictor with `samples` is asked for.

    Returns
    -------
    dict
        "studies", "regions" (lobe and mass) and "peers", "runs": row -> see `_row`.
    """
    clash = [p.name for p in predictors if p.name in peers]
    if clash:
        raise AtlasError(f"{clash[0]!r}: a peer has this name; rename the run's folder")
    fitted, scored = _studies(bench, split, studies)
    base = np.exp(peers[BASE].predict(bench.show(scored[:1], "d"))[0])
    region_V = equal_mass(base, space.load(RESOLUTION).centres_mm, REGIONS)
    lobe = lobes(region_V, base, RESOLUTION)
    even = float((bench.sizes[bench.rows("train")] % 2 == 0).mean())
    groups = _groups(bench, scored, lobe)
    rows: dict[str, dict[str, Any]] = {}
    reference: Scores | None = None
    for name, predictor in {**peers, **{p.name: p for p in predictors}}.items():
        to_fit = _data(bench, predictor, fitted, region_V, min(draws, FIT_DRAWS), name)
        law = count_law.fit(*to_fit, even)
        data = _data(bench, predictor, scored, region_V, draws, name)
        found = count_law.measure(law, *data)
        reference = reference or found
        raw = count_law.measure(CountLaw(even=even), *data)
        rows[name] = _row(law, found, raw, reference, groups, data[0].shape[1])
    return {
        "studies": len(scored),
        "recalibrated_on": len(fitted),
        "regions": {"lobe": lobe, "mass": np.round(pool(base[None], region_V)[0], 5).tolist()},
        "peers": {name: rows[name] for name in peers},
        "runs": {p.name: rows[p.name] for p in predictors},
    }


def _studies(bench: Benchmark, split: str, studies: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Choose the studies to recalibrate on and those to score; never one for both."""
    order = np.random.default_rng(0).permutation(bench.rows("val"))
    if split == "val":
        fitted, scored = np.array_split(order, 2)
    else:
        fitted, scored = order, np.random.default_rng(1).permutation(bench.rows(split))
    if not len(scored) or not len(fitted):
        raise AtlasError(f"{bench.dataset.path}: too few studies to recalibrate on and to score")
    return np.sort(fitted[:FIT_STUDIES]), np.sort(scored[:studies])


def _data(
    bench: Benchmark,
    predictor: Predictor,
    rows: np.ndarray,
    region_V: np.ndarray,
    draws: int,
    name: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return densities (S, K, R), numbers of given peaks (S,), counts of hidden ones (S, R)."""
    out, blocks = [], np.split(rows, np.arange(_BLOCK, len(rows), _BLOCK))
    with progress.track(f"(d) {name}: {len(rows)} studies", len(blocks)) as ticker:
        for block in blocks:
            shown = bench.show(block, "d")
            out.append(region_draws(predictor, shown, region_V, draws).astype(np.float32))
            ticker.advance()
    given = np.asarray(bench.counts(rows, "given").sum(1)).ravel()
    return np.concatenate(out), given, pool(bench.counts(rows, "hidden").toarray(), region_V)


Groups = dict[str, dict[str, np.ndarray]]  # kind -> group -> (S, R), whether a member


def _groups(bench: Benchmark, rows: np.ndarray, lobe: Sequence[str]) -> Groups:
    """Group studies' regions by lobe, and by tercile of the number of all of a study's peaks."""
    sizes, shape = bench.sizes[rows], (len(rows), len(lobe))
    low, high = np.quantile(bench.sizes[bench.rows("train")], [1 / 3, 2 / 3])
    thirds = {
        f"up to {low:.0f} peaks": sizes <= low,
        f"{low:.0f} to {high:.0f} peaks": (sizes > low) & (sizes <= high),
        f"over {high:.0f} peaks": sizes > high,
    }
    return {
        "lobe": {k: np.broadcast_to(np.array(lobe) == k, shape) for k in LOBES},
        "peaks": {k: np.broadcast_to(own[:, None], shape) for k, own in thirds.items()},
    }


def _by_expectation(mean: np.ndarray) -> dict[str, np.ndarray]:
    """Group studies' regions by the number of peaks expected there."""
    edges = (0.0, *EXPECTED, np.inf)
    names = [f"{low:g} to {high:g} expected" for low, high in pairwise(edges[:-1])]
    names.append(f"{EXPECTED[-1]:g} or more expected")
    return {k: (mean >= a) & (mean < b) for k, a, b in zip(names, edges, edges[1:])}


def _row(
    law: CountLaw, found: Scores, raw: Scores, reference: Scores, groups: Groups, draws: int
) -> dict[str, Any]:
    """Describe a row: what was fitted, coverage over all and by group, how sharp the law is.

    Returns
    -------
    dict
        "coverage", "multinomial" (not recalibrated): level in % -> share covered, [mean, low, high]
        over studies. "lobe", "peaks", "expected": the same by group, and "pairs", the members.
        "off", "off lobe", "off peaks": the farthest from nominal, in points; "off expected": in the
        group that expects most. "log_score" (nats) and "crps" (peaks), per region; "gain" in both
        over the mean map. "pit": shares of 20 equal bins.
    """
    covered, bins = found.covered(), np.linspace(0, 1, _PIT_BINS + 1)
    groups = {**groups, "expected": _by_expectation(found.mean)}
    by = {
        kind: {
            name: {**_coverage(covered, own), "pairs": int(own.sum())}
            for name, own in group.items()
            if own.any()
        }
        for kind, group in groups.items()
    }
    coverage = _coverage(covered)
    return {
        "coverage": coverage,
        "multinomial": _coverage(raw.covered()),
        **by,
        "off": _off(coverage),
        **{f"off {kind}": max(map(_off, by[kind].values())) for kind in ("lobe", "peaks")},
        "off expected": _off(list(by["expected"].values())[-1]),
        "log_score": metrics.interval(found.log_score.mean(1), 5),
        "crps": metrics.interval(found.crps.mean(1), 5),
        "gain": {
            "log_score": metrics.interval((reference.log_score - found.log_score).mean(1), 5),
            "crps": metrics.interval((reference.crps - found.crps).mean(1), 5),
        },
        "draws": draws,
        "law": {name: round(value, 5) for name, value in vars(law).items()},
        "pit": [round(float(found.inside(a, b).mean()), 5) for a, b in pairwise(bins)],
    }


def _coverage(covered: np.ndarray, own: np.ndarray | None = None) -> dict[str, Any]:
    """Covered share at each level, over the members (S, R) of a group or all.

    A study's share is that of its members, and weighs as many as they are.
    """
    own = np.ones(covered.shape[1:], bool) if own is None else own
    members = own.sum(1)[own.any(1)]
    shares = (covered * own)[:, own.any(1)].sum(2)
    return {
        f"{100 * level:.0f}": metrics.ratio_interval(share, members, 4)
        for level, share in zip(LEVELS, shares)
    }


def _off(coverage: Mapping[str, Any]) -> float:
    """Return how far the farthest level is from nominal, in points."""
    levels = [f"{100 * level:.0f}" for level in LEVELS]
    return round(max(abs(100 * coverage[level][0] - float(level)) for level in levels), 2)
