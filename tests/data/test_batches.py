"""Batches: what is given, what is scored, seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas import space
from atlas.config import DataConfig
from atlas.data.batches import EpochSampler, Request, StudyBatches, loader
from atlas.data.dataset import Dataset
from atlas.data.density import mean_density

NO_YEARS = np.zeros(0)
ROWS = (0, 5, 9, 200)


def batches(data: Dataset, view: str = "whole", **kwargs: object) -> StudyBatches:
    return StudyBatches(data, DataConfig(), NO_YEARS, view=view, **kwargs)  # type: ignore[arg-type]


def test_shapes_and_counts(bundled: Dataset) -> None:
    batch = batches(bundled)[Request(0, ROWS)]
    here = space.load(4)
    assert batch.volume_B1XYZ.shape == (4, 1, *here.grid.shape)
    assert torch.equal(batch.volume_B1XYZ, batch.target_B1XYZ)
    sizes = [len(bundled.peaks(row)) for row in ROWS]
    assert batch.counts_BV.sum(1).tolist() == sizes
    assert batch.metadata_BM.shape == batch.observed_BM.shape == (4, bundled.fields.width)
    assert batch.year_bin_B.tolist() == [-1] * 4
    assert batch.ids == tuple(bundled.ids[row] for row in ROWS)
    fwhm = bundled.fields.slices["fwhm"]
    assert batch.observed_BM[:, fwhm].all() and not batch.metadata_BM[:, fwhm].any()


def test_a_lone_peak_is_one_at_its_centre(bundled: Dataset) -> None:
    here = space.load(4)
    centre = here.centres_mm[1234].astype(np.float32)
    from atlas.data.batches import splat_studies

    volume = splat_studies([centre[None]], np.array([10.0]), here.grid)
    assert float(volume.max()) == pytest.approx(1)
    assert here.index.ravel()[int(volume.argmax())] == 1234


def test_halves_partition_the_peaks(bundled: Dataset) -> None:
    half = batches(bundled, "half")[Request(0, ROWS)]
    for k, row in enumerate(ROWS):
        n = len(bundled.peaks(row))
        assert half.counts_BV[k].sum() == n // 2
    assert (half.volume_B1XYZ <= half.target_B1XYZ + 1e-5).all()
    assert half.volume_B1XYZ.sum() < 0.9 * half.target_B1XYZ.sum()


def test_parts_change_with_the_epoch_and_nothing_else(bundled: Dataset) -> None:
    part = batches(bundled, "part")
    first = part[Request(0, ROWS)]
    assert torch.equal(first.volume_B1XYZ, part[Request(0, ROWS)].volume_B1XYZ)
    assert not torch.equal(first.volume_B1XYZ, part[Request(1, ROWS)].volume_B1XYZ)
    alone = part[Request(0, ROWS[2:3])]
    assert torch.equal(alone.volume_B1XYZ[0], first.volume_B1XYZ[2])
    assert torch.equal(first.counts_BV, batches(bundled)[Request(0, ROWS)].counts_BV)


def test_kernel_widths_are_drawn_and_recorded(bundled: Dataset) -> None:
    config = DataConfig(fwhm=(6.0, 12.0))
    batch = StudyBatches(bundled, config, NO_YEARS, view="part")[Request(0, tuple(range(20)))]
    drawn = batch.metadata_BM[:, bundled.fields.slices["fwhm"]]
    values = {round(bundled.fields["fwhm"].decode(x.numpy()), 3) for x in drawn}
    assert values == {6.0, 12.0}


def test_every_study_once_an_epoch(bundled: Dataset) -> None:
    rows = bundled.rows("train")
    samplers = [EpochSampler(rows, 16, rank=rank, world=2) for rank in (0, 1)]
    seen = [r for s in samplers for request in s for r in request.rows]
    assert set(seen) == set(rows.tolist()) and len(list(samplers[0])) == len(samplers[0])
    before = list(samplers[0])
    samplers[0].set_epoch(1)
    assert list(samplers[0]) != before


def test_workers_change_nothing(bundled: Dataset) -> None:
    part = batches(bundled, "part")
    plain, forked = (
        list(loader(part, EpochSampler(bundled.rows("val")[:8], 4), workers)) for workers in (0, 2)
    )
    for a, b in zip(plain, forked, strict=True):
        assert a.ids == b.ids and torch.equal(a.volume_B1XYZ, b.volume_B1XYZ)


def test_the_mean_density_sums_to_one(bundled: Dataset) -> None:
    density = mean_density(bundled, bundled.rows("train"), 4, 12)
    assert density.sum() == pytest.approx(1) and density.min() >= 0
