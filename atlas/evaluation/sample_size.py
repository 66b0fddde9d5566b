"""Sample size from year, topics and code, in ten folds: ridge, and a head that knows its doubt.

The target is log n. `Head` is a Bayesian linear regression with one prior width for each group of
features, set by the marginal likelihood (MacKay 1992, Neural Computation; Tipping 2001, JMLR), and
a log-linear noise variance (Harvey 1976, Econometrica) fitted to leave-one-out residuals. The
peer, `ridge_folds`, is the one of the benchmark: ridge on year, its square and the topics,
strength from five inner folds, one spread for all studies, taken from the out-of-fold residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atlas import metrics
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError, require

from .imputation import Z90, r_squared

STRENGTHS = np.logspace(-1, 4, 12)  # of the peer's ridge
SCALES = (-14.0, 3.0)  # bounds of a log prior variance


class Prediction(NamedTuple):
    """Mean and sd of log n, and half width of the central 90 % interval, (S,) each."""

    mean: np.ndarray
    sd: np.ndarray
    half_width: np.ndarray


# ---------------------------------------------------------------------- features


def features(year: np.ndarray, topics: np.ndarray, z: np.ndarray | None) -> list[np.ndarray]:
    """Return the groups of features that share a prior width.

    Parameters
    ----------
    year : (S,) array
    topics : (S, 50) array of weights
    z : (S, D) array, optional
        Codes.

    Returns
    -------
    list of (S, F) arrays
        Year and its square; topics; their roots, which spread the small weights; roots times
        year; codes. Scaled over all studies, which uses no label.
    """
    time = ((year - 2011) / 4.2)[:, None]
    roots = _standardise(np.sqrt(np.maximum(topics, 0)))
    groups = [np.hstack([time, time**2]), _standardise(topics), roots, time * roots]
    return groups if z is None else [*groups, _standardise(z)]


def _standardise(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)


# ---------------------------------------------------------------------- the head


@dataclass(frozen=True, eq=False)
class Posterior:
    """Weights of a Bayesian linear regression: mean (F,), covariance (F, F); noise variance."""

    mean: np.ndarray
    covariance: np.ndarray
    centre: np.ndarray
    intercept: float
    noise: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the mean of the regression line, (S,)."""
        return np.asarray(self.intercept + (x - self.centre) @ self.mean)

    def leave_one_out(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the residual of each study from a fit without it, in closed form, (S,)."""
        d = x - self.centre
        leverage = np.einsum("sf,fg,sg->s", d, self.covariance, d) / self.noise + 1 / len(y)
        return (y - self.predict(x)) / (1 - np.minimum(leverage, 0.95))


def fit_mean(groups: Sequence[np.ndarray], y: np.ndarray) -> Posterior:
    """Fit the regression, prior widths and noise by marginal likelihood.

    Every study weighs the same, as in R2; the noise of each is fitted afterwards.

    Parameters
    ----------
    groups : sequence of (S, F) arrays
    y : (S,) array
    """
    from scipy.optimize import minimize

    x = np.concatenate(groups, axis=1)
    group = np.repeat(np.arange(len(groups)), [g.shape[1] for g in groups])
    d, e = x - x.mean(0), y - y.mean()
    found = minimize(
        _evidence,
        np.r_[np.full(len(groups), -4.0), np.log(e.var())],
        args=(d.T @ d, d.T @ e, e @ e, group, len(y)),
        jac=True,
        method="L-BFGS-B",
        bounds=[*[SCALES] * len(groups), (-12.0, 12.0)],
        options={"ftol": 1e-7},
    ).x
    mean, covariance = _posterior(found, d.T @ d, d.T @ e, group)
    return Posterior(mean, covariance, x.mean(0), float(y.mean()), float(np.exp(found[-1])))


def _posterior(
    logs: np.ndarray, gram: np.ndarray, moment: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    noise = np.exp(logs[-1])
    covariance = np.linalg.inv(gram / noise + np.diag(np.exp(-logs[:-1])[group]))
    return covariance @ moment / noise, covariance


def _evidence(
    logs: np.ndarray,
    gram: np.ndarray,
    moment: np.ndarray,
    square: float,
    group: np.ndarray,
    studies: int,
) -> tuple[float, np.ndarray]:
    """Return the negative log marginal likelihood and its gradient.

    `logs` holds each group's log prior variance and the log noise variance. A weak normal
    prior on the former (mean -4, sd 5) keeps a group without effect from running off.
    """
    noise, precision = np.exp(logs[-1]), np.exp(-logs[:-1])[group]
    mean, covariance = _posterior(logs, gram, moment, group)
    _, log_det = np.linalg.slogdet(covariance)
    value = 0.5 * (
        studies * logs[-1] + logs[:-1][group].sum() - log_det + (square - mean @ moment) / noise
    )
    by_group = np.bincount(group, 1 - precision * (mean**2 + np.diag(covariance)))
    rest = square - 2 * mean @ moment + mean @ gram @ mean
    slope = np.r_[by_group, studies - (rest + (gram * covariance).sum()) / noise] / 2
    pull = (logs[:-1] + 4) / 25
    slope[:-1] += pull
    return float(value + 0.5 * (pull * (logs[:-1] + 4)).sum()), slope


class Head:
    """Imputation head of one field: mean and log variance, fitted to labelled studies.

    Parameters
    ----------
    groups : sequence of (S, F) arrays
        Features; the first group also drives the noise, beside the predicted mean.
    y : (S,) array
    """

    def __init__(self, groups: Sequence[np.ndarray], y: np.ndarray) -> None:
        self._line = fit_mean(groups, y)
        errors = self._line.leave_one_out(np.concatenate(groups, axis=1), y)
        drivers = self._drivers(groups, y - errors)
        self._noise = fit_log_variance(drivers, errors)
        noise = np.exp(_with_one(drivers) @ self._noise)
        scaled = np.abs(errors) / np.sqrt(noise)
        # Sample sizes have heavier tails than the normal law: the interval follows the residuals.
        self._reach = float(np.quantile(scaled, 0.9))

    @staticmethod
    def _drivers(groups: Sequence[np.ndarray], mean: np.ndarray) -> np.ndarray:
        return np.column_stack([mean, groups[0]])

    def predict(self, groups: Sequence[np.ndarray]) -> Prediction:
        """Predict studies from their features."""
        mean = self._line.predict(np.concatenate(groups, axis=1))
        # The noise was fitted to left-out residuals: the doubt about the line is in it.
        sd = np.exp(0.5 * _with_one(self._drivers(groups, mean)) @ self._noise)
        return Prediction(mean, sd, self._reach * sd)


def _with_one(x: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(x)), x])


def fit_log_variance(x: np.ndarray, errors: np.ndarray, shrink: float = 1.0) -> np.ndarray:
    """Fit log variance = a + x b to errors by Gaussian likelihood, b shrunk, (1 + F,)."""
    from scipy.optimize import minimize

    design, square = _with_one(x), errors**2
    penalty = np.r_[0.0, np.full(x.shape[1], shrink)]

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        log_variance = np.clip(design @ b, -8, 8)
        ratio = square * np.exp(-log_variance)
        value = 0.5 * (log_variance + ratio).sum() + 0.5 * (penalty * b**2).sum()
        return float(value), 0.5 * design.T @ (1 - ratio) + penalty * b

    start = np.r_[np.log(square.mean()), np.zeros(x.shape[1])]
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x)


# ---------------------------------------------------------------------- folds


def head_folds(groups: Sequence[np.ndarray], y: np.ndarray, folds: np.ndarray) -> Prediction:
    """Predict every study by a head that its fold had no part in."""

    def fit(train: np.ndarray, test: np.ndarray) -> Prediction:
        return Head([g[train] for g in groups], y[train]).predict([g[test] for g in groups])

    return _over_folds(fit, folds)


def ridge_folds(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> Prediction:
    """Predict by ridge (the benchmark's peer); the spread is that of its out-of-fold residuals."""

    def fit(train: np.ndarray, test: np.ndarray) -> Prediction:
        inner = np.arange(len(train)) % 5
        errors = [
            sum(
                np.square(
                    y[train[inner == k]]
                    - _ridge(x[train[inner != k]], y[train[inner != k]], a, x[train[inner == k]])
                ).sum()
                for k in range(5)
            )
            for a in STRENGTHS
        ]
        mean = _ridge(x[train], y[train], STRENGTHS[int(np.argmin(errors))], x[test])
        return Prediction(mean, mean, mean)

    mean = _over_folds(fit, folds).mean
    sd = np.full(len(y), (y - mean).std())
    return Prediction(mean, sd, Z90 * sd)


def _ridge(x: np.ndarray, y: np.ndarray, strength: float, new: np.ndarray) -> np.ndarray:
    linear = require("sklearn.linear_model", "data")
    return np.asarray(linear.Ridge(strength).fit(x, y).predict(new))


def _over_folds(
    fit: Callable[[np.ndarray, np.ndarray], Prediction], folds: np.ndarray
) -> Prediction:
    out = np.empty((3, len(folds)))
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        out[:, test] = fit(train, test)
    return Prediction(*out)


def scores(y: np.ndarray, predicted: Prediction) -> dict[str, list[float]]:
    """Return R2, MAE and NLL of log n and the 90 % interval's coverage, [mean, low, high] each."""
    error = y - predicted.mean
    variance = predicted.sd**2
    r2 = r_squared(error**2, (y - y.mean()) ** 2)
    if r2 is None:
        raise ValueError("y does not vary")
    nll = 0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)
    covered = np.abs(error) <= predicted.half_width
    return {
        "r2": r2,
        "mae": metrics.interval(np.abs(error)),
        "nll": metrics.interval(nll),
        "coverage_90": metrics.interval(covered),
    }


def compare(
    year: np.ndarray, topics: np.ndarray, codes: Mapping[str, np.ndarray], y: np.ndarray, folds: Any
) -> dict[str, dict[str, list[float]]]:
    """Score the peer, the head on year and topics, and the head with each kind of code.

    Parameters
    ----------
    year : (S,) array
    topics : (S, 50) array
    codes : mapping
        Codes (S, D) by name.
    y : (S,) array
        log n.
    folds : (S,) int array
    """
    peer = np.hstack(features(year, topics, None)[:2])
    rows = {
        "ridge on year + topics": ridge_folds(peer, y, folds),
        "head on year + topics": head_folds(features(year, topics, None), y, folds),
    }
    for name, z in codes.items():
        groups = features(year, topics, z)
        rows[f"head on year + topics + {name}"] = head_folds(groups, y, folds)
    return {name: scores(y, predicted) for name, predicted in rows.items()}


# ---------------------------------------------------------------------- a run


def of_run(run: Path, folds: Path, dataset: Dataset | None = None) -> dict[str, Any]:
    """Score the sample-size task with a run's codes.

    The run's network stays as it is; the encoder is shown the peaks, year and topics. No label
    reaches it.

    Parameters
    ----------
    run : Path
        A finished run folder.
    folds : Path
        CSV with the columns pmid, n, fold.
    dataset : Dataset, optional
        By default found beside or through the run.

    Returns
    -------
    dict
        ``studies``, ``absent`` (labelled, but without year, topics or peaks in the dataset),
        ``folds``, and ``methods``: scores by name.
    """
    from atlas.inference import Atlas

    from .evaluate import find_dataset

    atlas, dataset = Atlas.load(run), dataset or find_dataset(run)
    labels = _read_labels(folds)
    known = [dataset.row.get(study, -1) for study in labels["pmid"]]
    found = np.array([row >= 0 and _has_inputs(dataset, row) for row in known])
    rows = np.array(known)[found]
    fold = labels["fold"].to_numpy()[found]
    if len(np.unique(fold)) < 2 or len(rows) < 100:
        raise AtlasError(
            f"{folds}: only {len(rows)} of its studies are in {dataset.path} with year and topics; "
            "100 in two folds are the least"
        )
    metadata = [dataset.metadata[row] for row in rows]
    topics = np.stack([dataset.fields["topics"].encode(m["topics"]) for m in metadata])
    shown = [{"year": m["year"], "topics": m["topics"]} for m in metadata]
    codes = [atlas.encode(dataset.peaks(row), atlas.usable(m)).mean for row, m in zip(rows, shown)]
    methods = compare(
        np.array([m["year"] for m in metadata], dtype=float),
        topics.astype(float),
        {"z": np.stack(codes).astype(float)},
        np.log(labels["n"].to_numpy(float)[found]),
        fold,
    )
    return {
        "run": run.resolve().name,
        "studies": len(rows),
        "absent": int((~found).sum()),
        "folds": len(np.unique(fold)),
        "methods": methods,
    }


def _has_inputs(dataset: Dataset, row: int) -> bool:
    m = dataset.metadata[row]
    return m.get("year") is not None and m.get("topics") is not None and len(dataset.peaks(row)) > 0


def _read_labels(path: Path) -> Any:
    """Read the labels, or say in one line what is wrong with the file."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype={"pmid": str})
        table = table[["pmid", "n", "fold"]].astype({"n": float, "fold": int})
    except (OSError, ValueError, KeyError) as error:
        raise AtlasError(
            f"{path}: no table of pmid, n, fold ({' '.join(str(error).split())[:120]})"
        ) from None
    if table["pmid"].duplicated().any():
        raise AtlasError(f"{path}: a pmid occurs twice")
    if not (np.isfinite(table["n"]) & (table["n"] > 0)).all():
        raise AtlasError(f"{path}: n must be a number above 0")
    return table
