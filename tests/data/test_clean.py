"""Cleaning rules, one by one, and the funnel on the bundled set."""

from __future__ import annotations

import numpy as np
import pytest

from atlas.contracts import Study
from atlas.data import clean
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError


def study(peaks: list, labels: str | list[str] = "MNI", name: str = "s1") -> Study:
    spaces = (labels,) * len(peaks) if isinstance(labels, str) else tuple(labels)
    return Study(name, "title", np.array(peaks, dtype=float).reshape(-1, 3), spaces)


def brain(n: int, seed: int = 0) -> list:
    return np.random.default_rng(seed).integers(-30, 30, (n, 3)).tolist()


def test_only_peaks_labelled_talairach_are_converted() -> None:
    from nimare.utils import tal2mni

    peaks = brain(4)
    out, moved = clean.to_mni(study(peaks, ["MNI", "TAL", "UNKNOWN", "TAL"]), "label")
    assert moved == 2 and set(out.peak_space) == {"MNI"}
    assert np.array_equal(out.peaks_mm[[0, 2]], np.array(peaks)[[0, 2]])
    assert np.array_equal(out.peaks_mm[[1, 3]], tal2mni(np.array(peaks, float)[[1, 3]]))
    same, moved = clean.to_mni(study(peaks, "TAL"), "none")
    assert moved == 0 and np.array_equal(same.peaks_mm, peaks)


def test_the_bundled_funnel(bundled: Dataset) -> None:
    rows = {row["step"]: row for row in bundled.info["funnel"]}
    assert rows["as printed"]["studies"] == 320 and rows["as printed"]["peaks"] == 9492
    assert rows["repeated peaks removed"]["changed"] == 273
    assert rows["peaks out of the volume removed"]["changed"] == 16
    last = bundled.info["funnel"][-1]
    assert last["studies"] == 320 and last["peaks"] == 9492 - 273 - 16 == len(bundled.peaks_mm)
    # Of the 1,159 labelled Talairach, those that are no repeats.
    assert 1100 < rows["Talairach converted to MNI"]["changed"] <= 1159


def test_a_coordinate_that_is_not_finite_is_refused() -> None:
    with pytest.raises(AtlasError, match=r"study s1, peak 2: coordinates .* are not finite"):
        clean.check_finite(study([[0, 0, 0], [np.nan, 0, 0]]))
