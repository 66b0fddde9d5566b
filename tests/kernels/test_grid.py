"""Grid: a value, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from atlas_kernels import Grid

AFFINE = [[2, 0, 0, -90], [0, -3, 0, 126], [0, 0, 0.5, -72], [0, 0, 0, 1]]


def changed(row: int, column: int, value: float) -> list[list[float]]:
    affine = [list(map(float, line)) for line in AFFINE]
    affine[row][column] = value
    return affine


def test_geometry() -> None:
    grid = Grid((91, 109, 91), AFFINE)
    assert grid.shape == (91, 109, 91)
    assert grid.spacing == (2.0, -3.0, 0.5)
    assert grid.origin == (-90.0, 126.0, -72.0)


@pytest.mark.parametrize("convert", [np.array, torch.tensor, tuple], ids=lambda f: f.__name__)
def test_any_array_will_do_and_equal_grids_are_equal_keys(convert) -> None:
    plain, other = Grid((4, 5, 6), AFFINE), Grid(convert([4, 5, 6]), convert(AFFINE))
    assert plain == other and hash(plain) == hash(other) and len({plain, other}) == 1
    assert plain != Grid((4, 5, 7), AFFINE)
    assert all(type(size) is int for size in other.shape)


def test_oblique_grids_are_told_apart() -> None:
    assert not Grid((4, 5, 6), AFFINE).is_oblique
    assert Grid((4, 5, 6), changed(0, 1, 0.1)).is_oblique
    assert Grid((4, 5, 6), [[0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]).is_oblique


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Grid((4, 5, 6), AFFINE).shape = (1, 1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4, 5), AFFINE, "shape must be three integers, got 2"),
        ((4, 5, 6.0), AFFINE, "shape must be three integers"),
        (4, AFFINE, "shape must be three integers, got 4"),
        ((4, 0, 6), AFFINE, "shape must be positive, but the y size is 0"),
        ((4, 5, -1), AFFINE, "shape must be positive, but the z size is -1"),
        ((4, 5, 6), AFFINE[:3], r"affine must be 4 x 4, got rows of \[4, 4, 4\]"),
        ((4, 5, 6), [1, 2], "affine must be a 4 x 4 array of numbers"),
        ((4, 5, 6), changed(0, 0, 0), r"affine is singular: affine\[0\]\[0\], the step along x"),
        (
            (4, 5, 6),
            [[1, 2, 0, 0], [2, 4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            "steps .* in one plane",
        ),
        ((4, 5, 6), changed(1, 3, math.nan), r"affine must be finite, but affine\[1\]\[3\]"),
        ((4, 5, 6), changed(3, 2, 1), r"affine must end in the row 0 0 0 1.*affine\[3\]\[2\]"),
        ((4, 5, 6), changed(3, 3, 2), r"affine must end in the row 0 0 0 1.*affine\[3\]\[3\]"),
    ],
)
def test_refusals_name_the_argument(shape, affine, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(shape, affine)
