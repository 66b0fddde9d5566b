"""Probes read what codes hold, and chance where they hold nothing."""

from __future__ import annotations

import numpy as np
import pytest

from atlas.errors import AtlasError
from atlas.evaluation import probes
from atlas.evaluation.table import summary

BINS = 10


def drawn(rule: str, studies: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Codes whose first directions tell the bin by a `rule`, in noise; some bins are missing."""
    bins = rng.integers(0, BINS, studies)
    codes = rng.normal(size=(studies, 12))
    angle = 2 * np.pi * bins / BINS
    if rule == "linear":
        codes[:, :2] += 4 * np.column_stack([np.cos(angle), np.sin(angle)])
    if rule == "parity":  # of two signs: no line separates it
        codes[:, 0] = np.abs(codes[:, 0]) * rng.choice([-1, 1], studies)
        codes[:, 1] = np.abs(codes[:, 1]) * np.sign(codes[:, 0]) * np.where(bins % 2, 1, -1)
        codes[:, :2] *= 3
        bins = bins % 2
    bins[::17] = -1
    return codes, bins


def read(
    rule: str, seed: int = 1, train: int = 1500, test: int = 500
) -> dict[str, dict[str, list[float]]]:
    rng = np.random.default_rng(seed)
    return probes.read_bins(*drawn(rule, train, rng), *drawn(rule, test, rng))


def test_both_probes_read_a_planted_year() -> None:
    for name, scores in read("linear").items():
        value, low, high = scores["balanced_accuracy"]
        assert low < value < high and value > 0.6, (name, scores)
        assert scores["permutation"][0] < 0.1 < scores["permutation"][1] < 0.15, (name, scores)


def test_only_the_mlp_reads_what_no_line_separates() -> None:
    found = read("parity")
    linear, mlp = (found[name]["balanced_accuracy"][0] for name in ("linear", "mlp"))
    assert linear < 0.6 and mlp > 0.8, found


def test_codes_without_the_year_are_at_chance() -> None:
    """Of 24 readings of nothing, the 95 % interval misses about one."""
    readings = [s for seed in range(12) for s in read("none", seed, 400, 300).values()]
    outside = [
        s
        for s in readings
        if not s["permutation"][0] <= s["balanced_accuracy"][0] <= s["permutation"][1]
    ]
    assert len(outside) <= 4, outside
    assert np.mean([s["balanced_accuracy"][0] for s in readings]) == pytest.approx(0.1, abs=0.015)


def test_the_same_codes_give_the_same_numbers() -> None:
    assert read("none") == read("none")


def test_bad_input_is_named() -> None:
    codes, bins = np.zeros((4, 2)), np.arange(4)
    with pytest.raises(AtlasError, match=r"codes_train: expected \(S, D\)"):
        probes.read_bins(codes, bins[:3], codes, bins)
    with pytest.raises(AtlasError, match="at least two classes"):
        probes.read_bins(codes, 0 * bins, codes, bins)
    with pytest.raises(AtlasError, match="no study with a known bin"):
        probes.read_bins(codes, bins, codes, bins - 9)


def test_the_summary_names_every_reader() -> None:
    score = {"balanced_accuracy": [0.31, 0.28, 0.34], "permutation": [0.09, 0.11]}
    both = {"linear": score, "mlp": score}
    year = {"chance": 0.1, "adversary": score, "probes": both, "probes_drawn": both}
    year["without_reversal"] = dict(year)
    latent = {"active_units": 1, "size": 2, "kl_nats": 3.0, "mean_pairwise_correlation": 0.5}
    rest = {"uncertainty_coverage": {}, "imputation": {}, "below": {}}
    lines = summary({"latent": latent, "year": year, **rest})
    readers = ("year adversary", "linear probe of the year", "mlp probe, codes drawn")
    for name in (*readers, *(f"{reader} without reversal" for reader in readers)):
        start = f"{name}: balanced accuracy 0.310 (0.280 to 0.340)"
        assert any(line.startswith(start) for line in lines), name
