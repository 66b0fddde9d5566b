"""The one table of inputs and tolerances for the kernels' tests, gradient checks and benchmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import atlas_kernels
from atlas_kernels import Grid
from atlas_kernels.splat.problem import Problem, make_problem

# Relative to the largest value (or gradient) of the float64 reference. Halves are rounded once.
TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 1e-6,
    torch.float16: 2**-11 + 1e-6,
    torch.bfloat16: 2**-8 + 1e-6,
}
GRADIENT_TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-5,
    torch.bfloat16: 1e-5,
}


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """A grid centred on the world's origin, but for a fraction of a voxel."""
    affine = [[0.0] * 4 for _ in range(3)] + [[0.0, 0.0, 0.0, 1.0]]
    for axis in range(3):
        affine[axis][axis] = spacing[axis]
        affine[axis][3] = -spacing[axis] * (shape[axis] - 1) / 2 + 0.3 * axis
    return Grid(shape, affine)


def oblique(shape: tuple[int, int, int]) -> Grid:
    """A grid about the world's origin with rotation, shear and unequal steps."""
    steps = [[1.9, 0.4, -0.1], [-0.5, 2.2, 0.3], [0.2, -0.4, 2.6]]
    corner = [-sum(step * (n - 1) / 2 for step, n in zip(row, shape)) + 0.3 for row in steps]
    return Grid(shape, [[*row, at] for row, at in zip(steps, corner)] + [[0, 0, 0, 1]])


MNI_2MM = Grid((91, 109, 91), [[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
MNI_4MM = Grid((46, 55, 46), [[4, 0, 0, -89.5], [0, 4, 0, -125.5], [0, 0, 4, -71.5], [0, 0, 0, 1]])
SMALL = grid((9, 11, 7), (2.0, 2.0, 2.0))


@dataclass(frozen=True)
class Case:
    """One call of splat. `counts` are peaks a study; peaks fill the grid times `spread`.

    Widths of studies or of peaks repeat those in `fwhm`; `masked` asks for some voxels only.
    """

    name: str
    grid: Grid = SMALL
    counts: tuple[int, ...] = (3, 0, 2)
    fwhm: tuple[float, ...] = (6.0,)
    weights: str = "none"  # none, positive, mixed
    spread: float = 1.0
    widths_of: str = "kernels"  # kernels, studies, peaks
    masked: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("plain"),
    Case("one_peak", counts=(1,)),
    Case("no_study", counts=()),
    Case("no_peak", counts=(0, 0)),
    Case("empty_ends", counts=(0, 4, 0)),
    Case("crowded", counts=(40, 1)),
    Case("one_voxel", grid=grid((1, 1, 1), (2.0, 2.0, 2.0))),
    Case("flat", grid=grid((1, 13, 2), (2.0, 2.0, 2.0))),
    Case("several_slabs", grid=grid((37, 5, 6), (2.0, 2.0, 2.0)), counts=(9, 3)),
    Case("flipped_x", grid=grid((10, 9, 8), (-2.0, 2.0, 2.0))),
    Case("flipped_all", grid=grid((10, 9, 8), (-2.0, -3.0, -1.5))),
    Case("anisotropic", grid=grid((12, 7, 5), (1.0, 2.5, 4.0))),
    Case("three_widths", fwhm=(4.0, 6.0, 12.5)),
    Case("positive_weights", weights="positive"),
    Case("mixed_weights", weights="mixed", counts=(6, 2)),
    Case("mixed_weights_widths", weights="mixed", counts=(6, 2), fwhm=(5.0, 9.0)),
    Case("outside", spread=3.0, counts=(12, 12)),
    Case("far_outside", spread=1e6, counts=(2, 2)),
    Case("box", options={"support": "box"}),
    Case("short_reach", options={"truncate": 1.3}),
    Case("no_cut", options={"truncate": math.inf}, weights="positive"),
    Case("narrower_than_a_voxel", fwhm=(0.4,), counts=(5,)),
    Case("taper", options={"support": "taper"}, weights="mixed", counts=(6, 2)),
    Case("short_taper", options={"support": "taper", "truncate": 1.3}, fwhm=(5.0, 9.0)),
    Case("taper_without_cut", options={"support": "taper", "truncate": math.inf}),
    Case("sums_to_1", options={"normalize": "sum"}, weights="mixed"),
    Case("box_sums_to_1", options={"normalize": "sum", "support": "box"}, spread=1.5),
    Case("taper_per_mm3", options={"normalize": "mm3", "support": "taper"}, spread=1.5),
    Case("no_cut_sums_to_1", options={"normalize": "sum", "truncate": math.inf}, counts=(1, 1)),
    Case("none_within_reach", options={"normalize": "sum"}, fwhm=(0.4,), counts=(5,)),
    Case("voxel_centres", options={"centre": "voxel"}, weights="mixed"),
    Case("studies_widths", widths_of="studies", fwhm=(4.0, 7.0, 9.0), weights="positive"),
    Case("peaks_widths", widths_of="peaks", fwhm=(4.0, 7.0, 9.0, 5.0), counts=(3, 4)),
    Case("peaks_widths_per_mm3", widths_of="peaks", fwhm=(4.0, 8.0), options={"normalize": "mm3"}),
    Case("masked", masked=True, fwhm=(4.0, 7.0), weights="positive"),
    Case("masked_slabs", grid=grid((37, 5, 6), (2.0, 2.0, 2.0)), counts=(9, 3), masked=True),
    Case("many_volumes", grid=grid((5, 6, 7), (3.0, 3.0, 3.0)), counts=(2, 0, 3) * 6),
]
# Drawn by the reference alone.
OBLIQUE = [
    Case("oblique", grid=oblique((7, 6, 5)), weights="positive"),
    Case("oblique_box", grid=oblique((7, 6, 5)), options={"support": "box", "normalize": "sum"}),
    Case(
        "oblique_voxels", grid=oblique((7, 6, 5)), options={"centre": "voxel", "normalize": "mm3"}
    ),
    Case(
        "axes_in_another_order",
        grid=Grid((7, 6, 5), [[0, 2, 0, -5], [0, 0, -3, 6], [2, 0, 0, -7], [0, 0, 0, 1]]),
    ),
]

WIDTHS = {"kernels": "fwhm", "studies": "study_fwhm", "peaks": "peak_fwhm"}


@dataclass
class Inputs:
    """Tensors of one case, float64, and how to call splat with them."""

    peaks: torch.Tensor
    offsets: torch.Tensor
    fwhm: torch.Tensor
    weights: torch.Tensor | None
    grid: Grid
    options: dict[str, Any]
    widths_of: str = "kernels"

    def to(self, dtype: torch.dtype) -> Inputs:
        weights = None if self.weights is None else self.weights.to(dtype)
        return replace(self, peaks=self.peaks.to(dtype), weights=weights)

    def requires_grad(self) -> Inputs:
        for tensor in self.leaves():
            tensor.requires_grad_()
        return self

    def leaves(self) -> list[torch.Tensor]:
        leaves = [self.peaks, self.fwhm, self.weights]
        return [leaf for leaf in leaves if leaf is not None]

    def splat(self, **options: Any) -> torch.Tensor:
        return atlas_kernels.splat(
            self.peaks,
            self.offsets,
            self.grid,
            weights=self.weights,
            **{WIDTHS[self.widths_of]: self.fwhm, **self.options, **options},
        )

    def problem(self, mode: str) -> Problem:
        options = {name: UNSET[name] for name in UNSET} | self.options
        widths = dict.fromkeys(WIDTHS.values()) | {WIDTHS[self.widths_of]: self.fwhm}
        fwhm = widths.pop("fwhm")
        return make_problem(
            lambda widths: widths,
            lambda mask: mask.nonzero().squeeze(1),
            self.peaks,
            self.offsets,
            self.grid,
            fwhm,
            self.weights,
            mode=mode,
            radius=None,
            **widths,
            **options,
        )


UNSET = {
    "support": "ball",
    "normalize": "peak",
    "centre": "peak",
    "truncate": 4.0,
    "count": False,
    "check": False,
    "mask": None,
}


def inputs(case: Case) -> Inputs:
    """Make a case's tensors; float32 values held in float64, so that both dtypes see the same."""
    generator = torch.Generator().manual_seed(sum(map(ord, case.name)))
    n_peaks = sum(case.counts)
    shape, affine = torch.tensor(case.grid.shape), torch.tensor(case.grid.affine)
    unit = torch.rand(n_peaks, 3, generator=generator) - 0.5
    voxels = (shape - 1) / 2 + unit * case.spread * shape
    peaks = voxels @ affine[:3, :3].T + affine[:3, 3]
    weights = None
    if case.weights != "none":
        weights = 0.5 + torch.rand(n_peaks, generator=generator)
    if case.weights == "mixed":
        weights[1::2] *= -1
    fwhm = torch.tensor(case.fwhm, dtype=torch.float64)
    if case.widths_of != "kernels":
        number = n_peaks if case.widths_of == "peaks" else len(case.counts)
        fwhm = fwhm.repeat(number)[:number].contiguous()
    options = dict(case.options)
    if case.masked:
        options["mask"] = torch.rand(case.grid.shape, generator=generator) < 0.4
    return Inputs(
        peaks.float().double(),
        torch.tensor([0, *case.counts]).cumsum(0),
        fwhm,
        None if weights is None else weights.float().double(),
        case.grid,
        options,
        case.widths_of,
    )


# ---- the layers ----------------------------------------------------------------------------------

# Of the largest value of the float64 reference: rounding of the result, then of the statistics.
LAYER_TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 3e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
LAYOUTS = ("contiguous", "channels_last")
PARAMETERS = ("weight", "bias", "gamma", "beta")


@dataclass(frozen=True)
class LayerCase:
    """One call of group_norm_film."""

    name: str
    shape: tuple[int, ...] = (2, 6, 5, 7, 3)
    groups: int = 3
    given: tuple[str, ...] = PARAMETERS
    activation: str = "silu"

    def __str__(self) -> str:
        return self.name


LAYER_CASES = [
    LayerCase("plain"),
    LayerCase("one_channel_a_group", (1, 7, 11, 13, 5), 7),
    LayerCase("one_group", (2, 5, 3, 4, 3), 1),
    LayerCase("one_channel", (3, 1, 5, 3, 2), 1),
    LayerCase("flat", (2, 6, 17, 9), 2),
    LayerCase("long_and_flat", (1, 3, 61, 73), 1),
    LayerCase("one_voxel", (3, 4, 1, 1, 1), 2),
    LayerCase("one_number_a_group", (2, 4, 1, 1, 1), 4),
    LayerCase("no_batch", (0, 4, 3, 2, 3), 2),
    LayerCase("flat_no_batch", (0, 4, 3, 3), 4),
    LayerCase("no_voxel", (2, 4, 3, 0, 3), 2),
    LayerCase("many_channels", (1, 300, 2, 3, 2), 6),  # more than a row of the C++ kernel has
    LayerCase("several_chunks", (2, 16, 17, 13, 11), 2),
    LayerCase("several_chunks_a_channel", (1, 2, 40, 31, 29), 1),
    LayerCase("several_rounds", (5, 4, 37, 41, 47), 2),  # more samples than are taken at a time
    LayerCase("rounds_in_a_sample", (2, 3, 71, 67, 73), 3),  # more groups than are taken at a time
    LayerCase("odd_row", (2, 65, 5, 7, 3), 5),
    LayerCase("long_row", (1, 80, 5, 3, 7), 10),
    LayerCase("very_long_row", (1, 176, 5, 3, 3), 11),
    LayerCase("nothing_given", given=()),
    *(LayerCase(f"only_{name}", given=(name,)) for name in PARAMETERS),
    *(
        LayerCase(f"no_{name}", given=tuple(p for p in PARAMETERS if p != name))
        for name in PARAMETERS
    ),
    LayerCase("no_activation", activation="none"),
    LayerCase("norm_alone", given=(), activation="none"),
]


@dataclass(frozen=True)
class BlockCase:
    """One call of dense_block."""

    name: str
    shape: tuple[int, ...] = (2, 16, 5, 6, 7)
    growth: int = 8
    dilations: tuple[int, ...] = (1, 2)
    groups_size: int = 8
    film: bool = True

    def __str__(self) -> str:
        return self.name


BLOCK_CASES = [
    BlockCase("plain"),
    BlockCase("one_layer", dilations=(1,)),
    BlockCase("one_dilated_layer", dilations=(3,)),
    BlockCase("three_layers", (1, 8, 7, 5, 6), dilations=(2, 1, 3)),
    BlockCase("wider_than_the_grid", (1, 8, 9, 11, 7), dilations=(1, 2, 4, 8)),
    BlockCase("growth_16", (2, 8, 7, 5, 6), 16, (1, 3)),
    BlockCase("growth_24", (1, 24, 5, 7, 3), 24, (2,)),
    BlockCase("growth_32", (1, 32, 6, 5, 4), 32, (1,)),
    BlockCase("odd_channels", (2, 3, 5, 4, 7), 3, (1, 2), 3),
    BlockCase("one_channel_a_group", (1, 5, 4, 3, 5), 5, (1, 2), 1),
    BlockCase("no_film", film=False),
    BlockCase("no_layer", (2, 8, 3, 4, 3), dilations=()),
    BlockCase("no_batch", (0, 8, 3, 4, 3)),
    BlockCase("one_voxel", (3, 8, 1, 1, 1)),
    BlockCase("one_number_a_group", (1, 2, 1, 1, 1), 2, (1, 1), 1),
    BlockCase("flat", (2, 8, 1, 13, 2), dilations=(2, 1)),
]


def in_layout(x: torch.Tensor, name: str) -> torch.Tensor:
    """Lay a volume or an image out as one of LAYOUTS."""
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=torch.contiguous_format if name == "contiguous" else last)


def random(*shape: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    """Normal numbers that each dtype of LAYER_TOLERANCE holds exactly, as float64."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + mean).bfloat16().half().double()


def check_close(
    got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, scale: float = 0.0, times: float = 1
) -> None:
    """Compare with float64, relative to its largest value or to `scale`, whichever is more."""
    assert got.shape == want.shape
    if want.numel():
        scale = max(scale, float(want.abs().max()), 1e-30)
        error = float((got.detach().double() - want).abs().max()) / scale
        assert error <= times * LAYER_TOLERANCE[dtype], f"{error:.2g}"
