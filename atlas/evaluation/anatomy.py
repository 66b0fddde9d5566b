"""Is a decoded map a plausible place for brain activity? Measured on the image that is exported.

The decoder's density lives on the cells of the brain mask, so the share of its mass inside that
mask is 1 whatever it learnt. What can fail: the share in grey matter, where peaks belong, the
share inside the finer 2 mm mask, and mass in specks that no smoothing kernel could have made.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from nibabel import Nifti1Image

from atlas import space
from atlas.errors import require

STRONG = 0.95  # a map's strong cells: those above this quantile
SPECK = 2  # cells: a cluster of fewer than this many is isolated


@cache
def grey_matter(resolution: int) -> np.ndarray:
    """Return the grey-matter share of each mask cell, (V,), from nilearn's ICBM 152 template."""
    datasets, image = require("nilearn.datasets", "data"), require("nilearn.image", "data")
    here = space.load(resolution)
    template = datasets.load_mni152_gm_template(resolution=resolution)
    target = here.image(np.zeros(here.mask.shape))
    # Linear resampling from about the same resolution averages the template over a cell.
    moved = image.resample_to_img(
        template, target, interpolation="continuous", force_resample=True, copy_header=True
    )
    return np.clip(moved.get_fdata()[here.mask], 0, 1)


def grey_share(maps: np.ndarray, resolution: int) -> np.ndarray:
    """Return the share of each map's mass in grey matter, (S, V) -> (S,)."""
    return maps @ grey_matter(resolution) / np.maximum(maps.sum(1), 1e-20)


def share_in_fine_mask(image: Nifti1Image) -> float:
    """Return the share of an image's mass inside the 2 mm brain mask.

    A cell of a 4 mm image spreads its mass evenly over its eight voxels; up to half of them may
    lie outside.
    """
    values = np.asarray(image.dataobj, dtype=np.float64)
    fine = space.load(2).mask
    factor = round(float(abs(image.affine[0, 0])) / 2)
    padded = np.pad(fine, [(0, -n % factor) for n in fine.shape])
    blocks = padded.reshape(*(k for n in padded.shape for k in (n // factor, factor)))
    return float((values * blocks.mean((1, 3, 5))).sum() / values.sum())


def isolated_share(volume: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the strong cells' mass that lies in isolated specks.

    Parameters
    ----------
    volume : (X, Y, Z) array
    mask : (X, Y, Z) bool array
    """
    from scipy import ndimage

    strong = mask & (volume > np.quantile(volume[mask], STRONG))
    if not strong.any():
        return 0.0
    labels, _ = ndimage.label(strong, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    speck = strong & (sizes[labels] < SPECK)
    return float(volume[speck].sum() / volume[strong].sum())


def smoothness_mm(volume: np.ndarray, mask: np.ndarray, cell_mm: float) -> float:
    """Return the FWHM in mm of the Gaussian smoothing that a map's neighbours suggest.

    From the variance of first differences against the variance of the map (Forman et al. 1995,
    Magn Reson Med), geometric mean over the axes: under half a cell for white noise, 0 for a
    constant map.
    """
    variance = float(volume[mask].var())
    if variance <= 0:
        return 0.0
    widths = []
    for axis in range(3):
        both = np.logical_and(*_neighbours(mask, axis))
        first, second = (part[both] for part in _neighbours(volume, axis))
        left = 1 - float(np.square(second - first).mean()) / (2 * variance)
        widths.append(np.sqrt(-2 * np.log(2) / np.log(min(max(left, 1e-6), 1 - 1e-6))) * cell_mm)
    return float(np.prod(widths) ** (1 / 3))


def _neighbours(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    return np.delete(x, -1, axis), np.delete(x, 0, axis)
