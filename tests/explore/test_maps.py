"""Strips, peaks, regions, and what latent directions go along with."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atlas import model_file
from atlas.errors import AtlasError
from atlas.explore import describe, directions, regions
from atlas.explore.peaks import peaks
from atlas.explore.strip import strip
from atlas.explore.studies import read
from atlas.inference import Atlas

from .toy import Toy

PLACES = {  # a textbook's places, mm
    (-38, -22, 56): "Precentral Gyrus",
    (-50, 28, 10): "Inferior Frontal Gyrus, pars triangularis",
    (0, -48, 28): "Cingulate Gyrus, posterior division",
    (0, 0, 60): "Supplementary Motor Cortex",
    (8, -78, 8): "Intracalcarine Cortex",
    (-46, -20, 8): "Heschl's Gyrus",
    (40, -52, -18): "Temporal Occipital Fusiform Cortex",
    (0, -98, 4): "Occipital Pole",
    (-38, 4, 0): "Insular Cortex",
    (-10, -18, 8): None,  # the thalamus
}


@pytest.fixture(scope="module")
def atlas(tiny_run) -> Atlas:
    return Atlas.load(tiny_run)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_strip_is_slices_of_the_maps(atlas, axis) -> None:
    field = next(f for f in atlas.describe()["fields"] if f["kind"] == "number" and f["available"])
    low, high = field["trained"]
    values = np.linspace(low, high, 10).tolist()
    plane = 20
    mm = atlas.space.affine[axis, 3] + 4 * plane
    found = strip(atlas, None, {}, field["name"], values, axis, mm)
    half = strip(atlas, None, {}, field["name"], values, axis, mm + 2)
    centre = atlas.decode_array(None, {})[0]
    for value, one, between in zip(values, found, half):
        volume = np.asarray(
            atlas.counterfactual(None, {}, {field["name"]: value}).counterfactual.mean.dataobj
        )
        expected = np.take(volume, plane, axis)
        np.testing.assert_allclose(one, expected, atol=1e-4 * centre.max())
        mean = (expected + np.take(volume, plane + 1, axis)) / 2
        np.testing.assert_allclose(between, mean, atol=1e-4 * centre.max())


def test_a_strip_outside_the_volume_is_refused(atlas) -> None:
    with pytest.raises(AtlasError, match="mm: 500 on axis z"):
        strip(atlas, None, {}, "n", [20], 2, 500)


def test_peaks_are_the_local_maxima() -> None:
    toy = Toy(np.zeros((2, 1)), np.zeros((4, 1)))
    bumps = {(-37.5, -21.5, 54.5): 5.0, (38.5, -21.5, 54.5): 4.0, (0.5, 0.5, 60.5): 3.0}
    squares = [((toy.space.centres_mm - np.array(mm)) ** 2).sum(1) for mm in bumps]
    bump = sum(top * np.exp(-d / 100) for top, d in zip(bumps.values(), squares))
    toy = Toy(np.stack([0 * bump, 0.1 * bump]), np.zeros((4, len(bump))), base=bump)
    found = peaks(toy, [0, 0], [1, 1], {}, ["decoder"], samples=2, regions=regions.load())  # type: ignore[arg-type]
    tops = [tuple(np.abs(np.array(p.mm) - mm).max() < 4.1 for mm in bumps) for p in found]
    assert [t.index(True) for t in tops] == [0, 1, 2]
    assert [p.region for p in found][1:] == ["Precentral Gyrus", "Supplementary Motor Cortex"]
    assert found[0].high - found[0].value == pytest.approx(1.645 * Toy.SD, rel=1e-3)
    exact = peaks(toy, [0, 0], None, {}, [], samples=2, most=2)  # type: ignore[arg-type]
    assert len(exact) == 2
    assert exact[0].low == exact[0].value == exact[0].high
    assert exact[0].region is None
    with pytest.raises(AtlasError, match="parts: unknown 'luck'"):
        peaks(toy, parts=["luck"])  # type: ignore[arg-type]


def test_regions_have_their_names() -> None:
    found = regions.load()
    assert len(found.names) == 48 == found.labels.max()
    assert found.names_at(np.array(list(PLACES), dtype=float)) == list(PLACES.values())
    assert found.names_at(np.zeros((0, 3))) == []


def test_regions_without_nimare_say_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(regions, "find_spec", lambda _: None)
    with pytest.raises(AtlasError, match=r"pip install 'generative-brain-atlas\[data\]'"):
        regions.load.__wrapped__()


def test_correlations_are_numpys() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(200, 3))
    weights = np.stack([codes[:, 0] + rng.normal(size=200), -codes[:, 1], rng.normal(size=200)], 1)
    weights[:50, 0] = np.nan
    found = directions.correlate(codes, weights, ["a", "b", "c"])
    expected = np.corrcoef(codes[50:, 0], weights[50:, 0])[0, 1]
    assert found[0][0] == {"label": "a", "r": pytest.approx(expected, abs=1e-3)}
    assert found[1][0] == {"label": "b", "r": -1.0}
    assert all(abs(row["r"]) >= directions.LEAST_R for rows in found for row in rows)
    constant = directions.correlate(codes, np.ones((200, 1)), ["one"])
    assert constant == [[], [], []]


def test_topics_of_a_run_come_in_steps(atlas, bundled) -> None:
    *steps, last = directions.topics(atlas, read(bundled.path), draw=70)
    assert steps == [[]] * 3  # a pause after each batch of 32
    assert len(last) == atlas.latent
    assert all(-1 <= row["r"] <= 1 for rows in last for row in rows)


def test_the_released_model_carries_its_topics() -> None:
    found = directions.stored(None)
    size = json.loads((model_file.released() / model_file.CARD).read_text())["model"]["latent"]
    assert found is not None
    assert len(found) == size
    strongest = max(abs(row["r"]) for rows in found for row in rows)
    assert strongest > 0.25
    assert len(directions.topic_words()) == 50


def test_damaged_topics_are_named(tmp_path) -> None:
    assert directions.stored(tmp_path) is None
    (tmp_path / directions.FILE).write_text("{}")
    with pytest.raises(AtlasError, match="damaged; delete it"):
        directions.stored(tmp_path)


def test_coverage_is_what_evaluation_wrote(tmp_path) -> None:
    assert describe.coverage(tmp_path) is None
    content = {"uncertainty_coverage": {"50": [0.61, 0.6, 0.62], "95": [0.9, 0.8, 1]}}
    (tmp_path / "test_results.json").write_text(json.dumps(content))
    assert describe.coverage(tmp_path) == [
        {"level": 0.5, "covered": 0.61},
        {"level": 0.95, "covered": 0.9},
    ]
    (tmp_path / "test_results.json").write_text("[")
    assert describe.coverage(tmp_path) is None
