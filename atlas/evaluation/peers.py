"""The linear and count models that a model has to beat, each a `Predictor`, fitted on train.

Task (a): mean map, mean of the category, neighbours by topics, ridge on topics, topic mixture.
Task (b): the study's own kernel densities, its PCA reconstruction, ridge from half to half,
neighbours by halves. What they are mixed with, and how much of each, is decided by `benchmark`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from scipy import sparse

from atlas import metrics, space
from atlas.errors import AtlasError

from .baselines import PCA
from .protocol import RESOLUTION, Benchmark, Given, count_cells, smooth

HALF_FWHM = 14.0  # of the maps whose square roots the components of task (b) describe
COMPONENTS = 256


def log_density(maps: np.ndarray) -> np.ndarray:
    """Turn maps (S, V) into log densities: clipped at 0, summing to 1."""
    return np.log(np.maximum(metrics.normalise(maps, 0.0), 1e-30)).astype(np.float32)


class Training:
    """The training studies as arrays, and how a `Given` becomes a row of such arrays.

    Attributes
    ----------
    counts : (n, V) sparse float32, peaks in each cell
    root : (n,) float32, square root of the number of peaks: a study's weight
    topics : (n, K) float32, weights that sum to 1: of the field `topics`, or `task` without it
    """

    def __init__(self, bench: Benchmark) -> None:
        self._bench, self._rows = bench, bench.rows("train")
        self.counts = bench.counts(self._rows, "all")
        self.root = np.sqrt(bench.sizes[self._rows]).astype(np.float32)
        fields, coverage = bench.dataset.fields, bench.dataset.coverage("train")
        known = [name for name in ("topics", "task") if coverage.get(name)]
        if not known:
            raise AtlasError(
                f"{bench.dataset.path}: no training study has topics or a task, which the peers of "
                "the benchmark need"
            )
        self._name, self._categories = known[0], fields[known[0]].categories
        self._mean = np.full(len(self._categories), np.nan, np.float32)
        raw = self._weights(self._shown)
        self._mean = np.nanmean(raw, axis=0)
        self.topics = self._weights(self._shown)
        self._scale = np.maximum(self.topics.std(0), 1e-6)

    @cached_property
    def _shown(self) -> list[Given]:
        return self._bench.show(self._rows, "a")

    def halves(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Return the counts of the given and of the hidden halves, (n, V) each."""
        return self._bench.counts(self._rows, "given"), self._bench.counts(self._rows, "hidden")

    def _weights(self, studies: Sequence[Given]) -> np.ndarray:
        """Topic weights, (S, K); the training mean where a study has none."""
        out = np.tile(self._mean, (len(studies), 1))
        for row, study in zip(out, studies):
            value = study.metadata.get(self._name)
            if isinstance(value, dict):
                row[:] = [value.get(name, 0.0) for name in self._categories]
        return out

    def about(self, studies: Sequence[Given] | None = None) -> np.ndarray:
        """Topic weights of studies, (S, K); of the training studies without."""
        return self.topics if studies is None else self._weights(studies)

    def features(self, studies: Sequence[Given] | None = None) -> np.ndarray:
        """Standardised topic weights, (S, K)."""
        return (self.about(studies) - self.topics.mean(0)) / self._scale

    def category(self, studies: Sequence[Given] | None = None) -> list[str]:
        """Strongest task of each study, "" where its task is missing."""
        tasks = [s.metadata.get("task") for s in (self._shown if studies is None else studies)]
        return [max(t, key=t.__getitem__) if isinstance(t, dict) else "" for t in tasks]

    @cached_property
    def shares(self) -> sparse.csr_matrix:
        """Counts over the number of a study's peaks, (n, V)."""
        return shares(self.counts)


def cells_of(studies: Sequence[Given]) -> sparse.csr_matrix:
    """Count the given peaks in each cell, (S, V)."""
    cells, _ = space.load(RESOLUTION).cells(np.concatenate([s.peaks_mm for s in studies]))
    return count_cells(np.split(cells, np.cumsum([len(s.peaks_mm) for s in studies])[:-1]))


def _sparse(values: np.ndarray) -> sparse.csr_matrix:
    return sparse.csr_matrix(values, dtype=np.float32)


def shares(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Divide each row by its sum; an empty one stays."""
    total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1e-9)
    return sparse.csr_matrix(sparse.diags(1 / total) @ counts, dtype=np.float32)


def ridge(
    features: np.ndarray, targets: np.ndarray | sparse.csr_matrix, weights: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted ridge regression: centre (D,), mean (V,) and slopes (D, V)."""
    centre = weights @ features / weights.sum()
    x = features - centre
    gram = (x * weights[:, None]).T @ x + alpha * weights.sum() * np.eye(x.shape[1])
    slopes = np.linalg.solve(gram, np.asarray((x * weights[:, None]).T @ targets))
    return centre, np.asarray(weights @ targets) / weights.sum(), slopes.astype(np.float32)


# ---------------------------------------------------------------------- from the topics


class MeanMap:
    """The kernel density of all training peaks; a study of n peaks weighs sqrt(n)."""

    def __init__(self, train: Training, fwhm: float = 6.0, name: str = "mean map") -> None:
        self.name = name
        self._log = log_density(smooth(_sparse(train.root[None] @ train.shares), fwhm))

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`."""
        return np.repeat(self._log, len(studies), axis=0)


class CategoryMean:
    """The kernel density of the training studies of the same task category."""

    name = "category"

    def __init__(self, train: Training) -> None:
        self._train = train
        mine = np.array(train.category())
        self._row = {category: k for k, category in enumerate(np.unique(mine))}
        weights = np.stack([train.root * (mine == category) for category in self._row])
        everything = train.root[None]
        self._log = log_density(
            smooth(_sparse(np.concatenate([weights, everything]) @ train.shares), 8.0)
        )

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`; a category that training never saw takes everything."""
        return self._log[[self._row.get(c, -1) for c in self._train.category(studies)]]


class TopicNeighbours:
    """Mean of the k training studies with the most similar topics (Bhattacharyya)."""

    def __init__(self, train: Training, k: int) -> None:
        self._train, self._k, self.name = train, min(k, len(train.root)), f"neighbours-{k}"

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`."""
        train = self._train
        similar = np.sqrt(train.about(studies)) @ np.sqrt(train.topics).T
        return log_density(neighbours(similar, train, self._k, 10.0))


def neighbours(
    similar: np.ndarray, train: Training, k: int, fwhm: float, power: float = 0.0
) -> np.ndarray:
    """Average the smoothed maps of the k most similar training studies, (S, V).

    A study weighs the root of its number of peaks times its similarity to some power.
    """
    nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    weights = train.root[nearest]
    if power:
        likeness = np.take_along_axis(similar, nearest, 1)
        weights = weights * np.maximum(likeness, 1e-6) ** power
    ends = np.arange(0, nearest.size + 1, k)
    chosen = sparse.csr_matrix(
        (weights.ravel().astype(np.float32), nearest.ravel(), ends), shape=similar.shape
    )
    return smooth((chosen @ train.shares).toarray(), fwhm)


class TopicRidge:
    """Ridge regression of the maps on the topics (Dockes et al. 2020, eLife: NeuroQuery's kind)."""

    def __init__(self, train: Training, alpha: float) -> None:
        self._train, self.name = train, f"ridge-{alpha:g}"
        self._centre, mean, slopes = ridge(train.features(), train.shares, train.root, alpha)
        # Smoothing is linear: the regression is of cells, and its few maps are smoothed.
        self._mean, self._slopes = np.split(smooth(_sparse(np.vstack([mean, slopes])), 10.0), [1])

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`."""
        moved = self._train.features(studies) - self._centre
        return log_density(self._mean + moved.astype(np.float32) @ self._slopes)


class TopicMixture:
    """p(cell | study) = sum over topics of weight * p(cell | topic), by EM.

    Each M step smooths the topics' densities (the count model behind GC-LDA, Rubin et al. 2017,
    PLoS Comput Biol, without its regions).
    """

    name = "topic mixture"

    def __init__(self, train: Training, fwhm: float = 8.0, steps: int = 15) -> None:
        self._train = train
        q, counts = train.topics, sparse.csr_matrix(sparse.diags(1 / train.root) @ train.counts)
        row = np.repeat(np.arange(len(q)), np.diff(counts.indptr))
        start = smooth(np.asarray(counts.sum(0)), fwhm)
        noise = np.random.default_rng(0).random((q.shape[1], counts.shape[1]), np.float32)
        phi = start * (1 + 0.1 * noise)
        phi /= phi.sum(1, keepdims=True)
        for _ in range(steps):
            expected = np.einsum("pk,pk->p", q[row], np.ascontiguousarray(phi.T)[counts.indices])
            expected = np.maximum(expected, 1e-30)
            ratio = sparse.csr_matrix(
                (counts.data / expected, counts.indices, counts.indptr), shape=counts.shape
            )
            phi = smooth(phi * (ratio.T @ q).T, fwhm)
            phi /= np.maximum(phi.sum(1, keepdims=True), 1e-30)
        self._phi = phi

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`."""
        return log_density(self._train.about(studies) @ self._phi)


# ---------------------------------------------------------------------- from one half of the peaks


class OwnKernels:
    """The kernel density of the given peaks."""

    def __init__(self, fwhm: float) -> None:
        self._fwhm, self.name = fwhm, f"own {fwhm:g} mm"

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`."""
        return log_density(smooth(cells_of(studies), self._fwhm))


class RootMaps:
    """Components of the square roots of the training studies' smoothed densities."""

    def __init__(self, train: Training) -> None:
        components = min(COMPONENTS, len(train.root) - 1)
        maps = self._maps(train.counts)
        self.pca = PCA(maps, components)
        self.codes = self.pca.encode(maps)

    @staticmethod
    def _maps(counts: sparse.csr_matrix) -> np.ndarray:
        maps = smooth(shares(counts), HALF_FWHM)
        return np.sqrt(maps, out=maps)

    def encode(self, counts: sparse.csr_matrix) -> np.ndarray:
        """Return codes (S, components) of counts of any part of the peaks."""
        return self.pca.encode(self._maps(counts))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return log densities (S, V) of codes; of the leading components alone if shorter."""
        return log_density(np.square(np.maximum(self.pca.decode(codes), 0)))


class HalfComponents:
    """The given half's reconstruction from the leading components."""

    def __init__(self, maps: RootMaps, components: int) -> None:
        self._maps, self._components = maps, components
        self.name = f"PCA-{components}"

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`."""
        return self._maps.decode(self._maps.encode(cells_of(studies))[:, : self._components])


class HalfRidge:
    """Ridge regression of the hidden half's components on the given half's and the topics."""

    name = "ridge half"

    def __init__(self, train: Training, maps: RootMaps, alpha: float = 0.02) -> None:
        self._train, self._maps = train, maps
        given, hidden = (maps.encode(counts) for counts in train.halves())
        self._scale = given[:, 0].std()
        self._centre, self._mean, self._slopes = ridge(
            self._features(given, train.features()), hidden, train.root, alpha
        )

    def _features(self, codes: np.ndarray, topics: np.ndarray) -> np.ndarray:
        return np.concatenate([codes / self._scale, 0.3 * topics], axis=1)

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`."""
        codes = self._maps.encode(cells_of(studies))
        x = self._features(codes, self._train.features(studies)) - self._centre
        return self._maps.decode((self._mean + x @ self._slopes).astype(np.float32))


class HalfNeighbours:
    """Mean of the 200 training studies whose components are most like the given half's."""

    name = "neighbours of the half"

    def __init__(self, train: Training, maps: RootMaps, k: int = 200) -> None:
        self._train, self._maps, self._k = train, maps, min(k, len(train.root))

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`."""
        similar = (
            _directions(self._maps.encode(cells_of(studies))) @ _directions(self._maps.codes).T
        )
        return log_density(neighbours(similar, self._train, self._k, 9.0, power=2.0))


def _directions(codes: np.ndarray) -> np.ndarray:
    return codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-20)
