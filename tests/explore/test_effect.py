"""An effect that is in the studies is seen, one that is not is seen as null."""

from __future__ import annotations

import numpy as np
import pytest

from atlas.contracts import Study
from atlas.errors import AtlasError
from atlas.explore import studies as studies_module
from atlas.explore.effect import LEAST, effect

from .toy import Toy

LEFT, RIGHT = [-40.0, -20, 50], [40.0, -20, 50]


@pytest.fixture(scope="module")
def toy() -> Toy:
    """Later years, and language, raise the left side of the brain and lower the right one."""
    left = np.where(Toy(np.zeros((2, 1)), np.zeros((4, 1))).space.centres_mm[:, 0] < 0, 1.0, -1.0)
    across = np.stack([0.1 * left, 0 * left, 0.1 * left, 0 * left])
    return Toy(np.zeros((2, len(left))), across)


def collection(moved: bool, count: int = 120, seed: int = 0, **metadata) -> studies_module.Studies:
    """Studies of 1995 to 2020 whose peaks move from right to left in that time, or do not."""
    rng = np.random.default_rng(seed)
    out = []
    for k, share in enumerate(np.linspace(0, 1, count)):
        chance = share if moved else 0.5
        peaks = np.where(rng.uniform(size=(8, 1)) < chance, LEFT, RIGHT)
        task = {"language": share, "motor": 1 - share}
        known = {"year": 1995 + 25 * share, "task": task, "n_peaks": 8.0, **metadata}
        out.append(Study(str(k), f"study {k}", peaks, ("MNI",) * 8, known))
    return studies_module.of(out, "planted")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("m", "changes"),
    [
        ({"year": 1998.0}, {"year": 2018.0}),
        ({"year": 2018.0}, {"year": 1998.0}),
    ],
)
def test_a_planted_effect_is_seen_whichever_way_one_goes(toy, m, changes, seed) -> None:
    found = effect(toy, None, m, changes, collection(True, seed=seed), permutations=300)
    assert found.statistic is not None and found.null is not None and found.p is not None
    assert found.statistic > found.null[2]
    assert found.p < 0.01
    assert "more than chance" in found.sentence
    assert found.studies == 120


def test_no_effect_in_the_studies_is_no_effect(toy) -> None:
    ps = [
        effect(toy, None, {"year": 1998.0}, {"year": 2018.0}, collection(False, seed=s), 300).p
        for s in range(20)
    ]
    assert sum(p < 0.05 for p in ps) <= 3  # expected: one in twenty
    assert np.mean(ps) == pytest.approx(0.5, abs=0.2)


def test_the_null_is_of_correlations(toy) -> None:
    found = effect(toy, None, {"year": 1998.0}, {"year": 2018.0}, collection(False))
    low, middle, high = found.null
    assert low < middle < high
    assert low == pytest.approx(-2 / np.sqrt(120), rel=0.25)  # sd of a chance correlation
    assert sum(found.histogram["counts"]) == 2000
    assert len(found.histogram["edges"]) == len(found.histogram["counts"]) + 1


def test_size_is_the_maps(toy) -> None:
    found = effect(toy, None, {"year": 2010.0}, {"year": 2018.0})
    assert found.rms == pytest.approx(0.1, rel=1e-5)
    assert found.share == pytest.approx(0.1, rel=1e-5)
    assert (found.statistic, found.null, found.p, found.studies) == (None, None, None, 0)
    assert "no studies" in found.sentence


def test_what_does_not_move_is_not_tested(toy) -> None:
    same = effect(toy, None, {"year": 2010.0}, {"year": 2010.0}, collection(True))
    assert (same.rms, same.statistic) == (0, None)
    assert "Nothing moves" in same.sentence
    without_effect = effect(toy, None, {"n": 10.0}, {"n": 40.0}, collection(True, n=20.0))
    assert (without_effect.rms, without_effect.statistic) == (0, None)


def test_too_few_studies_are_not_asked(toy) -> None:
    few = collection(True, count=LEAST - 1)
    found = effect(toy, None, {"year": 2000.0}, {"year": 2018.0}, few)
    assert found.statistic is None
    assert f"Only {LEAST - 1} studies" in found.sentence
    unknown = collection(True, year=None)
    assert effect(toy, None, {"year": 2000.0}, {"year": 2018.0}, unknown).studies == 0


def test_a_category_is_asked_along_the_change(toy) -> None:
    """The model's table has two of the studies' twelve categories."""
    values, known = collection(True).values(toy.fields["task"])
    assert known.all()
    assert np.allclose(values.sum(1), 1)
    there = effect(toy, None, {"task": "motor"}, {"task": "language"}, collection(True), 300)
    back = effect(toy, None, {"task": "language"}, {"task": "motor"}, collection(True), 300)
    assert there.statistic > there.null[2]
    assert back.statistic == pytest.approx(there.statistic, abs=0.05)
    neither = effect(toy, None, {"task": "motor"}, {"task": "language"}, collection(False), 300)
    assert neither.null[0] < neither.statistic < neither.null[2]


@pytest.mark.parametrize("changes", [{}, {"year": 2000.0, "n": 20.0}])
def test_one_field_at_a_time(toy, changes) -> None:
    with pytest.raises(AtlasError, match="one field at a time"):
        effect(toy, None, {}, changes, collection(True))
