"""The rules of the benchmark: which peaks and studies count, what a model is shown, what it owes.

Everything happens on the 4 mm grid's V mask cells. A peak farther than 8 mm from the mask is
dropped, one nearer but outside goes to the nearest cell; a study needs 5 peaks. Splits are the
dataset's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch
from scipy import sparse
from scipy.ndimage import gaussian_filter

from atlas import space
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.metadata import Value
from atlas_kernels import splat

from .regions import pool

Task = Literal["a", "b", "c", "d"]
Peaks = Literal["all", "given", "hidden"]
TASKS: dict[Task, str] = {
    "a": "a study nobody has seen, from what it is about",
    "b": "one half of the peaks given: where is the other half?",
    "c": "the whole study given: its smoothed map, maximum 1",
    "d": "one half of the peaks given: how many of the others in each region of equal mass?",
}
RESOLUTION = 4
MAX_MM, MIN_PEAKS = 8.0, 5
SHOWN = ("task", "topics", "year")  # never the number of peaks, which is counted from them
_HALF_SEED = 77
_REACH = 3.5  # sigmas
FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


@dataclass(frozen=True, eq=False)
class Given:
    """What a model is shown of one study.

    Attributes
    ----------
    id : str
    peaks_mm : (P, 3) float32 ndarray, MNI mm
        None in task (a), one half in (b) and (d), all in (c).
    metadata : dict
        Value by field name, only what is known: `SHOWN`, and in (c) the number of peaks.
    """

    id: str
    peaks_mm: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    metadata: dict[str, Value] = field(default_factory=dict)


class Predictor(Protocol):
    """Whatever takes part in the benchmark.

    In task (d) one that is not sure of the density may also have ``samples(studies, region_V,
    count)``: draws of it, summed over regions; see `region_draws`.
    """

    name: str

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """Say where each study's (other) peaks lie.

        Returns
        -------
        (S, V) float32 array
            Log density over the mask's cells (C order of the 4 mm grid); exp sums to 1.
        """
        ...


def check(predictor: Predictor, log_density: np.ndarray, studies: int) -> np.ndarray:
    """Refuse what is no log density over the cells; return the density."""
    shape = studies, space.load(RESOLUTION).n_cells
    if log_density.shape != shape:
        raise AtlasError(f"{predictor.name}: predicted {log_density.shape}, expected {shape}")
    density = np.exp(log_density)
    total = density.sum(1, dtype=np.float64)
    if not np.allclose(total, 1, atol=1e-3):
        raise AtlasError(
            f"{predictor.name}: a density sums to {total[np.argmax(abs(total - 1))]:.4g}, not to 1"
        )
    return density


def region_draws(
    predictor: Predictor, studies: Sequence[Given], region_V: np.ndarray, count: int
) -> np.ndarray:
    """Draw densities over regions, (S, count, R); (S, 1, R) from one that has no `samples`.

    Parameters
    ----------
    region_V : (V,) int64 array
        Region of each cell, 0 to R - 1.
    """
    samples = getattr(predictor, "samples", None)
    if samples is None:
        density = check(predictor, predictor.predict(studies), len(studies))
        return pool(density, region_V)[:, None]
    out = np.asarray(samples(studies, region_V, count))
    shape = len(studies), count, int(region_V.max()) + 1
    if out.shape != shape or not np.allclose(out.sum(2), 1, atol=1e-3):
        raise AtlasError(
            f"{predictor.name}: samples should be {shape} and each sum to 1, got {out.shape}"
        )
    return out


class Benchmark:
    """A dataset under the rules.

    Attributes
    ----------
    dataset : Dataset
    sizes : (S,) int64 ndarray
        Peaks of each study that count.
    peaks_mm, cell, given : (P, 3) float32, (P,) int64 and (P,) bool ndarrays
        The peaks that count, sorted by (study, x, y, z): place, cell, whether in the given half.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        cell, distance = space.load(RESOLUTION).cells(dataset.peaks_mm)
        study = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
        x, y, z = dataset.peaks_mm.T
        order = np.lexsort((z, y, x, study))
        order = order[distance[order] <= MAX_MM]
        self.peaks_mm, self.cell = dataset.peaks_mm[order], cell[order]
        self.sizes = np.bincount(study[order], minlength=len(dataset))
        self._offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.given = np.concatenate(
            [halve(i, n) for i, n in zip(dataset.ids, self.sizes)] or [np.zeros(0, bool)]
        )

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's studies that count, in the dataset's order."""
        rows = np.sort(self.dataset.rows(split))
        rows = rows[self.sizes[rows] >= MIN_PEAKS]
        if not len(rows):
            raise AtlasError(
                f"{self.dataset.path}: no {split} study has {MIN_PEAKS} peaks within {MAX_MM:g} mm "
                "of the brain"
            )
        return rows

    def _peaks(self, row: int, which: Peaks) -> np.ndarray:
        """Positions of a study's peaks."""
        mine = np.arange(self._offsets[row], self._offsets[row + 1])
        return mine if which == "all" else mine[self.given[mine] == (which == "given")]

    def counts(self, rows: np.ndarray, which: Peaks) -> sparse.csr_matrix:
        """Count the peaks in each cell, (S, V) float32."""
        return count_cells([self.cell[self._peaks(row, which)] for row in rows])

    def show(self, rows: np.ndarray, task: Task) -> list[Given]:
        """Return what a model is shown of these studies."""
        out = []
        for row in rows:
            metadata = self.dataset.metadata[row]
            known = {k: v for k, v in metadata.items() if k in SHOWN and v is not None}
            peaks = self._peaks(row, "all" if task == "c" else "given")
            if task == "c":
                known["n_peaks"] = float(len(peaks))
            peaks = peaks[:0] if task == "a" else peaks
            out.append(Given(self.dataset.ids[row], self.peaks_mm[peaks], known))
        return out


def halve(study_id: str, peaks: int) -> np.ndarray:
    """Choose which of a study's peaks, sorted by (x, y, z), are given, (P,) bool.

    The first half, rounded up, of ``default_rng([77, id]).permutation(P)``; an id that is no
    number counts as the first 8 bytes of its sha256.
    """
    if study_id.isascii() and study_id.isdigit():
        number = int(study_id)
    else:
        number = int.from_bytes(hashlib.sha256(study_id.encode()).digest()[:8], "big")
    given = np.zeros(peaks, bool)
    order = np.random.default_rng([_HALF_SEED, number]).permutation(peaks)
    given[order[: (peaks + 1) // 2]] = True
    return given


def count_cells(cells: Sequence[np.ndarray]) -> sparse.csr_matrix:
    """Count each study's cells, (S, V) float32."""
    row = np.repeat(np.arange(len(cells)), [len(c) for c in cells])
    column = np.concatenate(cells) if cells else row
    shape = len(cells), space.load(RESOLUTION).n_cells
    return sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=shape)


def smooth(values: np.ndarray | sparse.csr_matrix, fwhm: float) -> np.ndarray:
    """Smooth values of the cells, (S, V), with a Gaussian that loses no mass at the mask's edge.

    What a cell holds is spread over the mask's cells around it, in the ratios of the Gaussian, to
    3.5 sigma: away from the cell if `values` is sparse, along each axis if it is dense, where a
    separable filter is quicker. (S, V) float32.
    """
    if isinstance(values, np.ndarray):
        return _filter(values / _filtered_mask(fwhm), fwhm)
    weights = values.data.astype(np.float32) / _kernel_mass(fwhm)[values.indices]
    return _draw(values.indices, values.indptr.astype(np.int64), fwhm, weights)


def _draw(cells: np.ndarray, offsets: np.ndarray, fwhm: float, weights: np.ndarray) -> np.ndarray:
    """Sum kernels, `weights` at their centres, at cells of (S,) studies, (S, V) float32."""
    here = space.load(RESOLUTION)
    out = splat(
        torch.from_numpy(here.centres_mm.astype(np.float32)[cells]),
        torch.from_numpy(offsets),
        here.grid,
        fwhm,
        torch.from_numpy(weights),
        truncate=_REACH,
        mask=torch.from_numpy(np.flatnonzero(here.mask)),
    )
    return out[:, 0].numpy()


def _filter(values: np.ndarray, fwhm: float) -> np.ndarray:
    """Convolve cells, (S, V), with a separable Gaussian that sums to 1, (S, V) float32."""
    here, sigma = space.load(RESOLUTION), fwhm / FWHM_PER_SIGMA / RESOLUTION
    volumes = here.volume(values.astype(np.float32))
    for volume in volumes:
        gaussian_filter(volume, sigma, output=volume, mode="constant", radius=int(_REACH * sigma))
    return volumes[:, here.mask]


@cache
def _filtered_mask(fwhm: float) -> np.ndarray:
    """Mass of a filtered cell that stays in the mask, (V,) float32."""
    return _filter(np.ones((1, space.load(RESOLUTION).n_cells)), fwhm)[0]


@cache
def _kernel_mass(fwhm: float) -> np.ndarray:
    """Sum of a kernel at each cell over the mask's cells, (V,) float32."""
    cells = np.arange(space.load(RESOLUTION).n_cells)
    return _draw(cells, np.array([0, len(cells)]), fwhm, np.ones(len(cells), np.float32))[0].copy()
