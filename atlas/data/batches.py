"""Dataset -> Batch, splatted on the fly or read from the cache.

Every random choice derives from (seed, epoch, row of the study), never from a global generator:
a resumed run, another batch size or several workers see the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from atlas import space
from atlas.config import DataConfig
from atlas.contracts import Batch
from atlas_kernels import Grid, splat

from .dataset import Dataset
from .years import year_bin

View = Literal["whole", "part", "half"]


class Request(NamedTuple):
    """The key of one batch: which epoch's random choices, and which rows of the dataset."""

    epoch: int
    rows: tuple[int, ...]


class Volumes(Protocol):
    """Where whole-study volumes come from: `Splatter` or `atlas.data.cache.VolumeCache`."""

    def volumes(self, rows: Sequence[int], fwhm: np.ndarray) -> torch.Tensor:
        """Return (B, 1, X, Y, Z) float32 volumes of all peaks, one FWHM in mm a row."""
        ...


def splat_studies(peaks_mm: Sequence[np.ndarray], fwhm: np.ndarray, grid: Grid) -> torch.Tensor:
    """Splat a ragged list of studies.

    Parameters
    ----------
    peaks_mm : sequence of (p, 3) arrays, MNI mm
    fwhm : (B,) array, mm
        Kernel width of each study; neighbours of one width are splatted together.
    grid : Grid

    Returns
    -------
    (B, 1, X, Y, Z) float32 tensor, sum of kernels that are 1 at their centre.
    """
    # NumPy asks for huge pages: touching new memory is most of the time at 2 mm.
    out = torch.from_numpy(np.empty((len(peaks_mm), 1, *grid.shape), np.float32))
    start = 0
    for width, run in groupby(fwhm.tolist()):
        end = start + len(list(run))
        here = peaks_mm[start:end]
        offsets = np.cumsum([0, *map(len, here)], dtype=np.int64)
        stacked = torch.from_numpy(np.concatenate(here).astype(np.float32))
        splat(stacked, torch.from_numpy(offsets), grid, width, out=out[start:end])
        start = end
    return out


class Splatter:
    """Volumes made on the fly."""

    def __init__(self, dataset: Dataset, resolution: int) -> None:
        self._dataset, self._grid = dataset, space.load(resolution).grid

    def volumes(self, rows: Sequence[int], fwhm: np.ndarray) -> torch.Tensor:
        """Return (B, 1, X, Y, Z) float32 volumes of all peaks, one FWHM in mm a row."""
        return splat_studies([self._dataset.peaks(r) for r in rows], fwhm, self._grid)


class StudyBatches(TorchDataset[Batch]):
    """Maps a `Request` to a `Batch`.

    Parameters
    ----------
    dataset : Dataset
    config : DataConfig
    year_bins : (bins - 1,) array
        Upper edges of the publication-year bins, from `atlas.data.years`.
    view : {"whole", "part", "half"}
        What the encoder is given and what is scored. "whole": all peaks, all peaks. "part"
        (training): a random part of the peaks, jittered, at a kernel width drawn at random; all
        peaks. "half" (held-out likelihood): a random half of the peaks; the other half.
    volumes : Volumes, optional
        Where whole-study volumes come from; on the fly by default.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        year_bins: np.ndarray,
        *,
        view: View = "whole",
        seed: int = 0,
        volumes: Volumes | None = None,
    ) -> None:
        self._dataset, self._config = dataset, config
        self._view, self._seed = view, seed
        self._space = space.load(config.resolution)
        self._volumes = volumes or Splatter(dataset, config.resolution)
        self._cells, _ = self._space.cells(dataset.peaks_mm)
        encoded = [dataset.fields.encode(metadata) for metadata in dataset.metadata]
        self._metadata_SM = np.stack([vector for vector, _ in encoded])
        self._observed_SM = np.stack([observed for _, observed in encoded])
        years = [metadata.get("year") for metadata in dataset.metadata]
        self._year_bin_S = np.array([year_bin(year, year_bins) for year in years], np.int64)

    def __getitem__(self, request: Request) -> Batch:
        rows, config, view = request.rows, self._config, self._view
        rngs = [np.random.default_rng([self._seed, request.epoch, row]) for row in rows]
        fwhm = np.full(len(rows), config.fwhm[0])
        if view == "part":
            fwhm = np.array([rng.choice(config.fwhm) for rng in rngs])
            # Studies of one width together: each width is one splat into its part of the batch.
            order = np.argsort(fwhm, kind="stable").tolist()
            rows, rngs, fwhm = tuple(rows[k] for k in order), [rngs[k] for k in order], fwhm[order]
        target = self._volumes.volumes(rows, fwhm)
        if view == "whole":
            return self._assemble(rows, fwhm, target, target, self._counts(rows))
        given = [self._draw(row, rng) for row, rng in zip(rows, rngs)]
        peaks = [self._dataset.peaks(row)[keep] for row, keep in zip(rows, given)]
        if view == "part":
            peaks = [p + rng.normal(0, config.jitter, p.shape) for p, rng in zip(peaks, rngs)]
        volume = splat_studies(peaks, fwhm, self._space.grid)
        counts = self._counts(rows, given if view == "half" else None)
        return self._assemble(rows, fwhm, volume, target, counts)

    def _draw(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """Draw which of a study's peaks the encoder is given; sorted positions."""
        n = len(self._dataset.peaks(row))
        share = 0.5 if self._view == "half" else rng.uniform(*self._config.keep)
        return np.sort(rng.permutation(n)[: max(1, math.ceil(share * n))])

    def _counts(
        self, rows: Sequence[int], without: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """Count the peaks in each cell of the mask, (B, V) float32, leaving out some of them."""
        counts = np.zeros((len(rows), self._space.n_cells), np.float32)
        for k, row in enumerate(rows):
            cells = self._cells[self._dataset.offsets[row] : self._dataset.offsets[row + 1]]
            np.add.at(counts[k], np.delete(cells, without[k]) if without else cells, 1)
        return counts

    def _assemble(
        self,
        rows: Sequence[int],
        fwhm: np.ndarray,
        volume: torch.Tensor,
        target: torch.Tensor,
        counts: np.ndarray,
    ) -> Batch:
        chosen, width = list(rows), self._dataset.fields.slices["fwhm"]
        metadata, observed = self._metadata_SM[chosen], self._observed_SM[chosen]
        metadata[:, width] = [self._dataset.fields["fwhm"].encode(mm) for mm in fwhm]
        observed[:, width] = 1
        return Batch(
            volume_B1XYZ=volume,
            target_B1XYZ=target,
            counts_BV=torch.from_numpy(counts),
            metadata_BM=torch.from_numpy(metadata),
            observed_BM=torch.from_numpy(observed),
            year_bin_B=torch.from_numpy(self._year_bin_S[chosen]),
            ids=tuple(self._dataset.ids[row] for row in rows),
        )


class EpochSampler(Sampler[Request]):
    """Batches of rows, shuffled by (seed, epoch); the trainer calls `set_epoch`.

    Batches are spread over `world` processes by `rank`, as many for each. Without `shuffle` the
    epoch stays 0, so that validation sees the same halves every time.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._rows, self._batch, self._seed, self._shuffle = rows, batch, seed, shuffle
        self._rank, self._world, self._epoch = rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self._epoch = epoch if self._shuffle else 0

    def __len__(self) -> int:
        batches = -(-len(self._rows) // self._batch)
        return -(-batches // self._world)

    def __iter__(self) -> Iterator[Request]:
        rows = self._rows
        if self._shuffle:
            rows = np.random.default_rng([self._seed, self._epoch]).permutation(rows)
        batches = [rows[k : k + self._batch] for k in range(0, len(rows), self._batch)]
        mine = [batches[(self._rank + k * self._world) % len(batches)] for k in range(len(self))]
        for part in mine:
            yield Request(self._epoch, tuple(int(row) for row in part))


def loader(batches: StudyBatches, sampler: EpochSampler, workers: int = 0) -> DataLoader[Batch]:
    """Return a DataLoader whose elements are whole batches."""
    return DataLoader(
        batches,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
