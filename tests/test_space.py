"""The grids, their masks, and millimetres to cells."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from atlas import space
from atlas.errors import AtlasError


def nimare_mask() -> np.ndarray:
    from pathlib import Path

    from nimare.utils import get_resource_path

    folder = Path(get_resource_path()) / "templates"
    path = folder / "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz"
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj) > 0


def test_the_shipped_masks_are_nimares() -> None:
    fine = nimare_mask()
    assert np.array_equal(space.load(2).mask, fine)
    assert space.load(2).n_cells == 228_483
    padded = np.pad(fine, [(0, n % 2) for n in fine.shape])
    x, y, z = (n // 2 for n in padded.shape)
    blocks = padded.reshape(x, 2, y, 2, z, 2).sum((1, 3, 5))
    assert np.array_equal(space.load(4).mask, blocks >= 4)
    assert space.load(4).n_cells == 28_996


def test_a_coarse_cell_is_a_block_of_eight_fine_ones() -> None:
    peaks = np.random.default_rng(0).integers(-60, 60, (500, 3)).astype(float)
    fine = np.floor((peaks - [-91.5, -127.5, -73.5]) / 2).astype(int)
    index = space.load(4).index[tuple((fine // 2).T)]
    cell, distance = space.load(4).cells(peaks)
    own = index >= 0
    assert np.array_equal(cell[own], index[own])
    assert (distance[own] == 0).all() and (distance[~own] > 0).all()


@pytest.mark.parametrize("resolution", space.RESOLUTIONS)
def test_a_cells_centre_lies_in_the_cell(resolution: int) -> None:
    here = space.load(resolution)
    cell, distance = here.cells(here.centres_mm)
    assert np.array_equal(cell, np.arange(here.n_cells))
    assert not distance.any()


def test_peaks_outside_the_mask_take_the_nearest_cell() -> None:
    here = space.load(4)
    outside = np.array([[0.0, 0.0, 100.0], [80.0, 60.0, 60.0]])
    cell, distance = here.cells(outside)
    expected = np.linalg.norm(outside[:, None] - here.centres_mm, axis=2)
    assert np.allclose(distance, expected.min(1))
    assert np.array_equal(cell, expected.argmin(1))
    assert here.inside(np.array([[0, 0, 0], [0, 0, 200]])).tolist() == [True, False]


def test_volumes_and_images() -> None:
    here = space.load(4)
    volume = here.volume(np.arange(here.n_cells, dtype=np.float32))
    assert np.array_equal(volume[here.mask], np.arange(here.n_cells))
    assert not volume[~here.mask].any()
    image = here.image(volume)
    assert image.get_data_dtype() == np.float32
    assert image.header["sform_code"] == image.header["qform_code"] == 4
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(image.affine[:3, 3], [-89.5, -125.5, -71.5])


def test_an_unknown_resolution_is_refused() -> None:
    with pytest.raises(AtlasError, match="resolution must be one of"):
        space.load(3)
