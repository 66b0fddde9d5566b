"""A run on held-out studies, beside the baselines -> test_results.json.

Three questions, each on studies that training never saw:
  map       the whole study given: does the decoded map look like its map (maximum 1)?
  unseen    only the metadata given (not the number of peaks, which is counted from them): where
            are the peaks, in bits a peak above the uniform map?
  half      one half of the peaks given: where is the other half?
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from atlas import __version__, metrics, model_file, objectives, progress, space
from atlas.contracts import Batch
from atlas.data import dataset as dataset_module
from atlas.data.batches import EpochSampler, StudyBatches, View, loader
from atlas.data.dataset import Dataset
from atlas.data.density import mean_density
from atlas.errors import AtlasError
from atlas.files import write_text
from atlas.inference import Atlas
from atlas.models.model import Model

from . import criteria, held_out, probes
from .baselines import PCA, MeanMap, Ridge

UNIFORM = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)  # mass mixed into a density, chosen on validation
MEAN_FWHM_MM = (8.0, 10.0, 12.0, 16.0)
ALPHAS = (0.1, 0.3, 1.0, 3.0)
SAMPLES = 64  # codes of the prior averaged over; the posterior is narrower and takes an eighth
BATCH = 32

# Mean and sd of the posterior -> mean and sd of the codes to draw.
Law = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Split:
    """One split: its batches, made anew each time, and its arrays: S studies over V cells.

    All of Neurosynth's batches would take more memory than its arrays, and the training studies
    need few of those: each is made when it is first asked for.

    Attributes
    ----------
    whole, half : DataLoader of Batch
        All peaks of each study given; one half given, the other counted.
    """

    def __init__(self, dataset: Dataset, split: str, card: model_file.Card) -> None:
        rows, edges = dataset.rows(split), np.array(card.year_edges)

        def batches(view: View) -> DataLoader[Batch]:
            source = StudyBatches(dataset, card.data, edges, view=view, seed=card.seed)
            return loader(source, EpochSampler(rows, BATCH, shuffle=False))

        self.ids = tuple(dataset.ids[row] for row in rows)
        self.whole, self.half = batches("whole"), batches("half")
        self._mask = torch.from_numpy(space.load(card.data.resolution).mask.copy())

    @cached_property
    def maps(self) -> np.ndarray:
        """Of all peaks, maximum 1, (S, V)."""
        return self._maps(self.whole)

    @cached_property
    def half_maps(self) -> np.ndarray:
        """Of the given half, maximum 1, (S, V)."""
        return self._maps(self.half)

    def _maps(self, batches: Iterable[Batch]) -> np.ndarray:
        return metrics.scale_to_max(_stack([b.volume_B1XYZ[:, 0, self._mask] for b in batches]))

    @cached_property
    def counts(self) -> np.ndarray:
        """Peaks in each cell, (S, V)."""
        return _stack([batch.counts_BV for batch in self.whole])

    @cached_property
    def half_counts(self) -> np.ndarray:
        """Peaks of the half to predict, (S, V)."""
        return _stack([batch.counts_BV for batch in self.half])

    @cached_property
    def metadata(self) -> np.ndarray:
        """Encoded metadata, (S, M)."""
        return _stack([batch.metadata_BM for batch in self.whole])

    @cached_property
    def observed(self) -> np.ndarray:
        """Which of them are known, (S, M)."""
        return _stack([batch.observed_BM for batch in self.whole])


def evaluate(
    run: Path,
    dataset: Dataset | None = None,
    split: str = "test",
    samples: int = SAMPLES,
    baseline: Path | None = None,
    unreversed: Path | None = None,
) -> dict[str, Any]:
    """Score a run and write RUN/test_results.json.

    Parameters
    ----------
    run : Path
        A finished run folder.
    dataset : Dataset, optional
        The dataset it was trained on; by default found beside or through the run.
    split : str
        "test", or "val" while developing, which is written to val_results.json.
    samples : int
        Codes of the prior that the density of an unseen study averages over.
    baseline : Path, optional
        A run of the baseline model on the same data, which the criteria compare with.
    unreversed : Path, optional
        A run without the reversed gradient: how well the year is read from its codes stands beside.

    Returns
    -------
    dict
        What test_results.json holds: each measure as [mean, low, high] over studies with a 95 %
        bootstrap interval, by method.

    Raises
    ------
    AtlasError
        The run has no model, or the dataset is missing or another one.
    """
    model, card = model_file.read(run)
    dataset = own_dataset(run, card, dataset)
    parts = {name: Split(dataset, name, card) for name in {"train", "val", split}}
    densities = mean_densities(dataset, card.data.resolution)
    measures = score(model, card, parts["train"], parts["val"], parts[split], densities, samples)
    results = {
        "atlas": __version__,
        "run": run.resolve().name,
        "dataset": dataset.fingerprint,
        "source": dataset.info["source"]["name"],
        "split": split,
        "studies": len(parts[split].ids),
        **measures,
        "year": year_accuracy(model, card, parts["train"], parts[split]),
        **held_out.measure(model, card, parts[split]),
    }
    if unreversed and results["year"]:
        results["year"]["without_reversal"] = year_without(unreversed, dataset, split)
    results["below"] = below_baselines(results["methods"])
    other = baseline_results(baseline, card, dataset, split, samples) if baseline else None
    results["criteria"] = criteria.judge(Atlas(model, card), results, results["task"], other)
    write_text(run / f"{split}_results.json", json.dumps(results, indent=1))
    return results


def baseline_results(
    run: Path, card: model_file.Card, dataset: Dataset, split: str, samples: int
) -> dict[str, Any]:
    """Evaluate the baseline's run on the same studies; maps that cannot be compared are refused."""
    other = model_file.read(run)[1].data
    if (other.resolution, other.fwhm[0]) != (card.data.resolution, card.data.fwhm[0]):
        raise AtlasError(f"{run}: has maps of another resolution or kernel width than the model")
    return evaluate(run, dataset, split, samples)


def own_dataset(run: Path, card: model_file.Card, dataset: Dataset | None) -> Dataset:
    """Return the dataset that a run was trained on, found if not given; another is refused."""
    dataset = dataset or find_dataset(run)
    if dataset.fingerprint != card.dataset:
        raise AtlasError(
            f"{run}: was trained on another dataset than {dataset.path}; its splits would not hold"
        )
    return dataset


def find_dataset(run: Path) -> Dataset:
    """Return the dataset of a run; see `dataset_folder`."""
    return dataset_module.read(dataset_folder(run))


def dataset_folder(run: Path) -> Path:
    """Find a run's dataset: RUN/dataset, else the folder named in environment.json."""
    if (run / "dataset").is_dir():
        return run / "dataset"
    try:
        return Path(json.loads((run / "environment.json").read_text())["dataset"]["path"])
    except (OSError, KeyError, TypeError, ValueError):
        raise AtlasError(f"{run}: does not say which dataset it used; give --data") from None


def _stack(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(parts).numpy()


# ---------------------------------------------------------------------- the model's predictions


@torch.inference_mode()
def reconstruct(
    model: Model, batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return decoded densities (S, V), posterior means (S, D) and KL by direction (S, D)."""
    outputs = [model(batch, batch.observed_BM) for batch in batches]
    return (
        _stack([o.decoded.log_density_BV.exp() for o in outputs]),
        _stack([o.mean_BD for o in outputs]),
        _stack([objectives.kl_nats(o.mean_BD, o.log_variance_BD) for o in outputs]),
    )


def mean_densities(dataset: Dataset, resolution: int) -> np.ndarray:
    """Kernel densities of the training studies' peaks at several widths, (widths, V)."""
    rows = dataset.rows("train")
    stacked = [mean_density(dataset, rows, resolution, width) for width in MEAN_FWHM_MM]
    return np.stack([0.999 * d + 0.001 / len(d) for d in stacked])  # no cell is impossible


def unseen_density(model: Model, split: Split, shown: np.ndarray, samples: int) -> np.ndarray:
    """Density of a study of which only the metadata in `shown`, (M,), are known, (S, V).

    A model whose code was dropped in training says it at z = 0; others average over the prior. One
    that takes no metadata says the same of every study.
    """
    if not model.conditional:
        one = Batch(*(part[:1] for part in next(iter(split.whole))))
        density = average(model, one, *unseen_law(model, samples)).numpy()
        return density.repeat(len(split.ids), axis=0)
    return predictive(model, split.whole, *unseen_law(model, samples), torch.from_numpy(shown))


def unseen_law(model: Model, samples: int) -> tuple[int, Law]:
    """How many codes to draw, and from where, for a study without peaks."""
    if model.code_dropout:
        return 1, lambda mean, _: (0 * mean, 0 * mean)
    return samples, lambda mean, _: (0 * mean, 1 + 0 * mean)


def half_density(model: Model, batches: DataLoader[Batch], samples: int) -> np.ndarray:
    """Density of a study of which a half is known, averaged over the posterior, (S, V)."""
    return predictive(model, batches, samples, posterior)


def posterior(mean: torch.Tensor, sd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw codes from the posterior itself."""
    return mean, sd


@torch.inference_mode()
def predictive(
    model: Model,
    batches: DataLoader[Batch],
    samples: int,
    law: Law,
    shown_M: torch.Tensor | None = None,
) -> np.ndarray:
    """Average decoded densities over codes, (S, V).

    Parameters
    ----------
    law : callable
        Mean and sd of the codes to draw, from mean and sd of the posterior.
    shown_M : (M,) tensor, optional
        0 for metadata to hide.
    """
    out = []
    with progress.track("predicting held-out studies", len(batches) * samples) as ticker:
        for batch in batches:
            if shown_M is not None:
                batch = batch._replace(observed_BM=batch.observed_BM * shown_M)
            out.append(average(model, batch, samples, law))
            ticker.advance(samples)
    return _stack(out)


def average(model: Model, batch: Batch, samples: int, law: Law) -> torch.Tensor:
    """Average the decoded densities of one batch over codes, (B, V); see `predictive`."""
    density_BV = torch.zeros_like(batch.counts_BV)
    for drawn_BV in draws(model, batch, samples, law):
        density_BV += drawn_BV / samples
    return density_BV


@torch.inference_mode()
def draws(model: Model, batch: Batch, samples: int, law: Law) -> Iterator[torch.Tensor]:
    """Yield the densities, (B, V), that draws of the codes decode to.

    The k-th draw takes the same standard normal vector in every study, so that what a study gets
    does not depend on which others are asked about.
    """
    m_BM, kept_BM = batch.metadata_BM, batch.observed_BM
    mean_BD, log_variance_BD = model.encode(batch.volume_B1XYZ, m_BM, kept_BM)
    mean_BD, sd_BD = law(mean_BD, torch.exp(0.5 * log_variance_BD))
    generator = torch.Generator().manual_seed(0)
    for _ in range(samples):
        z_BD = mean_BD + sd_BD * torch.randn(mean_BD.shape[1], generator=generator)
        imputed_BM, _ = model.impute(z_BD, m_BM, kept_BM)
        filled_BM = torch.where(kept_BM > 0, m_BM, imputed_BM)
        yield model.decode(z_BD, filled_BM).log_density_BV.exp()


# ---------------------------------------------------------------------- scores


def score(
    model: Model,
    card: model_file.Card,
    train: Split,
    val: Split,
    test: Split,
    densities: np.ndarray,
    samples: int,
) -> dict[str, Any]:
    """Score the model and the baselines on one split."""
    resolution, latent = card.data.resolution, card.model.latent
    density, means, kl = reconstruct(model, test.whole)
    pca = PCA(train.maps, latent)
    ridge = _choose_ridge(train, val)
    mean = MeanMap(train.maps)
    # A density has no scale of its own: one factor for all studies, from validation.
    val_density = reconstruct(model, val.whole)[0]
    factor = (val_density * val.maps).sum() / np.square(val_density).sum()
    maps = {
        "atlas": factor * density,
        "mean map": mean.predict(len(test.ids)),
        f"PCA-{latent}": pca.reconstruct(test.maps),
        "ridge": ridge.predict(test.metadata, test.observed),
    }

    # For likelihoods the mean map is the kernel density of all training peaks, its width chosen.
    on_val = [metrics.bits_per_peak(np.tile(d, (len(val.ids), 1)), val.counts) for d in densities]
    base = densities[int(np.argmax([bits.mean() for bits in on_val]))]
    table = card.table()
    count_hidden = np.ones(table.width, np.float32)
    count_hidden[table.slices["n_peaks"]] = 0

    def unseen(s: Split) -> dict[str, np.ndarray]:
        known = s.observed * count_hidden
        return {
            "atlas": unseen_density(model, s, count_hidden, samples),
            "mean map": np.tile(base, (len(s.ids), 1)),
            "ridge": ridge.predict(s.metadata, known),
        }

    def half(s: Split) -> dict[str, np.ndarray]:
        return {
            "atlas": half_density(model, s.half, max(1, samples // 8)),
            "mean map": np.tile(base, (len(s.ids), 1)),
            f"PCA-{latent}": pca.reconstruct(s.half_maps),
            "ridge": ridge.predict(s.metadata, s.observed),
        }

    bits_unseen = _bits(unseen(val), val.counts, unseen(test), test.counts)
    bits_half = _bits(half(val), val.half_counts, half(test), test.half_counts)
    methods = {
        name: {
            **_map_scores(predicted, test.maps, resolution),
            **({"bits_unseen": bits_unseen[name]} if name in bits_unseen else {}),
            "bits_half": bits_half[name],
        }
        for name, predicted in maps.items()
    }
    return {
        "methods": methods,
        "latent": {
            "size": latent,
            "active_units": metrics.active_units(means),
            "kl_nats": round(float(kl.sum(1).mean()), 3),
            "kl_by_direction": np.round(kl.mean(0), 4).tolist(),
            "mean_pairwise_correlation": round(metrics.mean_pairwise_correlation(density), 4),
        },
    }


def _choose_ridge(train: Split, val: Split) -> Ridge:
    """Fit at each strength; keep the one whose maps err least on the validation studies."""
    fits = [Ridge(train.metadata, train.observed, train.maps, alpha) for alpha in ALPHAS]
    errors = [metrics.mse(f.predict(val.metadata, val.observed), val.maps).mean() for f in fits]
    return fits[int(np.argmin(errors))]


def _bits(
    val: dict[str, np.ndarray],
    val_counts: np.ndarray,
    test: dict[str, np.ndarray],
    test_counts: np.ndarray,
) -> dict[str, list[float]]:
    """Bits a peak of each method, its uniform mass chosen on validation."""
    out = {}
    for name, predicted in val.items():
        on_val = [
            np.nanmean(metrics.bits_per_peak(metrics.normalise(predicted, u), val_counts))
            for u in UNIFORM
        ]
        best = UNIFORM[int(np.argmax(on_val))]
        out[name] = metrics.interval(
            metrics.bits_per_peak(metrics.normalise(test[name], best), test_counts)
        )
    return out


def _map_scores(predicted: np.ndarray, target: np.ndarray, resolution: int) -> dict[str, Any]:
    here = space.load(resolution)
    error = metrics.mse(predicted, target)
    volumes = here.volume(np.ascontiguousarray(predicted)), here.volume(target)
    return {
        "r": metrics.interval(metrics.pearson(predicted, target)),
        "ssim": metrics.interval(metrics.ssim(*volumes, here.mask)),
        "mse": metrics.interval(error),
        "rmse": metrics.interval(np.sqrt(error)),
        "psnr": metrics.interval(metrics.psnr(error)),
    }


def year_accuracy(
    model: Model, card: model_file.Card, train: Split, split: Split
) -> dict[str, Any] | None:
    """Balanced accuracy with which the year is read from codes.

    Read by the trained year head, and by fresh probes on the frozen codes (`probes`). The encoder
    is not shown the year. None for a model without a year head, or where no year is known.
    """
    means, drawn, bins = _codes_without_year(model, card, split)
    known = bins >= 0
    if model.year is None or not known.any():
        return None
    with torch.inference_mode():
        head = objectives.predicted_bin(model.year(torch.from_numpy(means[known]))).numpy()
    adversary = probes.score(head, bins[known])
    means_train, drawn_train, bins_train = _codes_without_year(model, card, train)
    return {
        "balanced_accuracy": adversary["balanced_accuracy"][0],
        "chance": round(1 / len(np.unique(bins[known])), 4),
        "adversary": adversary,
        "probes": probes.read_bins(means_train, bins_train, means, bins),
        "probes_drawn": probes.read_bins(drawn_train, bins_train, drawn, bins),
    }


def year_without(run: Path, dataset: Dataset, split: str) -> dict[str, Any] | None:
    """`year_accuracy` of another run on the same studies."""
    model, card = model_file.read(run)
    dataset = own_dataset(run, card, dataset)
    return year_accuracy(model, card, *(Split(dataset, name, card) for name in ("train", split)))


@torch.inference_mode()
def _codes_without_year(
    model: Model, card: model_file.Card, split: Split
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of an encoder that is not shown the year, and year bins (S,).

    The posterior's means (S, D), and one draw from it (S, D), which is what decoder and adversary
    were trained on. A probe can read means that differ by less than the posterior's spread.
    """
    table = card.table()
    shown_M = torch.ones(table.width)
    shown_M[table.slices["year"]] = 0
    generator = torch.Generator().manual_seed(0)
    means, drawn, bins = [], [], []
    for b in split.whole:
        mean, log_variance = model.encode(b.volume_B1XYZ, b.metadata_BM, b.observed_BM * shown_M)
        noise = torch.randn(mean.shape, generator=generator)
        means.append(mean)
        drawn.append(mean + torch.exp(0.5 * log_variance) * noise)
        bins.append(b.year_bin_B)
    return _stack(means), _stack(drawn), _stack(bins)


LOWER_IS_BETTER = ("mse", "rmse")


def below_baselines(methods: dict[str, dict[str, list[float]]]) -> dict[str, list[str]]:
    """Name, for each baseline, the measures in which its mean beats the model's."""
    out: dict[str, list[str]] = {}
    for name, scores in methods.items():
        for measure, values in scores.items():
            ours, theirs = methods["atlas"][measure][0], values[0]
            if ours > theirs if measure in LOWER_IS_BETTER else ours < theirs:
                out.setdefault(name, []).append(measure)
    return out
