"""MNI152 space: the two grids, their brain masks, millimetres to cells. No other file knows them.

RAS+, mm. The 2 mm grid is NiMARE's NLin6Asym res-02 grid (91 x 109 x 91, origin -90 -126 -72). A
4 mm cell is a block of 2 x 2 x 2 of its voxels: cell k of an axis covers
``origin - 1.5 + 4 k <= x < origin - 1.5 + 4 (k + 1)``, so that integer coordinates, 97 % of what
the literature prints, never lie on an edge. A 4 mm cell is in the mask where at least 4 of its 8
voxels are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from nibabel import Nifti1Image

from atlas_kernels import Grid

from .errors import AtlasError

RESOLUTIONS = (2, 4)
_EDGE_MM = np.array([-91.5, -127.5, -73.5])  # lower edge of cell 0, in both grids
_SHAPES = {2: (91, 109, 91), 4: (46, 55, 46)}
_FIRST_CENTRE_MM = {2: 1.5, 4: 2.0}  # cell 0's centre above that edge


@dataclass(frozen=True, eq=False)
class Space:
    """A grid with its brain mask.

    Attributes
    ----------
    resolution : int
        Edge of a cell in mm.
    grid : atlas_kernels.Grid
        Shape and affine.
    mask : (X, Y, Z) bool ndarray
        Cells of the brain; V of them.
    index : (X, Y, Z) int64 ndarray
        Position of each cell among the mask's cells (C order), -1 outside.
    """

    resolution: int
    grid: Grid
    mask: np.ndarray
    index: np.ndarray

    @property
    def affine(self) -> np.ndarray:
        """Voxel to mm, (4, 4) float64."""
        return np.asarray(self.grid.affine, dtype=np.float64)

    @property
    def n_cells(self) -> int:
        """V, the number of cells in the mask."""
        return int(self.index.max()) + 1

    @property
    def centres_mm(self) -> np.ndarray:
        """Centres of the mask's cells, (V, 3) float64, mm."""
        return np.argwhere(self.mask) * self.affine.diagonal()[:3] + self.affine[:3, 3]

    def inside(self, peaks_mm: np.ndarray) -> np.ndarray:
        """Return whether each peak, (P, 3) in mm, lies in the volume, (P,) bool."""
        ijk = np.floor((np.asarray(peaks_mm) - _EDGE_MM) / self.resolution)
        return ((ijk >= 0) & (ijk < self.mask.shape)).all(axis=1)

    def cells(self, peaks_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the mask cell of each peak.

        Parameters
        ----------
        peaks_mm : (P, 3) array, MNI mm

        Returns
        -------
        cell : (P,) int64
            Own cell where that is in the mask, else the nearest mask cell by its centre.
        distance : (P,) float64, mm
            0 for a peak in its own cell, else the distance to that centre.
        """
        from scipy.spatial import cKDTree

        peaks_mm = np.asarray(peaks_mm, dtype=np.float64)
        inside = self.inside(peaks_mm)
        ijk = np.floor((peaks_mm[inside] - _EDGE_MM) / self.resolution).astype(np.int64)
        cell = np.full(len(peaks_mm), -1, dtype=np.int64)
        cell[inside] = self.index[tuple(ijk.T)]
        distance = np.zeros(len(peaks_mm))
        lost = cell < 0
        if lost.any():
            distance[lost], cell[lost] = cKDTree(self.centres_mm).query(peaks_mm[lost])
        return cell, distance

    def volume(self, values_V: np.ndarray) -> np.ndarray:
        """Put values of the mask's cells, (..., V), into volumes (..., X, Y, Z), 0 outside."""
        values_V = np.asarray(values_V)
        out = np.zeros((*values_V.shape[:-1], *self.mask.shape), dtype=values_V.dtype)
        out[..., self.mask] = values_V
        return out

    def image(self, volume: np.ndarray) -> Nifti1Image:
        """Wrap a (X, Y, Z) or (X, Y, Z, N) array as a float32 image: MNI codes, units mm."""
        image = Nifti1Image(np.asarray(volume, dtype=np.float32), self.affine)
        image.set_sform(self.affine, code="mni")
        image.set_qform(self.affine, code="mni")
        image.header.set_xyzt_units("mm")
        return image


@cache
def load(resolution: int) -> Space:
    """Return the shipped grid and mask at a resolution of 2 or 4 mm."""
    if resolution not in RESOLUTIONS:
        raise AtlasError(f"resolution must be one of {RESOLUTIONS} mm, got {resolution!r}")
    shape = _SHAPES[resolution]
    origin = _EDGE_MM + _FIRST_CENTRE_MM[resolution]
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = origin
    with resources.files("atlas").joinpath("resources/mni152_masks.npz").open("rb") as file:
        bits = np.load(file, allow_pickle=False)[f"mask_{resolution}mm"]
    mask = np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
    index = np.full(shape, -1, dtype=np.int64)
    index[mask] = np.arange(mask.sum())
    mask.flags.writeable = index.flags.writeable = False
    return Space(resolution, Grid(shape, affine), mask, index)
