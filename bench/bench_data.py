"""A Batch of 16 studies at 4 mm: drawn on the fly, and read from the TensorStore cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from atlas import config
from atlas.data import cache
from atlas.data.batches import Request, Splatter, StudyBatches
from atlas.data.dataset import Dataset
from atlas.data.years import year_edges
from atlas.metadata import YEAR_BINS

CONFIG = config.load("quickstart").data
NO_YEARS = year_edges([], YEAR_BINS)


@pytest.fixture
def request_16(bundled: Dataset) -> Request:
    return Request(0, tuple(bundled.rows("train")[:16].tolist()))


def test_batch_on_the_fly(measure: Any, bundled: Dataset, request_16: Request) -> None:
    batches = StudyBatches(bundled, CONFIG, NO_YEARS)
    splatter, fwhm = Splatter(bundled, CONFIG.resolution), np.full(16, CONFIG.fwhm[0])
    alone = splatter.volumes(request_16.rows, fwhm)
    assert torch.equal(batches[request_16].volume_B1XYZ, alone)
    measure(
        lambda: batches[request_16],
        splat=lambda: splatter.volumes(request_16.rows, fwhm),
    )


def test_batch_from_cache(measure: Any, bundled: Dataset, request_16: Request) -> None:
    cache.build(bundled, CONFIG.resolution, CONFIG.fwhm)
    cached = cache.VolumeCache(bundled, CONFIG.resolution, CONFIG.fwhm)
    ours = StudyBatches(bundled, CONFIG, NO_YEARS, volumes=cached)
    fly = StudyBatches(bundled, CONFIG, NO_YEARS)
    # The cache holds float16: 11 significant bits.
    volume, drawn = (batches[request_16].volume_B1XYZ for batches in (ours, fly))
    torch.testing.assert_close(volume, drawn, rtol=2**-11, atol=2**-25)
    measure(lambda: ours[request_16], fly=lambda: fly[request_16])
