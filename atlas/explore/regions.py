"""Names of cortical regions: the Harvard-Oxford atlas that NiMARE's wheel carries.

Desikan et al. 2006, NeuroImage; maximum probability at 25 %, 2 mm. Subcortical labels are in no
package that this one depends on, so a place there has no name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import apply_affine

from atlas.errors import AtlasError

SOURCE = "Harvard-Oxford cortical atlas, maximum probability at 25 %, as carried by NiMARE"
LICENCE = "FMRIB Software Library licence: non-commercial use"
_FILE = "HarvardOxford-cort-maxprob-thr25-2mm.nii.gz"
_REACH_MM = 4.0  # a cell of a 4 mm map may lie beside the thin labels

# Label k of the volume is row k - 1.
NAMES = (
    "Frontal Pole",
    "Insular Cortex",
    "Superior Frontal Gyrus",
    "Middle Frontal Gyrus",
    "Inferior Frontal Gyrus, pars triangularis",
    "Inferior Frontal Gyrus, pars opercularis",
    "Precentral Gyrus",
    "Temporal Pole",
    "Superior Temporal Gyrus, anterior division",
    "Superior Temporal Gyrus, posterior division",
    "Middle Temporal Gyrus, anterior division",
    "Middle Temporal Gyrus, posterior division",
    "Middle Temporal Gyrus, temporooccipital part",
    "Inferior Temporal Gyrus, anterior division",
    "Inferior Temporal Gyrus, posterior division",
    "Inferior Temporal Gyrus, temporooccipital part",
    "Postcentral Gyrus",
    "Superior Parietal Lobule",
    "Supramarginal Gyrus, anterior division",
    "Supramarginal Gyrus, posterior division",
    "Angular Gyrus",
    "Lateral Occipital Cortex, superior division",
    "Lateral Occipital Cortex, inferior division",
    "Intracalcarine Cortex",
    "Frontal Medial Cortex",
    "Supplementary Motor Cortex",
    "Subcallosal Cortex",
    "Paracingulate Gyrus",
    "Cingulate Gyrus, anterior division",
    "Cingulate Gyrus, posterior division",
    "Precuneous Cortex",
    "Cuneal Cortex",
    "Frontal Orbital Cortex",
    "Parahippocampal Gyrus, anterior division",
    "Parahippocampal Gyrus, posterior division",
    "Lingual Gyrus",
    "Temporal Fusiform Cortex, anterior division",
    "Temporal Fusiform Cortex, posterior division",
    "Temporal Occipital Fusiform Cortex",
    "Occipital Fusiform Gyrus",
    "Frontal Operculum Cortex",
    "Central Opercular Cortex",
    "Parietal Operculum Cortex",
    "Planum Polare",
    "Heschl's Gyrus",
    "Planum Temporale",
    "Supracalcarine Cortex",
    "Occipital Pole",
)


@dataclass(frozen=True, eq=False)
class Regions:
    """A labelled volume.

    Attributes
    ----------
    labels : (X, Y, Z) uint8 ndarray
        0 where there is no label; x, y, z grow to the right, to the front, upwards.
    affine : (4, 4) float64 ndarray
        Voxel to mm.
    names : dict
        Name by label.
    """

    labels: np.ndarray
    affine: np.ndarray
    names: dict[int, str]

    @cached_property
    def _tree(self) -> tuple[Any, np.ndarray]:
        from scipy.spatial import cKDTree

        voxels = np.argwhere(self.labels)
        return cKDTree(apply_affine(self.affine, voxels)), self.labels[tuple(voxels.T)]

    def names_at(self, places_mm: np.ndarray) -> list[str | None]:
        """Name the region at each place, (P, 3) MNI mm; None farther than 4 mm from all."""
        if not len(places_mm):
            return []
        tree, label = self._tree
        distance, nearest = tree.query(places_mm)
        return [
            self.names[int(label[k])] if d <= _REACH_MM else None for d, k in zip(distance, nearest)
        ]


@cache
def load() -> Regions:
    """Read the atlas; AtlasError says what to install where there is none."""
    spec = find_spec("nimare")  # importing it takes seconds, and its files alone are needed
    if spec is None or spec.origin is None:
        raise AtlasError(
            "no atlas of regions is installed: pip install 'generative-brain-atlas[data]'"
        )
    path = Path(spec.origin).parent / "resources" / "atlases" / _FILE
    if not path.is_file():
        raise AtlasError(f"this NiMARE carries no {_FILE}")
    image = nibabel.as_closest_canonical(nibabel.load(path))
    labels = np.asarray(image.dataobj).astype(np.uint8)
    if labels.max() != len(NAMES):
        raise AtlasError(f"{_FILE}: holds {labels.max()} labels, expected {len(NAMES)}")
    return Regions(labels, image.affine, dict(enumerate(NAMES, 1)))
