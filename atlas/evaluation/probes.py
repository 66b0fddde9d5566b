"""Probes: how much of the publication year can be read from frozen codes.

An adversary that the encoder has learnt to fool proves nothing about what the codes still hold
(Elazar & Goldberg 2018, EMNLP), so fresh classifiers are fitted to the codes of the training
studies and scored on held-out ones.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from atlas import metrics
from atlas.errors import AtlasError, require

DRAWS = 1000


def read_bins(
    codes_train: np.ndarray,
    bins_train: np.ndarray,
    codes_test: np.ndarray,
    bins_test: np.ndarray,
    seed: int = 0,
) -> dict[str, dict[str, list[float]]]:
    """Fit a linear and an MLP probe; score them on held-out studies.

    Parameters
    ----------
    codes_train, codes_test : (S, D) arrays
        Frozen codes; standardised by the training studies.
    bins_train, bins_test : (S,) int arrays
        Class of each study; negative is missing and left out.
    seed : int
        Of the MLP, the bootstrap and the permutations.

    Returns
    -------
    dict
        By probe ("linear": multinomial logistic regression; "mlp": one hidden layer of 64),
        ``balanced_accuracy`` as [value, low, high] with a 95 % bootstrap interval over held-out
        studies, and ``permutation``, [low, high], the 95 % interval of the balanced accuracy of
        the same predictions when the held-out studies' bins are permuted.

    Raises
    ------
    AtlasError
        Shapes that do not fit, fewer than two classes to learn, no study to score.
    """
    train, test = _known("train", codes_train, bins_train), _known("test", codes_test, bins_test)
    if len(np.unique(train[1])) < 2:
        raise AtlasError("bins_train: a probe needs at least two classes")
    if len(test[1]) == 0:
        raise AtlasError("bins_test: no study with a known bin")
    return {
        name: score(_predict(probe, train, test[0]), test[1], seed)
        for name, probe in _probes(seed).items()
    }


def score(predicted: np.ndarray, true: np.ndarray, seed: int = 0) -> dict[str, list[float]]:
    """Balanced accuracy of predictions, (S,), with its bootstrap and permutation intervals."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(true), len(true)) for _ in range(DRAWS)]
    resampled = [metrics.balanced_accuracy(predicted[k], true[k]) for k in drawn]
    permuted = [metrics.balanced_accuracy(predicted, rng.permutation(true)) for _ in range(DRAWS)]
    value = metrics.balanced_accuracy(predicted, true)
    return {
        "balanced_accuracy": _rounded(value, *_ends(resampled)),
        "permutation": _rounded(*_ends(permuted)),
    }


def _probes(seed: int) -> dict[str, Any]:
    linear = require("sklearn.linear_model", "data")
    neural = require("sklearn.neural_network", "data")
    return {
        "linear": linear.LogisticRegression(class_weight="balanced", max_iter=500),
        "mlp": neural.MLPClassifier((64,), alpha=0.01, early_stopping=True, random_state=seed),
    }


def _known(side: str, codes: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the studies whose bin is known."""
    codes, bins = np.asarray(codes, dtype=float), np.asarray(bins)
    if codes.ndim != 2 or bins.shape != codes.shape[:1]:
        raise AtlasError(
            f"codes_{side}: expected (S, D) beside bins (S,), got {codes.shape} and {bins.shape}"
        )
    return codes[bins >= 0], bins[bins >= 0]


def _predict(probe: Any, train: tuple[np.ndarray, np.ndarray], codes: np.ndarray) -> np.ndarray:
    pipeline = require("sklearn.pipeline", "data")
    scaler = require("sklearn.preprocessing", "data").StandardScaler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that stops early is still a probe
        fitted = pipeline.make_pipeline(scaler, probe).fit(*train)
    return np.asarray(fitted.predict(codes))


def _ends(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _rounded(*values: float) -> list[float]:
    return [round(value, 4) for value in values]
