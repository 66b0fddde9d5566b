"""The NumPy side of MA maps, against a few lines of NumPy and against scipy's labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from atlas_kernels import _extension, ma_maps
from atlas_kernels.ma_maps import MaMaps, Mask, Support, Unsupported, cluster_maxima

pytestmark = pytest.mark.skipif(
    bool(_extension.why_missing()), reason=str(_extension.why_missing())
)
SHAPES = [(7, 9, 11), (1, 1, 1), (3, 2, 64), (2, 3, 130)]


def inside_of(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).random(shape) < 0.8


def gappy() -> tuple[np.ndarray, np.ndarray]:
    """A lopsided kernel with gaps in its rows."""
    rng = np.random.default_rng(2)
    offsets = np.unique(rng.integers((-2, -1, -3), (3, 4, 5), (40, 3)), axis=0)
    return offsets, rng.uniform(0.01, 0.6, len(offsets)).astype(np.float32)


def brute_force(inside: np.ndarray, ijk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many foci reach each voxel of the mask, and the greatest of their values."""
    count, greatest = np.zeros(inside.shape, int), np.zeros(inside.shape, np.float32)
    for focus in ijk:
        for offset, value in zip(*gappy(), strict=True):
            at = tuple(focus + offset)
            if all(0 <= n < size for n, size in zip(at, inside.shape, strict=True)):
                count[at] += 1
                greatest[at] = max(greatest[at], value)
    return count[inside], greatest[inside]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_maps_and_statistics(
    shape: tuple[int, int, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ma_maps, "available_threads", lambda: threads)
    inside = inside_of(shape)
    offsets = np.array([0, 5, 5, 12, 13])  # the second study has no foci
    ijk = np.random.default_rng(1).integers(-4, np.array(shape) + 4, (13, 3)).astype(np.int32)
    ijk[3] = ijk[2]
    maps = MaMaps(
        Mask.from_array(inside), [Support.from_offsets(*gappy())], offsets, np.zeros(4, int)
    )
    ones = MaMaps(maps.mask, [Support.from_offsets(gappy()[0])], offsets, np.zeros(4, int))
    spans = list(itertools.pairwise(offsets))
    counts, greatest = zip(*(brute_force(inside, ijk[a:b]) for a, b in spans), strict=True)
    for kind, of, want in (
        ("cover", ones, [2.5 * (c > 0) for c in counts]),
        ("count", ones, [2.5 * c for c in counts]),
        ("max", maps, greatest),
    ):
        data, indices, starts = of.csr(ijk, kind, 2.5)
        for b, dense in enumerate(want):
            row = slice(starts[b], starts[b + 1])
            assert np.array_equal(indices[row], np.flatnonzero(counts[b]))
            assert np.array_equal(data[row], dense[counts[b] > 0].astype(np.float32))
    for counted, weights in itertools.product((False, True), ([0.3, 7.0, 1.1, -2.0], [0.3] * 4)):
        terms = [w * (c if counted else c > 0) for w, c in zip(weights, counts, strict=True)]
        got = ones.coverage(ijk, np.array(weights), counted)
        np.testing.assert_allclose(got, sum(terms), rtol=2e-6)
    want = 1 - np.prod([1 - g.astype(float) for g in greatest], axis=0)
    np.testing.assert_allclose(maps.ale(ijk), want, rtol=1e-6)


@pytest.mark.parametrize("n_studies", [7, 8, 9, 300])
def test_studies_of_one_weight(n_studies: int) -> None:
    """They are counted in binary; the sums are those of float64 in order, bit for bit."""
    shape = (3, 4, 12)
    offsets = np.arange(n_studies + 1)
    ijk = np.random.default_rng(4).integers(0, (2, 3, 9), (n_studies, 3)).astype(np.int32)
    maps = MaMaps(
        Mask.from_array(np.ones(shape, bool)),
        [Support.from_offsets(gappy()[0])],
        offsets,
        np.zeros(n_studies, int),
    )
    _, indices, _ = maps.csr(ijk, "cover")
    number = np.bincount(indices, minlength=maps.mask.n_voxels)
    sums = np.cumsum(np.r_[0, np.full(n_studies, 0.1)]).astype(np.float32)
    assert np.array_equal(maps.coverage(ijk, np.full(n_studies, 0.1)), sums[number])


def test_nothing_to_draw() -> None:
    mask, none = Mask.from_array(inside_of((4, 5, 6))), np.zeros((0, 3), np.int32)
    support = Support.from_offsets(np.array([[0, 0, 0]]))
    maps = MaMaps(mask, [support], np.zeros(1, np.int64), np.zeros(0, np.int64))
    assert [len(part) for part in maps.csr(none, "cover")] == [0, 0, 1]
    assert not maps.coverage(none, np.zeros(0)).any() and not maps.ale(none).any()
    empty = MaMaps(mask, [Support.from_offsets(none)], np.array([0, 1]), np.zeros(1, np.int64))
    assert empty.csr(np.zeros((1, 3)), "max")[2].tolist() == [0, 0]
    outside = Mask.from_array(np.zeros((4, 5, 6), bool))
    assert cluster_maxima(outside, np.zeros(0), 0.0) == (0, 0.0)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clusters(shape: tuple[int, int, int], share: float) -> None:
    inside = inside_of(shape)
    statistic = np.random.default_rng(3).random(inside.sum()).astype(np.float32)
    threshold = 1 - share
    volume = np.zeros(shape, np.float32)
    volume[inside] = statistic
    labels, n = ndimage.label(volume > threshold)
    sizes = np.bincount(labels.ravel())[1:]
    masses = ndimage.sum(volume - threshold, labels, np.arange(1, n + 1))
    size, mass = cluster_maxima(Mask.from_array(inside), statistic, threshold)
    assert size == sizes.max(initial=0)
    assert mass == pytest.approx(masses.max(initial=0) if n else 0, rel=1e-6)


def test_bad_input() -> None:
    mask = Mask.from_array(np.ones((3, 3, 3), bool))
    maps = MaMaps(
        mask, [Support.from_offsets(np.zeros((1, 3), int))], np.array([0, 2]), np.zeros(1, int)
    )
    with pytest.raises(ValueError, match=r"ijk must be \(2, 3\), got \(3, 3\)"):
        maps.csr(np.zeros((3, 3), np.int32), "cover")
    with pytest.raises(ValueError, match=r"offsets must be \(3,\), got \(2,\)"):
        MaMaps(mask, maps.supports, maps.offsets, np.zeros(2)).coverage(
            np.zeros((2, 3)), np.ones(2)
        )
    with pytest.raises(ValueError, match="kinds must name one of 1 supports"):
        MaMaps(mask, maps.supports, maps.offsets, np.ones(1)).csr(np.zeros((2, 3)), "cover")
    with pytest.raises(ValueError, match="kind must be cover, count or max, got mean"):
        maps.csr(np.zeros((2, 3), np.int32), "mean")
    with pytest.raises(ValueError, match=r"weights must be one a study, \(1,\), got \(2,\)"):
        maps.coverage(np.zeros((2, 3), np.int32), np.ones(2))
    with pytest.raises(ValueError, match=r"statistic must be \(27,\), got \(5,\)"):
        cluster_maxima(mask, np.zeros(5), 0.0)
    with pytest.raises(ValueError, match="threshold must not be negative, got nan"):
        cluster_maxima(mask, np.zeros(27), float("nan"))
    with pytest.raises(Unsupported, match="the mask has 2 dimensions"):
        Mask.from_array(np.ones((3, 3), bool))
