"""The law of counts in regions of equal mass, on data whose law is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from scipy import stats

from atlas import space
from atlas.evaluation import count_law
from atlas.evaluation.count_law import LEVELS, CountLaw, Scores
from atlas.evaluation.regions import ELSEWHERE, equal_mass, lobes, pool

TRUE = CountLaw(temperature=1.6, mean_map=0.1, concentration=12.0, growth=0.5)


def simulate(seed: int, studies: int = 400, draws: int = 1) -> tuple[np.ndarray, ...]:
    """Draw densities, numbers of given peaks, and counts of `TRUE`."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(100, 0.5), (studies, draws))
    given = rng.integers(3, 60, studies)
    hidden = given - rng.integers(0, 2, studies)
    own = TRUE.densities(p)[np.arange(studies), rng.integers(0, draws, studies)]
    c = TRUE.concentration * (given / count_law.AT) ** TRUE.growth
    counts = [
        rng.multinomial(n, rng.dirichlet(np.maximum(k * q, 1e-9)))
        for n, k, q in zip(hidden, c, own)
    ]
    return p, given, np.array(counts)


def off(scores: Scores, own: np.ndarray | None = None) -> float:
    """Return the farthest of the covered shares from nominal, in points."""
    covered = scores.covered()
    shares = covered.mean((1, 2)) if own is None else covered[:, own].mean(1)
    return float(100 * np.abs(shares - LEVELS).max())


@pytest.mark.parametrize("draws", [1, 3])
def test_the_true_law_covers_a_multinomial_does_not_and_recalibration_mends_it(draws: int) -> None:
    data, raw = simulate(0, draws=draws), CountLaw()
    truth, wrong = count_law.measure(TRUE, *data), count_law.measure(raw, *data)
    fitted = count_law.fit(*simulate(1, draws=draws))
    mended = count_law.measure(fitted, *data)
    busy = truth.mean > 1  # elsewhere a count is nearly always 0, and any law covers
    assert off(truth) < 1 and off(mended) < 1 < off(wrong)
    assert off(truth, busy) < 3 and off(mended, busy) < 3 and off(wrong, busy) > 10
    assert wrong.log_score.mean() > mended.log_score.mean() + 0.05
    assert abs(mended.log_score.mean() - truth.log_score.mean()) < 0.003
    assert wrong.crps.mean() > mended.crps.mean()


def test_recalibration_finds_the_law() -> None:
    fitted = count_law.fit(*simulate(2, studies=1500))
    assert fitted.temperature == pytest.approx(TRUE.temperature, rel=0.1)
    assert fitted.mean_map == pytest.approx(TRUE.mean_map, abs=0.03)
    assert fitted.concentration == pytest.approx(TRUE.concentration, rel=0.1)
    assert fitted.growth == pytest.approx(TRUE.growth, abs=0.1)


def test_probabilities_are_the_beta_binomials() -> None:
    p, given, _ = simulate(3, studies=5, draws=2)
    masses = np.stack(list(islice(TRUE.masses(p, given), 70)))
    assert np.allclose(masses.sum(0), 1)
    for k in (0, 1, 4, 59):
        assert np.allclose(TRUE.mass_at(p, given, np.full((5, 100), k)), masses[k], atol=1e-9)
    for s, n in enumerate(given):
        c = TRUE.concentration * (n / 10) ** TRUE.growth
        q = TRUE.densities(p)[s, :, 7]
        expected = [
            [stats.betabinom.pmf(np.arange(70), m, c * x, c * (1 - x)) for x in q]
            for m in (n, n - 1)
        ]
        assert np.allclose(masses[:, s, 7], np.mean(expected, axis=(0, 1)), atol=1e-9)
    sharp = np.stack(list(islice(replace(TRUE, concentration=1e6).masses(p, given), 70)))
    binomial = [
        stats.binom.pmf(np.arange(70)[:, None, None], m[:, None], TRUE.densities(p)[:, 0])
        for m in (given, given - 1)
    ]
    one = np.stack(list(islice(replace(TRUE, concentration=1e6).masses(p[:, :1], given), 70)))
    assert np.allclose(one, np.mean(binomial, axis=0), atol=1e-3)
    assert not np.allclose(sharp, masses, atol=1e-2)


def test_scores_are_what_simulation_says() -> None:
    """PIT and CRPS beside those of many simulated counts of the law."""
    p, given, counts = simulate(4, studies=3, draws=1)
    scores, rng = count_law.measure(TRUE, p, given, counts), np.random.default_rng(0)
    for s, n in enumerate(given):
        c = TRUE.concentration * (n / 10) ** TRUE.growth
        q = rng.dirichlet(np.maximum(c * TRUE.densities(p)[s, 0], 1e-9), 20_000)
        drawn = rng.multinomial(n - rng.integers(0, 2, len(q)), q)
        y = counts[s]
        assert np.allclose(scores.low[s], (drawn < y).mean(0), atol=0.02)
        assert np.allclose(scores.high[s], (drawn <= y).mean(0), atol=0.02)
        assert np.allclose(scores.mean[s], drawn.mean(0), atol=0.2)
        half = len(q) // 2
        crps = abs(drawn - y).mean(0) - 0.5 * abs(drawn[:half] - drawn[half:]).mean(0)
        assert np.allclose(scores.crps[s], crps, atol=0.1)
        assert np.allclose(np.exp(-scores.log_score[s]), scores.high[s] - scores.low[s], atol=1e-6)
    v = rng.random((4000, *counts.shape))
    u = scores.low + v * (scores.high - scores.low)
    for level, covered in zip(LEVELS, scores.covered()):
        drawn_share = (abs(u - 0.5) <= level / 2).mean(0)
        assert np.allclose(covered, drawn_share, atol=0.05)


# ---------------------------------------------------------------------- regions


def test_regions_are_compact_and_of_equal_mass() -> None:
    here = space.load(4)
    density = np.random.default_rng(0).random(here.n_cells) + 0.2
    density /= density.sum()
    region = equal_mass(density, here.centres_mm)
    mass = pool(density[None], region)[0]
    assert len(mass) == 100 and np.abs(100 * mass - 1).max() < 0.02
    assert np.array_equal(region, equal_mass(density, here.centres_mm))
    radius = [np.sqrt(here.centres_mm[region == r].var(0).sum()) for r in range(100)]
    whole = np.sqrt(here.centres_mm.var(0).sum())
    assert (
        max(radius) < 0.45 * whole and np.mean(radius) < 0.32 * whole
    )  # a cube's: 100^(-1/3) = .22


@pytest.mark.parametrize("regions", [1, 7, 20])
def test_every_region_has_a_cell_even_without_mass(regions: int) -> None:
    density = np.zeros(20)
    density[3] = 1
    centres = np.arange(60.0).reshape(20, 3)
    assert set(equal_mass(density, centres, regions)) == set(range(regions))


def test_lobes_are_where_they_should_be() -> None:
    here = space.load(4)
    region = np.full(here.n_cells, 6)
    places = [
        (-30, 50, 15),
        (40, 2, 0),
        (58, -25, -12),
        (-50, -35, 45),
        (10, -90, 5),
        (0, -55, -40),
    ]
    for k, place in enumerate(places):
        region[np.linalg.norm(here.centres_mm - place, axis=1) < 8] = k
    found = lobes(region, np.ones(here.n_cells), 4)
    assert found[:6] == [
        "frontal", "cingulate, insula", "temporal", "parietal", "occipital", ELSEWHERE,
    ]  # fmt: skip
