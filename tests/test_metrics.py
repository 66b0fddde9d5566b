"""Measures against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from atlas import metrics, space

RNG = np.random.default_rng(0)
MAPS, TARGETS = RNG.random((4, 50)), RNG.random((4, 50))


def test_pearson_is_numpys() -> None:
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(MAPS, TARGETS)]
    assert metrics.pearson(MAPS, TARGETS) == pytest.approx(expected)
    assert metrics.pearson(np.ones((1, 50)), TARGETS[:1]) == pytest.approx([0])


def test_errors() -> None:
    assert metrics.mse(MAPS, MAPS) == pytest.approx(0)
    assert metrics.psnr(np.array([0.01])) == pytest.approx([20])


def test_ssim_is_one_for_equal_volumes_and_less_for_others() -> None:
    mask = space.load(4).mask
    volume = RNG.random((1, *mask.shape))
    assert metrics.ssim(volume, volume, mask) == pytest.approx([1])
    assert metrics.ssim(volume, 1 - volume, mask)[0] < 0.5


def test_bits_per_peak() -> None:
    uniform = np.full((1, 8), 1 / 8)
    counts = np.array([[3.0, 0, 0, 0, 0, 0, 0, 1]])
    assert metrics.bits_per_peak(uniform, counts) == pytest.approx([0])
    sharp = np.array([[0.5, 0, 0, 0, 0, 0, 0, 0.5]])
    assert metrics.bits_per_peak(sharp, counts) == pytest.approx([2])
    assert np.isnan(metrics.bits_per_peak(uniform, 0 * counts)).all()


def test_normalise_clips_mixes_and_sums_to_one() -> None:
    density = metrics.normalise(np.array([[-1.0, 1, 3, 0], [0, 0, 0, 0]]), 0.2)
    assert density.sum(1) == pytest.approx([1, 1])
    assert density[0] == pytest.approx([0.05, 0.25, 0.65, 0.05])
    assert density[1] == pytest.approx([0.25] * 4)


def test_counts_of_active_units_and_classes() -> None:
    means = np.zeros((100, 3))
    means[:, 1] = RNG.normal(size=100)
    assert metrics.active_units(means) == 1
    true, said = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert metrics.balanced_accuracy(said, true) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.mean_pairwise_correlation(np.stack([MAPS[0]] * 3)) == pytest.approx(1)


def test_bootstrap_covers_the_mean() -> None:
    mean, low, high = metrics.bootstrap(np.array([1.0, 2, 3, np.nan]))
    assert mean == 2 and low < 2 < high
    assert metrics.bootstrap(MAPS[0]) == metrics.bootstrap(MAPS[0])
