"""The voxel grid that kernels write to. Pure Python: no torch, no NumPy."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = tuple[float, float, float, float]


@dataclass(frozen=True, init=False)
class Grid:
    """A box of voxels and where it lies in space.

    Voxel ``(i, j, k)`` has its centre at ``affine @ (i, j, k, 1)`` millimetres; if the affine is
    diagonal, that is ``origin + spacing * (i, j, k)``. Grids are values: equal when shape and
    affine are, and usable as keys.

    Parameters
    ----------
    shape : three positive ints
        Number of voxels along x, y and z.
    affine : (4, 4) array-like, mm
        Voxel index to world coordinates. Diagonal, each step of either sign, for everything that is
        fast; an oblique one (rotation, shear, axes in another order) runs on reference
        implementations only.

    Attributes
    ----------
    shape : tuple of three ints
    affine : tuple of four tuples of four floats, mm

    Raises
    ------
    ValueError
        If a size is not a positive integer, or the affine is not 4 x 4, not finite or singular.

    Examples
    --------
    >>> grid = Grid((91, 109, 91), [[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    >>> grid.spacing, grid.origin
    ((2.0, 2.0, 2.0), (-90.0, -126.0, -72.0))
    """

    shape: tuple[int, int, int]
    affine: tuple[Row, Row, Row, Row]

    def __init__(self, shape: Iterable[int], affine: Any) -> None:
        # A frozen dataclass offers no other way to store what was converted.
        object.__setattr__(self, "shape", _checked_shape(shape))
        object.__setattr__(self, "affine", _checked_affine(affine))

    @property
    def is_oblique(self) -> bool:
        """Whether a voxel axis is not parallel to the world axis of the same number."""
        return any(self.affine[i][j] != 0 for i in range(3) for j in range(3) if i != j)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Step from one voxel to the next along each axis, mm, signed; of a diagonal affine."""
        return (self.affine[0][0], self.affine[1][1], self.affine[2][2])

    @property
    def origin(self) -> tuple[float, float, float]:
        """World coordinates of the centre of voxel (0, 0, 0), mm."""
        return (self.affine[0][3], self.affine[1][3], self.affine[2][3])


def _checked_shape(shape: Iterable[int]) -> tuple[int, int, int]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError as error:
        raise ValueError(f"shape must be three integers, got {shape!r}") from error
    if len(sizes) != 3:
        raise ValueError(f"shape must be three integers, got {len(sizes)} of them: {sizes}")
    for axis, size in zip("xyz", sizes, strict=True):
        if size <= 0:
            raise ValueError(f"shape must be positive, but the {axis} size is {size}")
    return sizes


def _checked_affine(affine: Any) -> tuple[Row, Row, Row, Row]:
    rows = affine.tolist() if hasattr(affine, "tolist") else affine
    try:
        matrix = tuple(tuple(float(value) for value in row) for row in rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"affine must be a 4 x 4 array of numbers, got {affine!r}") from error
    if len(matrix) != 4 or any(len(row) != 4 for row in matrix):
        raise ValueError(f"affine must be 4 x 4, got rows of {[len(row) for row in matrix]}")
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            _check_entry(i, j, value)
    _check_steps(matrix)
    return matrix  # type: ignore[return-value]  # the lengths were checked just above


def _check_entry(i: int, j: int, value: float) -> None:
    """Hold one entry to its place in an affine."""
    where = f"affine[{i}][{j}]"
    if not math.isfinite(value):
        raise ValueError(f"affine must be finite, but {where} is {value}")
    if i == 3 and value != (j == 3):
        raise ValueError(f"affine must end in the row 0 0 0 1, but {where} is {value}")


def _check_steps(matrix: tuple[tuple[float, ...], ...]) -> None:
    """Refuse steps that do not span space."""
    (a, b, c), (d, e, f), (g, h, i) = (row[:3] for row in matrix[:3])
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    for axis, step in enumerate(zip(*(row[:3] for row in matrix[:3]), strict=True)):
        if not any(step):
            where = f"affine[{axis}][{axis}]"
            raise ValueError(f"affine is singular: {where}, the step along {'xyz'[axis]}, is 0")
    lengths = math.prod(math.hypot(*step) for step in ((a, d, g), (b, e, h), (c, f, i)))
    if abs(volume) <= 1e-12 * lengths:
        raise ValueError("affine is singular: its steps along x, y and z lie in one plane")
