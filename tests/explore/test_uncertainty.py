"""The three parts of a map's uncertainty, against formulas and against the decoder."""

from __future__ import annotations

import numpy as np
import pytest

from atlas.errors import AtlasError
from atlas.explore.uncertainty import PARTS, _moments, uncertainty
from atlas.inference import Atlas, Code

from .toy import Toy


@pytest.fixture(scope="module")
def atlas(tiny_run) -> Atlas:
    return Atlas.load(tiny_run)


def test_parts_are_those_of_a_linear_model() -> None:
    along = np.array([[1.0, 0, 2], [0, 3, 0]])
    across = np.array([[0.5, 0, 0], [0, 0.25, 0], [0, 0, 0], [0, 0, 0]])
    toy = Toy(along, across)
    found = uncertainty(toy, [0, 0], [0.1, 0.2], {"task": "motor"}, samples=4000)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.decoder, Toy.SD, rtol=1e-5)
    # Linear in the code: sd of the map = |coefficient| x sd of the code; so for the metadata.
    np.testing.assert_allclose(found.posterior, [0.1, 0.6, 0.2], rtol=0.05)
    np.testing.assert_allclose(found.imputation, [0.5, 0.25, 0], rtol=0.05)
    np.testing.assert_allclose(
        found.total() ** 2, found.decoder**2 + found.posterior**2 + found.imputation**2, rtol=1e-5
    )
    np.testing.assert_array_equal(found.total(["decoder"]), found.decoder)
    assert not found.total([]).any()


def test_a_code_known_exactly_has_no_posterior_part(atlas: Atlas) -> None:
    z = np.linspace(-1, 1, atlas.latent)
    for sd in (None, np.zeros(atlas.latent)):
        found = uncertainty(atlas, z, sd, {}, samples=4)
        mean, own = atlas.decode_array(z, {})[0], atlas.decode_array(z, {}, "sd")[0]
        np.testing.assert_allclose(atlas.space.volume(found.mean), mean, rtol=1e-6)
        np.testing.assert_allclose(atlas.space.volume(found.decoder), own, rtol=1e-6)
        assert not found.posterior.any()
        assert found.imputation.any()


def test_metadata_that_are_known_have_no_imputation_part(atlas: Atlas) -> None:
    known = {
        f["name"]: (f["trained"][0] if f["kind"] == "number" else f["categories"][0]["value"])
        for f in atlas.describe()["fields"]
        if f["available"]
    }
    code = Code(np.zeros(atlas.latent, np.float32), np.full(atlas.latent, 0.5, np.float32))
    found = uncertainty(atlas, code, m=known, samples=8)
    assert not found.imputation.any()
    assert found.posterior.any()  # a Code brings its own sd


def test_seed_decides(atlas: Atlas) -> None:
    sd = np.full(atlas.latent, 0.3)
    one, again, other = (
        uncertainty(atlas, None, sd, {}, samples=9, seed=s).posterior for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_moments_are_numpys_however_they_are_cut() -> None:
    rng = np.random.default_rng(0)
    mean, sd = 1e3 + rng.normal(size=(11, 5)), rng.uniform(size=(11, 5))
    cuts = ((mean[a:b], sd[a:b]) for a, b in ((0, 1), (1, 6), (6, 11)))
    variance, spread = _moments(cuts)
    np.testing.assert_allclose(variance, np.square(sd).mean(0), rtol=1e-5)
    np.testing.assert_allclose(spread, mean.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"samples": 1}, "samples: a variance takes at least 2"),
        ({"sd": [1.0]}, "sd: expected"),
        ({"sd": [-1.0, 0.0]}, "sd: expected 2 numbers of at least 0"),
        ({"sd": [np.nan, 0.0]}, "sd: expected"),
    ],
)
def test_what_it_refuses(arguments: dict, line: str) -> None:
    with pytest.raises(AtlasError, match=line):
        uncertainty(Toy(np.zeros((2, 3)), np.zeros((4, 3))), **arguments)  # type: ignore[arg-type]


def test_parts_are_named_once() -> None:
    assert PARTS == ("decoder", "posterior", "imputation")
