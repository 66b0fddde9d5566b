"""The mean map: where studies report peaks, whatever they study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from atlas import space
from atlas_kernels import splat

from .dataset import Dataset


def mean_density(
    dataset: Dataset, rows: Sequence[int] | np.ndarray, resolution: int, fwhm: float
) -> np.ndarray:
    """Return the kernel density of the peaks of some studies, (V,) float64, summing to 1.

    A study of n peaks weighs sqrt(n), as in the likelihood (`atlas.objectives.peak_nll`).

    Parameters
    ----------
    dataset : Dataset
    rows : sequence of int
        Studies.
    resolution : int
        Of the grid, mm.
    fwhm : float
        Of the kernel, mm.
    """
    here = space.load(resolution)
    peaks = np.concatenate([dataset.peaks(row) for row in rows])
    sizes = np.array([len(dataset.peaks(row)) for row in rows])
    weights = np.repeat(1 / np.sqrt(sizes), sizes)
    volume = splat(
        torch.from_numpy(peaks.astype(np.float64)),
        torch.tensor([0, len(peaks)]),
        here.grid,
        fwhm,
        torch.from_numpy(weights),
    )
    values = volume[0, 0].numpy()[here.mask]
    return values / values.sum()
