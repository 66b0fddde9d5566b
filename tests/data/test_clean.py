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


def test_a_repeat_goes_and_the_earlier_one_stays() -> None:
    printed = np.array([[1, 2, 3], [4, 5, 6], [1.4, 2.4, 2.6], [-1, 2, 3], [4, 5, 6]])
    out, removed = clean.drop_repeats(study(printed.tolist()), printed)
    assert removed == 2
    assert out.peaks_mm.tolist() == [[1, 2, 3], [4, 5, 6], [-1, 2, 3]]  # a mirrored peak stays


def test_peaks_out_of_the_volume_go() -> None:
    out, removed = clean.drop_outside(study([[0, 0, 0], [0, 0, 200], [-95, 0, 0]]))
    assert removed == 2 and len(out.peaks_mm) == len(out.peak_space) == 1


def test_the_bundled_funnel(bundled: Dataset) -> None:
    funnel = bundled.info["funnel"]
    assert funnel["studies_in"] == funnel["studies_out"] == 320
    assert funnel["peaks_in"] == 9492 and funnel["peaks_out_of_volume"] == 16
    assert funnel["peaks_converted_from_talairach"] == 1159
    lost = funnel["peaks_repeated"] + funnel["peaks_out_of_volume"]
    assert funnel["peaks_out"] == 9492 - lost


def test_a_coordinate_that_is_not_finite_is_refused() -> None:
    with pytest.raises(AtlasError, match=r"study s1, peak 2: coordinates .* are not finite"):
        clean.clean([study([[0, 0, 0], [np.nan, 0, 0]])])


def test_studies_without_peaks_are_dropped_and_counted() -> None:
    out, funnel = clean.clean([study(brain(9)), study([], name="s2")])
    assert [s.id for s in out] == ["s1"] and funnel["studies_without_peaks"] == 1


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda p: p * 10, "wrong units"),
        (lambda p: p + 90, "outside the brain"),
        (lambda p: p / 10, "centimetres"),
    ],
)
def test_a_file_in_other_units_is_refused_with_the_cause(spoil, cause: str) -> None:
    peaks = np.random.default_rng(1).uniform(-50, 50, (200, 3)) * [1, 1.2, 0.8] + [0, -15, 10]
    clean.clean([study(peaks.tolist())])
    with pytest.raises(AtlasError, match=cause):
        clean.clean([study(spoil(peaks).tolist())])
