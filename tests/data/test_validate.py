"""Validation: what goes, what is written down, which files are refused."""

from __future__ import annotations

import numpy as np
import pytest

from atlas import space
from atlas.contracts import Study
from atlas.data import validate
from atlas.errors import AtlasError


def study(peaks: list, name: str = "s1") -> Study:
    return Study(name, "title", np.array(peaks, dtype=float).reshape(-1, 3), ("MNI",) * len(peaks))


def test_peaks_out_of_the_volume_go_and_say_why() -> None:
    one = study([[0, 0, 0], [0, 0, 200], [-95, 0, 0]])
    out, found = validate.drop_outside(one, validate.distance_to_mask([one], 4))
    assert out.peaks_mm.tolist() == [[0, 0, 0]] and len(out.peak_space) == 1
    assert [(f.rule, f.study, f.peak, f.z) for f in found] == [
        ("out of volume", "s1", 2, 200),
        ("out of volume", "s1", 3, 0),
    ]


def test_a_limit_on_the_distance_is_a_setting() -> None:
    one = study([[0, 0, 0], [0, 0, 100]])  # the second lies above the brain, in the volume
    distance = validate.distance_to_mask([one], 4)
    assert distance[0] == 0 and 10 < distance[1] < 40
    assert validate.drop_outside(one, distance) == (one, [])
    kept, found = validate.drop_outside(one, distance, max_distance_mm=8)
    assert len(kept.peaks_mm) == 1 and found[0].why.endswith("mm from the brain mask")


def test_distances_are_to_the_masks_cells() -> None:
    rng = np.random.default_rng(0)
    peaks = rng.uniform(-110, 110, (300, 3))
    distance = validate.distance_to_mask([study(peaks.tolist())], 4)
    here = space.load(4)
    nearest = np.linalg.norm(peaks[:, None] - here.centres_mm[None], axis=2).min(1)
    inside = np.isfinite(distance)
    assert (inside == space.load(2).inside(peaks)).all()
    outside_mask = distance[inside] > 0
    np.testing.assert_allclose(distance[inside][outside_mask], nearest[inside][outside_mask])


def test_mismatches_name_peaks_and_studies() -> None:
    studies = [
        study([[0, 0, 0], [0, 0, 92], *[[30, -20, 10]] * 4], "a"),
        study([[0, 0, 105]] * 5, "b"),
        study([[1, 2, 3], [-4, 5, 6]], "c"),
    ]
    log = validate.mismatches(studies, validate.distance_to_mask(studies, 2))
    assert [(f.study, f.peak) for f in log if f.rule == "outside mask"][:2] == [("a", 2), ("b", 1)]
    whole = {f.study: f.why for f in log if f.rule == "study"}
    assert set(whole) == {"b", "c"} and "wrong units, sign or space" in whole["b"]
    assert "centimetres" in whole["c"]
    assert "x" not in log[-1].as_json() and log[0].as_json()["z"] == 92


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

    def check(values: np.ndarray) -> None:
        studies = [study(values.tolist())]
        validate.refuse_wrong_units(studies, validate.distance_to_mask(studies, 4))

    check(peaks)
    with pytest.raises(AtlasError, match=cause):
        check(spoil(peaks))


def test_a_repeated_id_or_an_illegal_value_names_the_study() -> None:
    with pytest.raises(AtlasError, match="study s1: stands twice"):
        validate.check_records([study([]), study([])])
    bad = Study("s9", "", np.zeros((0, 3)), (), {"n": 0.0})
    with pytest.raises(AtlasError, match="study s9: n: 0 is outside its range"):
        validate.check_records([bad])
