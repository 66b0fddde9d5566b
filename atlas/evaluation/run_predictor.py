"""A trained run as a `Predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from atlas import model_file, objectives, space
from atlas.contracts import Batch
from atlas.data.batches import splat_studies
from atlas.models.model import Model

from .evaluate import BATCH, SAMPLES, average, draws, posterior, unseen_law
from .protocol import RESOLUTION, Given
from .regions import pool


class RunPredictor:
    """The model of a run folder.

    A study without peaks is decoded from the prior (at z = 0 by a model whose code was dropped in
    training), one with peaks from samples of its posterior; densities are averaged, never codes.

    Parameters
    ----------
    run : Path
        A finished run; its folder's name is the row's.
    samples : int
        Codes of the prior; the posterior is narrower and takes an eighth.

    Attributes
    ----------
    latent : int
        Directions of the code.
    """

    def __init__(self, run: Path, samples: int = SAMPLES) -> None:
        model, self._card = model_file.read(run)
        self._model: Model = model
        self._samples, self.name, self.latent = samples, run.resolve().name, self._card.model.latent

    def predict(self, studies: Sequence[Given]) -> np.ndarray:
        """See `Predictor`; a 2 mm model's density is summed over each 4 mm cell."""
        out = np.empty((len(studies), space.load(self._card.data.resolution).n_cells), np.float32)
        # Both kinds may be asked for at once: a law is for a whole batch.
        empty = np.array([len(study.peaks_mm) == 0 for study in studies], dtype=bool)
        for rows in (np.flatnonzero(empty), np.flatnonzero(~empty)):
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                batch = self._batch([studies[row] for row in part])
                if empty[part[0]]:
                    count, law = unseen_law(self._model, self._samples)
                else:
                    count, law = max(1, self._samples // 8), posterior
                out[part] = average(self._model, batch, count, law).numpy()
        return np.log(np.maximum(_to_cells(out, self._card.data.resolution), 1e-30))

    def samples(self, studies: Sequence[Given], region_V: np.ndarray, count: int) -> np.ndarray:
        """Densities over regions of codes drawn from the posterior; see `protocol.region_draws`."""
        out = []
        for start in range(0, len(studies), BATCH):
            batch = self._batch(studies[start : start + BATCH])
            drawn = [
                pool(_to_cells(density_BV.numpy(), self._card.data.resolution), region_V)
                for density_BV in draws(self._model, batch, count, posterior)
            ]
            out.append(np.stack(drawn, axis=1).astype(np.float32))
        return np.concatenate(out)

    @torch.inference_mode()
    def rate(self, studies: Sequence[Given]) -> np.ndarray:
        """KL of each study's posterior from the prior, nats, (S,)."""
        out = []
        for start in range(0, len(studies), BATCH):
            batch = self._batch(studies[start : start + BATCH])
            law = self._model.encode(batch.volume_B1XYZ, batch.metadata_BM, batch.observed_BM)
            out.append(objectives.kl_nats(*law).sum(1))
        return torch.cat(out).numpy()

    def _batch(self, studies: Sequence[Given]) -> Batch:
        """Splat the given peaks and encode what is known of the fields that the model knows."""
        data, table = self._card.data, self._card.table()
        here, fwhm = space.load(data.resolution), data.fwhm[0]
        volume = splat_studies(
            [study.peaks_mm for study in studies], np.full(len(studies), fwhm), here.grid
        )
        pairs = [
            table.encode({k: v for k, v in s.metadata.items() if k in table.names} | {"fwhm": fwhm})
            for s in studies
        ]
        return Batch(
            volume_B1XYZ=volume,
            target_B1XYZ=volume,
            counts_BV=torch.zeros(len(studies), here.n_cells),
            metadata_BM=torch.from_numpy(np.stack([vector for vector, _ in pairs])),
            observed_BM=torch.from_numpy(np.stack([observed for _, observed in pairs])),
            year_bin_B=torch.full((len(studies),), -1),
            ids=tuple(study.id for study in studies),
        )


def _to_cells(density: np.ndarray, resolution: int) -> np.ndarray:
    """Sum a density over the mask's cells of a finer grid into those of the benchmark's."""
    if resolution == RESOLUTION:
        return density
    cell, _ = space.load(RESOLUTION).cells(space.load(resolution).centres_mm)
    rows = np.arange(len(cell))
    pool = sparse.csr_matrix((np.ones(len(cell), np.float32), (cell, rows)))
    return np.ascontiguousarray((pool @ density.T).T, dtype=np.float32)
