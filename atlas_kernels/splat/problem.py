"""One call of splat as plain data: what every implementation is given, on arrays of any library.

An option is one field here. The schema of the torch operators, the checks, the C++ struct and the
other implementations read it by name. Imports neither torch nor NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from atlas_kernels.grid import Grid

Array = Any


class Problem(NamedTuple):
    """The arguments of the operators, in the order of their schema.

    ``widths`` are the FWHM of the kernels, or the radii of spheres, in mm. Together with
    ``widths_of`` they say whose: (K,) of "kernels", (B,) of "studies" or (P,) of "peaks".
    ``voxels`` are the (V,) flat indices to write, ascending; without, all voxels are.
    ``affine`` holds the first three rows, 12 numbers.
    """

    peaks_mm: Array
    offsets: Array
    widths: Array
    weights: Array | None
    voxels: Array | None
    shape: Sequence[int]
    affine: Sequence[float]
    splat_mode: str  # torch passes arguments of ops that mutate by name, beside a `mode` of its own
    widths_of: str
    support: str
    normalize: str
    centre: str
    truncate: float
    counts: bool  # a tuple has a `count` of its own
    check: bool

    @property
    def n_studies(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    @property
    def n_kernels(self) -> int:
        """K: volumes a study."""
        return self.widths.shape[0] if self.widths_of == "kernels" else 1

    def output_shape(self) -> tuple[int, ...]:
        """Return (B, K, X, Y, Z), or (B, K, V) where only some voxels are asked for."""
        voxels = self.shape if self.voxels is None else self.voxels.shape
        return (self.n_studies, self.n_kernels, *voxels)

    def widths_name(self) -> str:
        """Return which argument of the public function the widths came from."""
        names = {"kernels": "fwhm", "studies": "study_fwhm", "peaks": "peak_fwhm"}
        return "radius" if self.splat_mode == "sphere" else names[self.widths_of]


_SCHEMA_TYPES = {
    "Array": "Tensor",
    "Array | None": "Tensor?",
    "Sequence[int]": "int[]",
    "Sequence[float]": "float[]",
    "str": "str",
    "float": "float",
    "bool": "bool",
}


def schema() -> str:
    """Return the fields as a torch schema: "Tensor peaks_mm, Tensor offsets, ..."."""
    types = {name: kind.__forward_arg__ for name, kind in Problem.__annotations__.items()}
    return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in types.items())


def make_problem(
    as_widths: Callable[[Any], Array],
    as_voxels: Callable[[Array], Array],
    peaks_mm: Array,
    offsets: Array,
    grid: Grid,
    fwhm: Any,
    weights: Array | None,
    *,
    mode: str,
    peak_fwhm: Array | None,
    study_fwhm: Array | None,
    radius: Any,
    mask: Array | None,
    count: bool,
    **options: Any,
) -> Problem:
    """Turn the arguments of the public functions into those of the operators.

    ``as_widths`` makes a floating array of a number, sequence or array; ``as_voxels`` finds where a
    flat mask is True.
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be an atlas_kernels.Grid, got {type(grid).__name__}")
    widths, widths_of = _widths(mode, fwhm, study_fwhm, peak_fwhm, radius)
    return Problem(
        peaks_mm=peaks_mm,
        offsets=offsets,
        widths=as_widths(widths),
        weights=weights,
        voxels=None if mask is None else _voxels(mask, grid, as_voxels),
        shape=list(grid.shape),
        affine=[value for row in grid.affine[:3] for value in row],
        splat_mode=mode,
        widths_of=widths_of,
        counts=count,
        **options,
    )


def _widths(mode: str, fwhm: Any, study_fwhm: Any, peak_fwhm: Any, radius: Any) -> tuple[Any, str]:
    """Return the one width that was given, and whose it is."""
    if mode == "sphere":
        for name, value in (("fwhm", fwhm), ("study_fwhm", study_fwhm), ("peak_fwhm", peak_fwhm)):
            if value is not None:
                raise ValueError(f"{name} must be None for mode 'sphere', which takes a radius")
        if radius is None:
            raise ValueError("radius must be given for mode 'sphere' (in mm)")
        return radius, "kernels"
    if radius is not None:
        raise ValueError(f"radius is for mode 'sphere' alone, got mode {mode!r}")
    widths = {"kernels": fwhm, "studies": study_fwhm, "peaks": peak_fwhm}
    given = {owner: value for owner, value in widths.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"fwhm: exactly one of fwhm, study_fwhm and peak_fwhm must be given, got {len(given)}"
        )
    owner, value = given.popitem()
    return value, owner


def _voxels(mask: Array, grid: Grid, as_voxels: Callable[[Array], Array]) -> Array:
    """Return flat indices, of a mask or as they were given."""
    dtype = str(mask.dtype).removeprefix("torch.")
    if dtype == "bool" and tuple(mask.shape) == grid.shape:
        return as_voxels(mask.reshape(-1))
    if dtype == "int64" and mask.ndim == 1:
        return mask
    raise ValueError(
        f"mask must be bool of the grid's shape {grid.shape}, or (V,) int64 voxel numbers, "
        f"got {dtype} {tuple(mask.shape)}"
    )
