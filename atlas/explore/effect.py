"""How large the effect of one changed field is, beside what chance would give.

A map may move when a field does, and mean nothing. So the literature is asked: does the predicted
change go along with where studies report their peaks? For study i, s_i is the mean over its peaks
of log(counterfactual / factual); x_i is where the study stands between the old value and the new
one: its encoded value along the change. Their correlation is the statistic, positive where studies
nearer to the new value report peaks where the map rises. The null permutes x over the studies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from atlas.errors import AtlasError
from atlas.inference import Atlas, Metadata

if TYPE_CHECKING:
    from .studies import Studies

PERMUTATIONS = 2000
LEAST = 10  # studies with the field known, below which nothing is asked
BINS = 41


class Effect(NamedTuple):
    """Size of a change, and its statistic beside the permutation null.

    Attributes
    ----------
    rms : float
        Root mean square of the difference over the brain, in the map's units.
    share : float
        The same as a share of the factual map's own.
    field : str
    statistic : float or None
        Correlation of s and x; None where it cannot be asked, and `sentence` says why.
    null : (low, median, high) or None
        2.5, 50 and 97.5 % of the permuted correlations.
    histogram : dict or None
        ``edges`` and ``counts`` of the permuted correlations.
    p : float or None
        Two-sided (Phipson and Smyth 2010): (1 + as extreme) / (1 + permutations).
    studies : int
        How many were asked.
    sentence : str
        The same in words.
    """

    rms: float
    share: float
    field: str
    statistic: float | None
    null: tuple[float, float, float] | None
    histogram: dict[str, list[float]] | None
    p: float | None
    studies: int
    sentence: str


def effect(
    atlas: Atlas,
    z: Any,
    m: Metadata | None,
    changes: Metadata,
    studies: Studies | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Effect:
    """Measure the effect of one changed field.

    Parameters
    ----------
    z, m, changes
        As of `Atlas.counterfactual`, with one field in `changes`.
    studies : Studies, optional
        Who is asked: those that training never saw, where they can be told.

    Raises
    ------
    AtlasError
        No field, or more than one, is changed.
    """
    if len(changes) != 1:
        raise AtlasError(f"an effect is of one field at a time, got {len(changes)}")
    (field,) = changes
    left, right = atlas.pair(z, m, changes)
    before, after = (atlas.cells(p.z_BD, p.m_BM)[0][0].astype(np.float64) for p in (left, right))
    rms = float(np.sqrt(np.square(after - before).mean()))
    share = rms / float(np.sqrt(np.square(before).mean()))
    size = f"The map changes by {share:.1%} of its own size"

    def unasked(why: str, count: int = 0) -> Effect:
        return Effect(rms, share, field, None, None, None, None, count, f"{size}. {why}")

    part = atlas.fields.slices[field]
    along = (right.m_BM - left.m_BM)[0, part].numpy().astype(np.float64)
    if not along.any() or not rms:
        return unasked("Nothing moves, so there is nothing to test.")
    if studies is None:
        return unasked("There are no studies at hand to test it on.")
    values, known = studies.values(atlas.fields[field])
    rows, held_out = studies.held_out(atlas)
    rows = rows[known[rows]]
    if len(rows) < LEAST:
        few = f"Only {len(rows)} studies at hand say their {field}"
        return unasked(f"{few}: a dataset where more do can be named with --data.", len(rows))
    x = values[rows] @ along
    s = _rise(atlas, studies, rows, np.log(np.maximum(after, 1e-30) / np.maximum(before, 1e-30)))
    if np.ptp(x) == 0 or np.ptp(s) == 0:
        return unasked(f"The {len(rows)} studies at hand do not differ.", len(rows))
    observed, null = _correlations(s, x, permutations, seed)
    low, middle, high = (float(q) for q in np.quantile(null, [0.025, 0.5, 0.975]))
    p = float(1 + (np.abs(null) >= abs(observed) - 1e-12).sum()) / (1 + permutations)
    reach = max(abs(observed), float(np.abs(null).max())) * 1.05
    counts, edges = np.histogram(null, BINS, (-reach, reach))
    who = f"{len(rows):,} {'held-out studies' if held_out else 'studies'}"
    verdict = (
        "goes along with where they report peaks no more than chance would"
        if low <= observed <= high
        else "goes along with where they report peaks, more than chance would"
        if observed > high
        else "runs against where they report peaks, more than chance would"
    )
    sentence = (
        f"{size}. In {who} the change {verdict} "
        f"(r = {observed:.3f}, chance {low:.3f} to {high:.3f}, p = {p:.2g})."
    )
    histogram = {"edges": edges.tolist(), "counts": counts.tolist()}
    return Effect(
        rms, share, field, observed, (low, middle, high), histogram, p, len(rows), sentence
    )


def _rise(atlas: Atlas, studies: Studies, rows: np.ndarray, log_ratio_V: np.ndarray) -> np.ndarray:
    """Mean over each study's peaks of the log ratio in their cells, (S,)."""
    counts = (studies.offsets[rows + 1] - studies.offsets[rows]).astype(np.int64)
    cell = studies.cells(atlas.space.resolution)
    mine = np.concatenate([np.arange(studies.offsets[r], studies.offsets[r + 1]) for r in rows])
    study = np.repeat(np.arange(len(rows)), counts)
    return np.bincount(study, log_ratio_V[cell[mine]], len(rows)) / counts


def _correlations(
    s: np.ndarray, x: np.ndarray, permutations: int, seed: int
) -> tuple[float, np.ndarray]:
    """Return the correlation of s and x, and those with x permuted, (N,)."""
    s, x = ((v - v.mean()) / np.linalg.norm(v - v.mean()) for v in (s, x))
    rng = np.random.default_rng(seed)
    null = np.array([s @ rng.permutation(x) for _ in range(permutations)])
    return float(s @ x), null
