"""Schedules as functions of the step, and the KL rules."""

from __future__ import annotations

import pytest

from atlas import schedules
from atlas.config import KLConfig


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    rate = [schedules.learning_rate(p / 100, 0.1) for p in range(101)]
    assert rate[0] == 0 and rate[10] == pytest.approx(1) and rate[100] == pytest.approx(0)
    assert rate[:11] == sorted(rate[:11]) and rate[10:] == sorted(rate[10:], reverse=True)


def test_lambda_ramps_between_two_shares_of_the_run() -> None:
    assert [schedules.ramp(p, 0.2, 0.8) for p in (0, 0.2, 0.5, 0.8, 1)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )


def test_beta_schedules() -> None:
    linear = KLConfig(schedule="linear", beta=0.4, warmup=0.5)
    assert schedules.scheduled_beta(linear, 0.25) == pytest.approx(0.2)
    assert schedules.scheduled_beta(linear, 0.9) == pytest.approx(0.4)
    cyclical = KLConfig(schedule="cyclical", beta=0.4, cycles=2)
    values = [schedules.scheduled_beta(cyclical, p) for p in (0, 0.125, 0.4, 0.5, 0.625)]
    assert values == pytest.approx([0, 0.2, 0.4, 0, 0.2])
    assert schedules.scheduled_beta(KLConfig(schedule="constant", beta=0.3), 0.7) == 0.3


def test_steering_reaches_the_target_rate() -> None:
    beta = 1.0
    for _ in range(2000):  # a plant whose rate falls with beta
        beta = schedules.steer(beta, rate=4.0 / beta, target=10.0)
    assert 4.0 / beta == pytest.approx(10.0, rel=1e-3)


def test_beta_rises_ten_per_cent_after_three_idle_epochs() -> None:
    beta, shares = 1.0, ()
    betas = []
    for share in (0.01, 0.02, 0.01, 0.01, 0.2, 0.01, 0.01, 0.01):
        beta, shares = schedules.raise_if_idle(beta, (*shares, share), 0.05, 3)
        betas.append(round(beta, 4))
    assert betas == [1, 1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.21]
