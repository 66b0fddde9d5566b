"""Regions of equal mass: the mask cut into compact parcels in which peaks are equally likely."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import apply_affine

from atlas import space
from atlas.errors import require

ELSEWHERE = "subcortex, cerebellum"
# Labels of the Harvard-Oxford cortical atlas (Desikan et al. 2006, NeuroImage), by lobe.
LOBES = {
    "frontal": (1, 3, 4, 5, 6, 7, 25, 26, 33, 41, 42),
    "cingulate, insula": (2, 27, 28, 29, 30, 34, 35),
    "temporal": (8, 9, 10, 11, 12, 13, 14, 15, 16, 37, 38, 39, 44, 45, 46),
    "parietal": (17, 18, 19, 20, 21, 31, 43),
    "occipital": (22, 23, 24, 32, 36, 40, 47, 48),
    ELSEWHERE: (),
}
_REACH_MM = 4.0  # a cell farther than this from every labelled voxel is no cortex


def equal_mass(density_V: np.ndarray, centres_mm: np.ndarray, regions: int = 100) -> np.ndarray:
    """Cut cells into compact regions of equal mass, by recursive bisection.

    Each cut is across the axis along which the cells at hand vary most, where the mass is divided
    as the number of regions on either side; cells of the same coordinate are divided along the
    next axes. A region is compact, and is not in one piece where it spans a fissure.

    Parameters
    ----------
    density_V : (V,) array
        Mass of each cell, none negative.
    centres_mm : (V, 3) array
    regions : int
        At most V.

    Returns
    -------
    (V,) int64 ndarray
        Region of each cell; every region has one. Masses differ by about a cell's.
    """
    region_V = np.empty(len(density_V), np.int64)

    def cut(cells: np.ndarray, first: int, count: int) -> None:
        if count == 1:
            region_V[cells] = first
            return
        axes = np.argsort(centres_mm[cells].var(0), kind="stable")  # lexsort's last key leads
        cells = cells[np.lexsort(centres_mm[cells][:, axes].T)]
        mass, left = np.cumsum(density_V[cells], dtype=np.float64), count // 2
        where = int(np.argmin(abs(mass - mass[-1] * left / count))) + 1
        where = min(max(where, left), len(cells) - (count - left))
        cut(cells[:where], first, left)
        cut(cells[where:], first + left, count - left)

    cut(np.arange(len(density_V)), 0, regions)
    return region_V


def pool(density_SV: np.ndarray, region_V: np.ndarray) -> np.ndarray:
    """Sum what cells hold, (S, V), over regions, (S, R) float64."""
    count = int(region_V.max()) + 1
    return np.stack([np.bincount(region_V, row, count) for row in density_SV])


def lobes(region_V: np.ndarray, density_V: np.ndarray, resolution: int) -> list[str]:
    """Name the lobe, a key of `LOBES`, that most of each region's mass lies in, (R,)."""
    names = list(LOBES)
    lobe_V = _cell_lobes(space.load(resolution).centres_mm)
    mass = [pool((density_V * (lobe_V == k))[None], region_V)[0] for k in range(len(names))]
    return [names[k] for k in np.argmax(mass, axis=0)]


def _cell_lobes(centres_mm: np.ndarray) -> np.ndarray:
    """Position in `LOBES` of each place: of the nearest labelled voxel, (V,) int64.

    The labels are those that NiMARE ships: maximum probability at 25 %, 2 mm.
    """
    from scipy.spatial import cKDTree

    spec = find_spec("nimare")  # importing it takes seconds, and its files alone are needed
    origin = spec.origin if spec else require("nimare", "data").__file__
    folder = Path(str(origin)).parent / "resources" / "atlases"
    image = Nifti1Image.from_filename(folder / "HarvardOxford-cort-maxprob-thr25-2mm.nii.gz")
    labels = np.asarray(image.dataobj).astype(np.int64)
    lobe = np.full(labels.max() + 1, list(LOBES).index(ELSEWHERE))
    for k, members in enumerate(LOBES.values()):
        lobe[list(members)] = k
    voxels = np.argwhere(labels)
    places_mm = apply_affine(image.affine, voxels)
    distance, nearest = cKDTree(places_mm).query(centres_mm)
    own = lobe[labels[tuple(voxels[nearest].T)]]
    return np.where(distance <= _REACH_MM, own, list(LOBES).index(ELSEWHERE))
