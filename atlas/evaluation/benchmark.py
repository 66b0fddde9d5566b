"""The benchmark: any `Predictor` beside the linear peers, on held-out studies.

(a) a study nobody has seen, from what it is about; (b) one half of a study's peaks, where is the
other; (c) the whole study, its smoothed map (`reconstruction`); (d) the other half's numbers in
regions (`region_counts`). Rules: `protocol`; peers: `peers`.

A row of (a) and (b) is a mixture of one or more densities and the uniform one. The weights are
those under which the validation studies' peaks are likeliest, every study counting the same; in
the peers' rows the uniform density keeps at least `UNIFORM_FLOOR`. Where a row has alternatives (a
ridge of several strengths), the likeliest on validation is scored. Test studies choose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from atlas import __version__, metrics, progress, space
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError

from . import peers, reconstruction, region_counts
from .protocol import RESOLUTION, TASKS, Benchmark, Peaks, Predictor, Task, check, smooth

TARGET_FWHM = 10.0  # of the map of the peaks that r compares a density with
UNIFORM_FLOOR: dict[Task, float] = {"a": 0.02, "b": 0.01}
COUNTED = {  # rows of (d): whose densities
    "mean map": "mean map",
    "topic mixture": "topic mixture",
    "ridge half to half": "ridge half",
}
_SCORED: dict[Task, Peaks] = {"a": "all", "b": "hidden"}
_BLOCK, _EM_STEPS = 128, 80

Recipe = tuple[str, ...]  # the densities that a row mixes, by name; the uniform one always joins
Rows = dict[str, list[Recipe]]  # a row's alternatives


def run(
    dataset: Dataset,
    predictors: Sequence[Predictor] = (),
    tasks: Sequence[str] = tuple(TASKS),
    split: str = "test",
    count_studies: int | None = None,
    draws: int = region_counts.DRAWS,
) -> dict[str, Any]:
    """Score predictors beside the peers.

    Parameters
    ----------
    dataset : Dataset
        Its splits train the peers, choose (val) and are scored.
    predictors : sequence of Predictor
        What takes part; (c) also scores `latent` and `rate`, where a predictor has them, and (d)
        asks for `samples`.
    tasks : sequence of {"a", "b", "c", "d"}
    split : str
        "test", or "val" while developing.
    count_studies, draws : int, optional
        Studies that (d) scores, by default all; densities that it draws from a model.

    Returns
    -------
    dict
        For each task "peers" and "runs": by name the measures as [mean, low, high] over studies
        with a 95 % bootstrap interval, and the weights or widths chosen on validation.

    Raises
    ------
    AtlasError
        Unknown task, two predictors of one name, a split without studies that count, a dataset
        without topics and tasks, a prediction that is no log density over the 4 mm cells.
    """
    tasks = check_tasks(tasks)
    names = [predictor.name for predictor in predictors]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise AtlasError(f"two runs are called {twice.pop()}: their rows could not be told apart")
    bench = Benchmark(dataset)
    scored = bench.rows(split)
    out: dict[str, Any] = {
        "atlas": __version__,
        "dataset": dataset.fingerprint,
        "source": dataset.info["source"]["name"],
        "split": split,
        "studies": len(scored),
        "peaks": int(bench.sizes[scored].sum()),
        "tasks": {},
    }
    train = None if set(tasks) == {"c"} else peers.Training(bench)
    halves = _halves(train) if train and {"b", "d"} & set(tasks) else ([], {})
    for task in tasks:
        if train is None or task == "c":
            out["tasks"][task] = reconstruction.score(bench, predictors, split)
        elif task == "d":
            named = {part.name: part for part in halves[0]}
            chosen = {row: named[part] for row, part in COUNTED.items()}
            out["tasks"][task] = region_counts.score(
                bench, chosen, predictors, split, count_studies, draws
            )
        else:
            parts, rows = _unseen(train) if task == "a" else halves
            out["tasks"][task] = score(bench, task, parts, rows, predictors, split)
    return out


def check_tasks(tasks: Sequence[str]) -> list[Task]:
    """Return the tasks in order, each once; an unknown one raises AtlasError."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        named = ", ".join(map(repr, unknown)) or "none"
        raise AtlasError(f"tasks: expected some of {', '.join(TASKS)}, got {named}")
    return [task for task in TASKS if task in tasks]


def _unseen(train: peers.Training) -> tuple[list[Predictor], Rows]:
    """Fit the peers of task (a); name their rows."""
    alphas, ks = (0.2, 0.4, 0.8), (200, 400, 700)
    parts: list[Predictor] = [
        peers.MeanMap(train),
        peers.CategoryMean(train),
        *(peers.TopicNeighbours(train, k) for k in ks),
        *(peers.TopicRidge(train, alpha) for alpha in alphas),
        peers.TopicMixture(train),
    ]
    rows: Rows = {
        "uniform": [()],
        "mean map": [("mean map",)],
        "category mean": [("category", "mean map")],
        "kNN on topics": [(f"neighbours-{k}", "mean map") for k in ks],
        "ridge on topics": [(f"ridge-{alpha:g}",) for alpha in alphas],
        "topic mixture": [("topic mixture",)],
    }
    return parts, rows


def _halves(train: peers.Training) -> tuple[list[Predictor], Rows]:
    """Fit the peers of task (b); name their rows."""
    maps = peers.RootMaps(train)
    parts: list[Predictor] = [
        peers.MeanMap(train),
        peers.TopicMixture(train),
        *(peers.OwnKernels(fwhm) for fwhm in (8.0, 14.0, 30.0)),
        peers.HalfComponents(maps, 64),
        peers.HalfNeighbours(train, maps),
        peers.HalfRidge(train, maps),
    ]
    own, topics = ("own 8 mm", "own 14 mm", "own 30 mm"), "topic mixture"
    rows: Rows = {
        "topics only": [(topics,)],
        "own kernel density + mean map": [(*own, "mean map")],
        "own kernel density + topics": [(*own, topics)],
        "PCA-64 + topics": [("PCA-64", topics)],
        "200 neighbours + topics": [("neighbours of the half", topics)],
        "ridge half to half + topics": [("ridge half", topics)],
    }
    return parts, rows


# ---------------------------------------------------------------------- scoring densities


def score(
    bench: Benchmark,
    task: Task,
    parts: Sequence[Predictor],
    rows: Rows,
    predictors: Sequence[Predictor],
    split: str,
) -> dict[str, Any]:
    """Score task (a) or (b): the peers' rows, their stack, and a row a predictor."""
    taken = {*rows, *(part.name for part in parts), "stack", "uniform", ""}
    clash = [p.name for p in predictors if p.name in taken]
    if clash:
        raise AtlasError(f"{clash[0]!r}: a peer has this name; rename the run's folder")
    by_name = {p.name: p for p in (*parts, *predictors)}
    on_val, floor = _likelihoods(bench, task, by_name), UNIFORM_FLOOR[task]
    chosen = {name: best(on_val, alternatives, floor) for name, alternatives in rows.items()}
    everything = dict.fromkeys(chain.from_iterable(chosen.values()))
    stack = tuple(name for name in everything if name != "uniform")
    chosen["stack"] = best(on_val, [stack], floor)
    own = tuple(part.name for part in parts if isinstance(part, peers.OwnKernels))
    mine: Rows = {p.name: [(p.name,)] for p in predictors}
    if own:  # what no code keeps: where exactly the given peaks lie
        mine |= {f"{p.name} + own kernel density": [(p.name, *own)] for p in predictors}
    chosen |= {name: best(on_val, recipes, 0.0) for name, recipes in mine.items()}
    values = _measure(bench, task, by_name, chosen, split)
    scores = {
        name: {
            **{measure: metrics.interval(v, 4) for measure, v in values[name].items()},
            "weights": {part: round(float(w), 4) for part, w in chosen[name].items()},
        }
        for name in chosen
    }
    ours = {name: scores.pop(name) for name in mine}
    for name, row in ours.items():
        gains = {peer: values[name]["bits"] - values[peer]["bits"] for peer in scores}
        row["gain"] = {peer: metrics.interval(gain, 4) for peer, gain in gains.items()}
    return {"peers": scores, "runs": ours}


def _blocks(rows: np.ndarray, what: str) -> Iterator[np.ndarray]:
    """Yield the rows some at a time, with a progress bar."""
    blocks = np.split(rows, np.arange(_BLOCK, len(rows), _BLOCK))
    with progress.track(what, len(blocks)) as ticker:
        for block in blocks:
            yield block
            ticker.advance()


def _likelihoods(
    bench: Benchmark, task: Task, parts: Mapping[str, Predictor]
) -> dict[str, np.ndarray]:
    """Density of each part at the validation studies' peaks, (N,) by name.

    "uniform" is one of them; "" holds the peaks' weights, which sum to 1 over all studies.
    """
    which, rows = _SCORED[task], bench.rows("val")
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*parts, "")}
    for block in _blocks(rows, f"({task}) choosing on validation"):
        counts, studies = bench.counts(block, which), bench.show(block, task)
        counts.sum_duplicates()
        row = np.repeat(np.arange(len(block)), np.diff(counts.indptr))
        found[""].append(counts.data / np.asarray(counts.sum(1)).ravel()[row] / len(rows))
        for name, part in parts.items():
            density = check(part, part.predict(studies), len(block))
            found[name].append(density[row, counts.indices])
    out = {name: np.concatenate(values).astype(np.float64) for name, values in found.items()}
    return {**out, "uniform": np.full(len(out[""]), 1 / space.load(RESOLUTION).n_cells)}


def best(
    on_val: Mapping[str, np.ndarray], alternatives: Sequence[Recipe], floor: float
) -> dict[str, float]:
    """Return the weights, by name, of the alternative under which validation is likeliest."""
    fits = [_mixture(on_val, recipe, floor) for recipe in alternatives]
    return max(fits, key=lambda fit: fit[0])[1]


def _mixture(
    on_val: Mapping[str, np.ndarray], recipe: Recipe, floor: float
) -> tuple[float, dict[str, float]]:
    """Fit a mixture's weights by EM: its mean log-likelihood on validation, and the weights."""
    names, weight = (*recipe, "uniform"), on_val[""]
    likelihood = np.maximum(np.stack([on_val[name] for name in names]), 1e-12)
    share = np.full(len(names), 1 / len(names))
    for _ in range(_EM_STEPS):
        joint = share[:, None] * likelihood
        share = (joint / joint.sum(0)) @ weight
        share /= share.sum()
    if share[-1] < floor:
        share[:-1] *= (1 - floor) / share[:-1].sum()
        share[-1] = floor
    return float(np.log(share @ likelihood) @ weight), dict(zip(names, share))


def _measure(
    bench: Benchmark,
    task: Task,
    parts: Mapping[str, Predictor],
    chosen: Mapping[str, Mapping[str, float]],
    split: str,
) -> dict[str, dict[str, np.ndarray]]:
    """Measure each row's mixture on a split, one value a study."""
    which = _SCORED[task]
    needed = {name for weights in chosen.values() for name in weights} - {"uniform"}
    found: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in chosen}
    for block in _blocks(bench.rows(split), f"({task}) scoring {split}"):
        sparse_counts, studies = bench.counts(block, which), bench.show(block, task)
        counts, target = sparse_counts.toarray(), smooth(sparse_counts, TARGET_FWHM)
        densities = {
            name: check(parts[name], parts[name].predict(studies), len(block)) for name in needed
        }
        for name, weights in chosen.items():
            density = np.full(counts.shape, weights["uniform"] / counts.shape[1], np.float32)
            for part, weight in weights.items():
                if part != "uniform":
                    density += np.float32(weight) * densities[part]
            found[name].append(
                {
                    "bits": metrics.bits_per_peak(density, counts),
                    "auc": metrics.peak_auc(density, counts),
                    "r": metrics.pearson(density, target),
                }
            )
    return {
        name: {m: np.concatenate([v[m] for v in values]) for m in ("bits", "auc", "r")}
        for name, values in found.items()
    }
