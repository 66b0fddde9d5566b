"""Planted effects: what a model finds of metadata effects that are known.

Truth exists only in simulation. A model is trained on studies of `atlas.evaluation.simulation`;
its counterfactual maps are compared with the planted difference of the same studies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atlas import config, metrics, space
from atlas.data.batches import splat_studies
from atlas.data.dataset import Dataset
from atlas.files import write_text
from atlas.inference import Atlas
from atlas.metadata import Value

from .evaluate import evaluate
from .simulation import (
    RESOLUTION,
    STANDARD,
    TASKS,
    WITH_YEARS,
    Design,
    Metadata,
    Truth,
    simulate,
)

SUBTRACTION_FWHM_MM = 24.0  # near the width of the places, so that subtraction is a fair peer
PERMUTATIONS = 200
YEAR_SETTINGS = ("train.epochs=24", "kl.beta=0.001")
Train = Callable[[config.Config, Dataset, Path], Path]  # `atlas.training.run.train`


class Contrast(NamedTuple):
    """A change of one field, and the two groups of training studies that differ in it."""

    name: str
    low: Value
    high: Value
    low_rows: np.ndarray
    high_rows: np.ndarray

    @property
    def field(self) -> str:
        """The field that changes."""
        return self.name.partition(":")[0]


def contrasts(dataset: Dataset) -> list[Contrast]:
    """List the changes to test: from motor to every other task, and the halves of each number.

    A number changes from the mean of the lower half of the training studies to that of the upper.
    """
    rows = dataset.rows("train")
    task = np.array([next(iter(dataset.metadata[r]["task"])) for r in rows])  # type: ignore[arg-type]
    motor = rows[task == "motor"]
    out = [
        Contrast(f"task: {other}", {"motor": 1.0}, {other: 1.0}, motor, rows[task == other])
        for other in TASKS
        if other != "motor"
    ]
    for name in ("field_strength", "year", "n", "age"):
        values = np.array([dataset.metadata[r][name] for r in rows], dtype=float)
        upper = values > np.median(values)
        if not upper.any():  # more than half have the largest value
            upper = values == values.max()
        low, high = float(values[~upper].mean()), float(values[upper].mean())
        out.append(Contrast(name, low, high, rows[~upper], rows[upper]))
    return out


class Recovery(NamedTuple):
    """What a model finds of one change; differences are of densities in units of the uniform one.

    Attributes
    ----------
    r, r_log : float
        Correlation over the mask of the mean counterfactual difference with the planted one: of
        densities, and of log densities. NaN where nothing was planted.
    slope : float
        Of the regression of the found on the planted difference; 1 is the right size.
    size, planted : float
        Root mean square of the found and of the planted difference.
    band : float
        End of the null band of `size`.
    r_subtraction : float
        What subtracting the two groups' kernel densities gives instead of `r`.
    """

    r: float
    r_log: float
    slope: float
    size: float
    planted: float
    band: float
    r_subtraction: float


def recover(atlas: Atlas, dataset: Dataset, truth: Truth, most: int = 24) -> dict[str, Recovery]:
    """Compare a model's counterfactual difference maps with the planted ones.

    Held-out studies are encoded with their own metadata and decoded twice, with one field at the
    low and at the high end of a contrast; differences are averaged over studies, found and planted
    alike. Densities are compared, not their logarithms, although the planted effect is linear
    there: the sampling error of a log density has no bound where peaks are rare, so that a
    correlation over the mask would weigh those cells most of which the studies say least.

    The null band of a contrast is the 95 % quantile, over permutations of the studies' group, of
    the size of the difference of the two groups' kernel densities (24 mm): what chance alone makes
    of these studies by plain subtraction.

    Parameters
    ----------
    atlas : Atlas
        Trained on `dataset`.
    dataset, truth
        From `simulate`.
    most : int
        At most this many test studies.

    Returns
    -------
    dict
        Recovery by name of the contrast.
    """
    smoothed, counts = _smoothed(dataset)
    rows = dataset.rows("test")[:most]
    codes = [atlas.encode(dataset.peaks(r), atlas.usable(dataset.metadata[r])) for r in rows]
    out = {}
    for contrast in contrasts(dataset):
        found, found_log, planted, planted_log = (
            np.mean(parts, axis=0)
            for parts in zip(
                *(
                    _differences(atlas, truth, code, dataset.ids[r], dataset.metadata[r], contrast)
                    for code, r in zip(codes, rows)
                )
            )
        )
        subtraction, band = _subtract(smoothed, counts, contrast)
        effect = _rms(planted)
        out[contrast.name] = Recovery(
            r=_r(found, planted),
            r_log=_r(found_log, planted_log),
            slope=float(found @ planted / (planted @ planted)) if effect else math.nan,
            size=_rms(found),
            planted=effect,
            band=band,
            r_subtraction=_r(subtraction, planted),
        )
    return out


def _differences(
    atlas: Atlas,
    truth: Truth,
    code: object,
    study_id: str,
    metadata: Metadata,
    contrast: Contrast,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Found and planted difference of one study, of densities and of log densities, (V,) each."""
    low = {**metadata, contrast.field: contrast.low}
    changes = {contrast.field: contrast.high}
    result = atlas.counterfactual(code, atlas.usable(low), changes)
    mask = space.load(RESOLUTION).mask
    f0, f1 = (m.mean.get_fdata()[mask] for m in (result.factual, result.counterfactual))
    t0, t1 = (truth.density(study_id, m) * len(f0) for m in (low, {**low, **changes}))
    return f1 - f0, np.log(f1) - np.log(f0), t1 - t0, np.log(t1) - np.log(t0)


def recovered_growth(atlas: Atlas, dataset: Dataset, most: int = 24) -> float:
    """Exponent of the sample size in the number of peaks, as the model imputes the number.

    The sample size of held-out studies is set to 10 and to 40, their number of peaks is hidden.
    """
    found = []
    for row in dataset.rows("test")[:most]:
        m = atlas.usable(dataset.metadata[row])
        code = atlas.encode(dataset.peaks(row), m)
        m.pop("n_peaks")
        small, large = (
            atlas.decode(code, {**m, "n": n}).imputed["n_peaks"]["mean"] for n in (10.0, 40.0)
        )
        found.append(math.log(large / small) / math.log(4))
    return float(np.mean(found))


def _smoothed(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Kernel density of each study, (S, V) float32, and its number of peaks, (S,)."""
    here = space.load(RESOLUTION)
    out = np.empty((len(dataset), here.n_cells), np.float32)
    for row in range(len(dataset)):
        width = np.array([SUBTRACTION_FWHM_MM])
        volume = splat_studies([dataset.peaks(row)], width, here.grid)[0, 0].numpy()
        out[row] = volume[here.mask] / volume[here.mask].sum()
    return out, np.diff(dataset.offsets)


def _subtract(
    smoothed: np.ndarray, counts: np.ndarray, contrast: Contrast
) -> tuple[np.ndarray, float]:
    """Difference of the groups' pooled kernel densities, (V,), and the null band of its size."""
    rows = np.concatenate([contrast.low_rows, contrast.high_rows])
    maps, weights = smoothed[rows], counts[rows].astype(np.float32)
    high = np.arange(len(rows)) >= len(contrast.low_rows)
    rng = np.random.default_rng(0)
    groups = np.stack([high, *(rng.permutation(high) for _ in range(PERMUTATIONS))])
    upper, lower = groups * weights, ~groups * weights
    signed = upper / upper.sum(1, keepdims=True) - lower / lower.sum(1, keepdims=True)
    differences = (signed.astype(np.float32) @ maps) * maps.shape[1]
    sizes = np.sqrt(np.square(differences[1:]).mean(1))
    return differences[0].astype(float), float(np.quantile(sizes, 0.95))


# ---------------------------------------------------------------------- whole experiments


def run(
    out: Path,
    train: Train,
    design: Design = STANDARD,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Simulate, train, recover, and write OUT/planted.json; the run folder is OUT/run.

    Parameters
    ----------
    out : Path
    train : callable
        `atlas.training.run.train`: evaluation never trains by itself.
    design : Design
    overrides : sequence of str
        ``section.key=value`` over the shipped ``planted`` configuration.

    Returns
    -------
    dict
        ``contrasts``: `Recovery` by name, as plain data; ``growth``: exponent of the sample size
        in the number of peaks, planted and recovered.
    """
    dataset, truth = simulate(out / "dataset", design)
    atlas = Atlas.load(train(config.load("planted", overrides), dataset, out / "run"))
    results = {
        "studies": len(dataset),
        "peaks": len(dataset.peaks_mm),
        "contrasts": {k: v._asdict() for k, v in recover(atlas, dataset, truth).items()},
        "growth": {"planted": design.growth, "recovered": recovered_growth(atlas, dataset)},
    }
    write_text(out / "planted.json", json.dumps(results, indent=1))
    return results


def year_reversal(
    out: Path,
    train: Train,
    design: Design = WITH_YEARS,
    overrides: Sequence[str] = (),
    weight: float = 1.0,
) -> dict[str, Any]:
    """Train on a planted year effect without and with the reversal, and write OUT/year.json.

    Longer than `run` does, from a lower beta: the code has to hold something first.

    Parameters
    ----------
    out, train, design, overrides
        As for `run`; every two years have a place of their own.
    weight : float
        `year.weight` of both runs; without the reversal the head learns and the codes do not
        hear of it.

    Returns
    -------
    dict
        By run ("without", "with"): ``year`` as in test_results.json, and what the reversal costs:
        ``r``, ``mse``, ``bits_half`` of the model on the test studies.
    """
    dataset, _ = simulate(out / "dataset", design)
    results = {}
    for name, ramp in (("without", "[1, 1]"), ("with", "[0, 0.2]")):
        settings = [*YEAR_SETTINGS, *overrides, f"year.weight={weight}", f"year.ramp={ramp}"]
        scores = evaluate(train(config.load("planted", settings), dataset, out / name), dataset)
        ours = scores["methods"]["atlas"]
        results[name] = {k: ours[k] for k in ("r", "mse", "bits_half")} | {"year": scores["year"]}
    write_text(out / "year.json", json.dumps(results, indent=1))
    return results


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _r(found: np.ndarray, planted: np.ndarray) -> float:
    """Correlation over the mask; NaN where nothing was planted."""
    return float(metrics.pearson(found[None], planted[None])[0]) if planted.std() else math.nan
