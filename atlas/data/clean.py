"""Cleaning rules: pure functions of one study that also return what they removed or moved.

Order: coordinates that are not finite are refused; then conversion by label (once, never again),
repeated peaks, peaks out of the volume. Every count goes to dataset.json.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Literal

import numpy as np

from atlas import space
from atlas.contracts import Study
from atlas.errors import AtlasError, require

SpacePolicy = Literal["label", "none"]

FAR_MM = 10.0  # from the brain mask: suspicious in number, kept one by one
MAX_OUT = 0.2  # of a file's peaks
CENTIMETRES = 12.0  # a file with nearly every peak within this of the origin is not in mm


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
        peaks[talairach] = require("nimare.utils", "data").tal2mni(peaks[talairach])
    moved = dataclasses.replace(study, peaks_mm=peaks, peak_space=("MNI",) * len(peaks))
    return moved, int(talairach.sum())


def check_finite(study: Study) -> None:
    """Refuse a study with NaN or infinite coordinates, naming the row."""
    bad = ~np.isfinite(study.peaks_mm).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise AtlasError(
            f"study {study.id}, peak {row + 1}: coordinates {study.peaks_mm[row].tolist()} are not "
            "finite; correct or remove the row"
        )


def drop_repeats(study: Study, printed_mm: np.ndarray) -> tuple[Study, int]:
    """Remove a peak that repeats an earlier one of the study; the earlier one stays.

    Equal means equal after rounding the coordinates as printed to 1 mm (half to even).

    Parameters
    ----------
    study : Study
    printed_mm : (P, 3) array
        The coordinates before any conversion.
    """
    rounded = np.round(printed_mm).astype(np.int64)
    _, first = np.unique(rounded, axis=0, return_index=True)
    keep = np.zeros(len(rounded), dtype=bool)
    keep[first] = True
    return _subset(study, keep), int((~keep).sum())


def drop_outside(study: Study) -> tuple[Study, int]:
    """Remove peaks out of the volume, that is of the 2 mm grid.

    Peaks in the volume but outside the brain mask stay; a likelihood counts them at the nearest
    cell of the mask.
    """
    keep = space.load(2).inside(study.peaks_mm)
    return _subset(study, keep), int((~keep).sum())


def clean(
    studies: list[Study], policy: SpacePolicy = "label"
) -> tuple[list[Study], dict[str, int]]:
    """Apply every rule to every study, and drop the studies that have no peak left.

    Returns
    -------
    studies : list of Study
        Peaks in MNI mm, in the order reported.
    funnel : dict
        Number of studies and peaks in and out, and of peaks that each rule moved or removed.

    Raises
    ------
    AtlasError
        Coordinates that are not finite; more than a fifth of all peaks out of the brain.
    """
    funnel: Counter[str] = Counter(studies_in=len(studies))
    out: list[Study] = []
    everything = [np.zeros((0, 3))]
    for study in studies:
        check_finite(study)
        funnel["peaks_in"] += len(study.peaks_mm)
        converted, moved = to_mni(study, policy)
        everything.append(converted.peaks_mm)
        unique, repeated = drop_repeats(converted, study.peaks_mm)
        inside, outside = drop_outside(unique)
        funnel["peaks_converted_from_talairach"] += moved
        funnel["peaks_repeated"] += repeated
        funnel["peaks_out_of_volume"] += outside
        if len(inside.peaks_mm):
            out.append(inside)
        else:
            funnel["studies_without_peaks"] += 1
    funnel["peaks_far_from_brain_kept"] = _refuse_wrong_units(np.concatenate(everything))
    funnel["studies_out"] = len(out)
    funnel["peaks_out"] = sum(len(study.peaks_mm) for study in out)
    return out, {key: int(funnel[key]) for key in FUNNEL}


FUNNEL = (
    "studies_in",
    "peaks_in",
    "peaks_converted_from_talairach",
    "peaks_repeated",
    "peaks_out_of_volume",
    "peaks_far_from_brain_kept",
    "studies_without_peaks",
    "studies_out",
    "peaks_out",
)


def _refuse_wrong_units(peaks_mm: np.ndarray) -> int:
    """Refuse a file that is not in MNI millimetres; return its peaks far from the brain."""
    if len(peaks_mm) == 0:
        return 0
    inside = space.load(2).inside(peaks_mm)
    far = int((space.load(4).cells(peaks_mm[inside])[1] > FAR_MM).sum())
    out = far + int((~inside).sum())
    if out > MAX_OUT * len(peaks_mm):
        raise AtlasError(
            f"{100 * out / len(peaks_mm):.0f} % of the peaks lie outside the brain: wrong units "
            "(voxel indices, not mm?), a flipped sign of an axis, or another space; correct the "
            "coordinates"
        )
    if len(peaks_mm) >= 20 and np.quantile(np.abs(peaks_mm).max(1), 0.9) <= CENTIMETRES:
        raise AtlasError(
            f"nine of ten peaks lie within {CENTIMETRES:g} mm of the origin: centimetres? "
            "Coordinates must be in mm"
        )
    return far


def _subset(study: Study, keep: np.ndarray) -> Study:
    return dataclasses.replace(
        study,
        peaks_mm=study.peaks_mm[keep],
        peak_space=tuple(label for label, kept in zip(study.peak_space, keep) if kept),
    )
