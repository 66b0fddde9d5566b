"""What changes while training: functions of the step, and the one rule that has a state."""

from __future__ import annotations

import math

from .config import KLConfig

GAIN = 0.02  # largest relative change of beta in a step
RAISE = 1.1  # the mission's rule: 10 % at a time


def learning_rate(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    done = (progress - warmup) / max(1 - warmup, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def ramp(progress: float, start: float, end: float) -> float:
    """0 before `start`, 1 after `end`, linear between; progress is the share of the run done."""
    return min(max((progress - start) / max(end - start, 1e-9), 0.0), 1.0)


def scheduled_beta(config: KLConfig, progress: float) -> float:
    """Beta of the schedules that are functions of the step: constant, linear, cyclical.

    Cyclical: Fu et al. 2019, NAACL; each cycle rises over its first half.
    """
    if config.schedule == "linear":
        return config.beta * ramp(progress, 0.0, max(config.warmup, 1e-9))
    if config.schedule == "cyclical":
        return config.beta * ramp(progress * config.cycles % 1.0, 0.0, 0.5)
    return config.beta


def steer(beta: float, rate: float, target: float) -> float:
    """Move beta by at most 2 % so that the rate (KL in nats) approaches its target."""
    error = (rate - target) / target
    return beta * math.exp(GAIN * min(max(error, -1.0), 1.0))


def raise_if_idle(
    beta: float, shares: tuple[float, ...], threshold: float, patience: int
) -> tuple[float, tuple[float, ...]]:
    """Raise beta by 10 % once KL / total stayed under the threshold for `patience` epochs.

    Parameters
    ----------
    beta : float
    shares : tuple of float
        KL / total of the epochs since the last raise.

    Returns
    -------
    beta, shares
        The new beta, and the epochs that still count.
    """
    if len(shares) >= patience and all(share < threshold for share in shares[-patience:]):
        return beta * RAISE, ()
    return beta, shares
