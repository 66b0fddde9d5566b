"""The law of the numbers of peaks in regions, recalibrated on validation, and its scores.

Peaks of one study come in clusters and share causes that a density does not name, so their numbers
vary more than a multinomial law says. Here they are Dirichlet-multinomial (Mosimann 1962,
Biometrika): given the density p over the regions and N peaks, ``q ~ Dirichlet(c p)`` and
``counts ~ multinomial(N, q)``, so that one region's number is beta-binomial. A model that draws
densities has the mixture of these laws over its draws. Probabilities are exact given the draws:
no counts are simulated, which would add noise and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, gammaln

from .uncertainty import LEVELS

AT = 10.0  # given peaks at which `concentration` is stated
_TAIL, _BLOCK = 1e-6, 400_000
_BOUNDS = [(np.log(0.1), np.log(5)), (-9, 9), (np.log(0.5), np.log(1e5)), (-1, 2)]


@dataclass(frozen=True)
class CountLaw:
    """How densities become a law of counts; the defaults are a multinomial law.

    Attributes
    ----------
    temperature : float
        Exponent of the density: below 1 flattens it.
    mean_map : float
        Share of the training studies' mean density, under which all regions are alike.
    concentration : float
        c of a study of which 10 peaks are given; the larger, the nearer to a multinomial law.
    growth : float
        c grows with the number of given peaks to this power.
    even : float
        Probability that a study has an even number of peaks. Of G given peaks the rule of halving
        leaves G hidden if it is even and G - 1 if odd.
    """

    temperature: float = 1.0
    mean_map: float = 0.0
    concentration: float = 1e6
    growth: float = 0.0
    even: float = 0.5

    def densities(self, p_SKR: np.ndarray) -> np.ndarray:
        """Apply temperature and mean map to densities over regions, (S, K, R) float64."""
        out = np.maximum(p_SKR, 1e-12).astype(np.float64) ** self.temperature
        out *= (1 - self.mean_map) / out.sum(2, keepdims=True)
        return out + self.mean_map / p_SKR.shape[2]

    def masses(self, p_SKR: np.ndarray, given_S: np.ndarray) -> Iterator[np.ndarray]:
        """Yield P(count = 0), P(count = 1), ... of each region, (S, R) each, without end.

        Parameters
        ----------
        p_SKR : (S, K, R) array
            K draws of each study's density over the regions.
        given_S : (S,) array
            Numbers of given peaks.
        """
        a, b, c, parts = self._parameters(p_SKR, given_S)
        now = [np.exp(gammaln(b + n) - gammaln(b) - gammaln(c + n) + gammaln(c)) for n, _ in parts]
        k = 0
        while True:
            yield sum(share * mass.mean(1) for mass, (_, share) in zip(now, parts))
            for mass, (n, _) in zip(now, parts):  # 0 from k = n on
                mass *= np.maximum(n - k, 0) * (a + k)
                mass /= (k + 1) * np.maximum(b + n - k - 1, 1e-300)
            k += 1

    def mass_at(self, p_SKR: np.ndarray, given_S: np.ndarray, y_SR: np.ndarray) -> np.ndarray:
        """P(count = y) of each region, (S, R): what `masses` yields at one count."""
        a, b, c, parts = self._parameters(p_SKR, given_S)
        y, out = y_SR[:, None], np.zeros(y_SR.shape)
        own = gammaln(a + y) - gammaln(a) - gammaln(b) - gammaln(y + 1)
        for n, share in parts:
            rest = np.maximum(n - y, 0)
            log = own + gammaln(b + rest) - gammaln(rest + 1)
            log += gammaln(n + 1) + gammaln(c) - gammaln(c + n)
            out += share * np.where(y <= n, np.exp(log), 0).mean(1)
        return out

    def _parameters(self, p_SKR: np.ndarray, given_S: np.ndarray) -> tuple[Any, ...]:
        """Return a and b of the beta laws, their sum, and (hidden peaks, probability) pairs."""
        p, given = self.densities(p_SKR), given_S[:, None, None].astype(np.float64)
        c = self.concentration * (given / AT) ** self.growth
        return c * p, c * (1 - p), c, [(given, self.even), (given - 1, 1 - self.even)]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a law says about counts that it did not see.

    Attributes
    ----------
    low, high : (S, R) float64
        F(y - 1) and F(y): the randomised PIT is uniform between them (Czado et al. 2009,
        Biometrics), and what is reported is its expectation, which needs no random numbers.
    mean, log_score, crps : (S, R) float64
        Expected count; -ln P(y), nats; sum over k of (F(k) - [y <= k])^2, peaks.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    log_score: np.ndarray
    crps: np.ndarray

    def inside(self, lower: float, upper: float) -> np.ndarray:
        """Probability that the randomised PIT lies between two numbers, (S, R)."""
        width = np.maximum(self.high - self.low, 1e-12)
        overlap = np.minimum(self.high, upper) - np.maximum(self.low, lower)
        return np.clip(overlap / width, 0, 1)

    def covered(self) -> np.ndarray:
        """Probability that the central interval of each of `LEVELS` covers, (levels, S, R)."""
        return np.stack([self.inside((1 - level) / 2, (1 + level) / 2) for level in LEVELS])


def fit(
    p_SKR: np.ndarray, given_S: np.ndarray, counts_SR: np.ndarray, even: float = 0.5
) -> CountLaw:
    """Return the law with the best mean log score, over studies and regions.

    Parameters
    ----------
    p_SKR : (S, K, R) array
        Densities of the studies to fit to: validation studies, never those that are scored.
    given_S, counts_SR : arrays
        Numbers of given peaks; numbers of hidden ones in each region.
    even : float
        See `CountLaw`; of the training studies.
    """

    def law(x: np.ndarray) -> CountLaw:
        return CountLaw(
            float(np.exp(x[0])), float(expit(x[1])), float(np.exp(x[2])), float(x[3]), even
        )

    def loss(x: np.ndarray) -> float:
        return float(log_scores(law(x), p_SKR, given_S, counts_SR).mean())

    start = np.array([0.0, -2.0, np.log(50), 0.0])
    return law(minimize(loss, start, method="L-BFGS-B", bounds=_BOUNDS).x)


def log_scores(
    law: CountLaw, p_SKR: np.ndarray, given_S: np.ndarray, counts_SR: np.ndarray
) -> np.ndarray:
    """-ln P(y) of each study and region, (S, R), nats."""
    out = np.empty(counts_SR.shape)
    for part in _blocks(p_SKR, given_S):
        at = law.mass_at(p_SKR[part], given_S[part], counts_SR[part])
        out[part] = -np.log(np.maximum(at, 1e-300))
    return out


def measure(law: CountLaw, p_SKR: np.ndarray, given_S: np.ndarray, counts_SR: np.ndarray) -> Scores:
    """Score a law; arrays as in `fit`."""
    out = {name: np.empty(counts_SR.shape) for name in Scores.__dataclass_fields__}
    hidden = given_S - (1 - law.even)
    for part in _blocks(p_SKR, given_S):
        for name, values in _measure_block(
            law, p_SKR[part], given_S[part], counts_SR[part]
        ).items():
            out[name][part] = values
        out["mean"][part] = hidden[part, None] * law.densities(p_SKR[part]).mean(1)
    return Scores(**out)


def _measure_block(
    law: CountLaw, p_SKR: np.ndarray, given_S: np.ndarray, y: np.ndarray
) -> dict[str, np.ndarray]:
    f, low, at, crps = (np.zeros(y.shape) for _ in range(4))
    for k, mass in enumerate(law.masses(p_SKR, given_S)):
        low[y == k], at[y == k] = f[y == k], mass[y == k]
        f += mass
        crps += np.square(f - (y <= k))
        if k >= y.max() and f.min() > 1 - _TAIL:
            break
    log_score = -np.log(np.maximum(at, 1e-300))
    return {"low": low, "high": np.minimum(low + at, 1), "log_score": log_score, "crps": crps}


def _blocks(p_SKR: np.ndarray, given_S: np.ndarray) -> list[np.ndarray]:
    """Split studies into blocks of like size, small enough for the memory."""
    studies = max(1, _BLOCK // (p_SKR.shape[1] * p_SKR.shape[2]))
    order = np.argsort(given_S, kind="stable")
    return np.split(order, np.arange(studies, len(order), studies))
