"""Cleaning: pure functions of one study that also return what they removed or moved, and why.

Order: coordinates that are not finite are refused; repeated peaks go (coordinates as printed);
then conversion by label, once, never again. `atlas.data.validate` follows.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Literal

import numpy as np

from atlas.contracts import Study
from atlas.errors import AtlasError, require

SpacePolicy = Literal["label", "none"]


def check_finite(study: Study) -> None:
    """Refuse a study with NaN or infinite coordinates, naming the peak."""
    bad = ~np.isfinite(study.peaks_mm).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise AtlasError(
            f"study {study.id}, peak {study.peak_number[row]}: coordinates "
            f"{study.peaks_mm[row].tolist()} are not finite; correct or remove the row"
        )


def to_mni(study: Study, policy: SpacePolicy) -> tuple[Study, int]:
    """Convert the peaks labelled Talairach with NiMARE's own `tal2mni` (Lancaster et al. 2007).

    MNI stays. Other labels ("UNKNOWN", "OTHER") stay as printed, as in NiMARE: four of five of
    Neurosynth's unlabelled studies are in MNI. Policy "none" converts nothing.

    Returns
    -------
    study : Study
        With every label "MNI".
    moved : int
        Number of peaks converted.
    """
    talairach = np.array([label == "TAL" for label in study.peak_space], dtype=bool)
    peaks = study.peaks_mm.copy()
    if policy == "none" or not talairach.any():
        talairach[:] = False
    else:
        utils = require("nimare.utils", "data")
        logging.getLogger("nimare").setLevel(logging.WARNING)  # it speaks for each 3 x 3 input
        peaks[talairach] = utils.tal2mni(peaks[talairach])
    moved = dataclasses.replace(study, peaks_mm=peaks, peak_space=("MNI",) * len(peaks))
    return moved, int(talairach.sum())
