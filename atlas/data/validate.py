"""Validation against MNI152: what lies out of the volume goes, what is suspicious is written down.

Nothing is moved here. A peak in the volume but outside the brain mask stays by default (one half
of them lie within 4 mm of it, in draining veins and rounding) and stands in the mismatch log.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlas import space
from atlas.contracts import Finding, Study
from atlas.errors import AtlasError
from atlas.metadata import FieldTable

FAR_MM = 10.0  # from the brain mask: suspicious in number
MAX_OUT = 0.2  # of a file's or a study's peaks
CENTIMETRES = 12.0  # a file with nearly every peak within this of the origin is not in mm
_CENTIMETRES_STUDY = 10.0  # a study


def drop_outside(
    study: Study, distance_mm: np.ndarray, max_distance_mm: float | None = None
) -> tuple[Study, list[Finding]]:
    """Remove peaks out of the volume, that is of the 2 mm grid.

    Parameters
    ----------
    study : Study
    distance_mm : (P,) array
        From `distance_to_mask`; infinite out of the volume.
    max_distance_mm : float, optional
        Remove also the peaks in the volume that lie farther than this from the brain mask.
    """
    limit = np.finfo(float).max if max_distance_mm is None else max_distance_mm
    out = distance_mm > limit
    if not out.any():
        return study, []
    findings = [
        study.finding("out of volume", "outside the 2 mm MNI152 grid", int(k))
        if np.isinf(distance_mm[k])
        else study.finding("far from brain", f"{distance_mm[k]:.1f} mm from the brain mask", int(k))
        for k in np.flatnonzero(out)
    ]
    return study.keep(~out), findings


def drop_outside_all(
    studies: Sequence[Study], distance_mm: np.ndarray, max_distance_mm: float | None = None
) -> tuple[list[Study], list[Finding]]:
    """Apply `drop_outside` to every study; `distance_mm` is of all their peaks, (P,)."""
    ends = np.cumsum([len(s.peaks_mm) for s in studies])[:-1]
    pairs = [
        drop_outside(study, mine, max_distance_mm)
        for study, mine in zip(studies, np.split(distance_mm, ends))
    ]
    return [study for study, _ in pairs], [one for _, found in pairs for one in found]


def mismatches(studies: Sequence[Study], distance_mm: np.ndarray) -> list[Finding]:
    """List what does not fit MNI152: single peaks, and studies that are wrong as a whole.

    Parameters
    ----------
    studies : sequence of Study
        In MNI mm.
    distance_mm : (P,) array
        Of all their peaks to the 2 mm brain mask, 0 inside; infinite out of the volume.
    """
    out: list[Finding] = []
    start = 0
    for study in studies:
        mine = distance_mm[start : start + len(study.peaks_mm)]
        start += len(mine)
        for k in np.flatnonzero(mine > 0):
            where = "outside the volume" if np.isinf(mine[k]) else f"{mine[k]:.1f} mm outside"
            out.append(study.finding("outside mask", f"{where} of the brain mask", int(k)))
        out += [study.finding("study", why) for why in _suspicions(study, mine)]
    return out


def _suspicions(study: Study, distance_mm: np.ndarray) -> list[str]:
    if len(distance_mm) == 0:
        return []
    far = float((distance_mm > FAR_MM).mean())
    out = []
    if far > MAX_OUT:
        out.append(
            f"{100 * far:.0f} % of its {len(distance_mm)} peaks lie over {FAR_MM:g} mm outside the "
            "brain: wrong units, sign or space?"
        )
    if np.abs(study.peaks_mm).max() <= _CENTIMETRES_STUDY:
        out.append(
            f"no coordinate exceeds {_CENTIMETRES_STUDY:g}: centimetres, or a small structure?"
        )
    return out


def distance_to_mask(studies: Sequence[Study], resolution: int) -> np.ndarray:
    """Distance of every peak to the brain mask of a resolution, (P,) float64 mm.

    Infinite out of the volume, which is the 2 mm grid.
    """
    peaks = np.concatenate([s.peaks_mm for s in studies] or [np.zeros((0, 3))])
    inside = space.load(2).inside(peaks)
    distance = np.full(len(peaks), np.inf)
    distance[inside] = space.load(resolution).cells(peaks[inside])[1]
    return distance


def refuse_wrong_units(studies: Sequence[Study], distance_mm: np.ndarray) -> None:
    """Refuse a file that is not in MNI millimetres, with the likely cause.

    Raises
    ------
    AtlasError
        More than a fifth of all peaks over 10 mm outside the brain, or nearly all of them within
        12 mm of the origin.
    """
    if len(distance_mm) == 0:
        return
    out = float((distance_mm > FAR_MM).mean())
    if out > MAX_OUT:
        raise AtlasError(
            f"{100 * out:.0f} % of the peaks lie outside the brain: wrong units "
            "(voxel indices, not mm?), a flipped sign of an axis, or another space; correct the "
            "coordinates"
        )
    peaks = np.concatenate([s.peaks_mm for s in studies])
    if len(peaks) >= 20 and np.quantile(np.abs(peaks).max(1), 0.9) <= CENTIMETRES:
        raise AtlasError(
            f"nine of ten peaks lie within {CENTIMETRES:g} mm of the origin: centimetres? "
            "Coordinates must be in mm"
        )


def check_records(studies: Sequence[Study]) -> None:
    """Refuse repeated ids and values outside their field's range, naming the study."""
    fields, seen = FieldTable(), set()
    for study in studies:
        if study.id in seen:
            raise AtlasError(f"study {study.id}: stands twice in the source")
        seen.add(study.id)
        try:
            fields.check(study.metadata)
        except AtlasError as error:
            raise AtlasError(f"study {study.id}: {error}") from None
