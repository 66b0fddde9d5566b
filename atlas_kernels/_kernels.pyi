"""Types of the compiled module (csrc/bindings/module.cpp). Addresses are plain ints."""

from collections.abc import Sequence

built_for: tuple[str, ...]

class SplatProblem:
    def __init__(
        self,
        *,
        peaks: int,
        offsets: int,
        widths: int,
        weights: int,
        voxels: int,
        n_peaks: int,
        n_studies: int,
        n_kernels: int,
        n_voxels: int,
        shape: Sequence[int],
        spacing: Sequence[float],
        origin: Sequence[float],
        mode: str,
        widths_of: str,
        support: str,
        normalize: str,
        centre: str,
        truncate: float,
        count: bool,
    ) -> None: ...

def splat_cpu(problem: SplatProblem, out: int, dtype: str, threads: int) -> None: ...
def splat_backward_cpu(
    problem: SplatProblem,
    grad_out: int,
    dtype: str,
    grad_peaks: int,
    grad_weights: int,
    grad_widths: int,
    threads: int,
) -> None: ...

Typed = tuple[int, str]  # address and dtype; float64 is taken where it lies

class GroupNormFilm:
    def __init__(
        self,
        *,
        samples: int,
        channels: int,
        voxels: int,
        groups: int,
        channels_last: bool,
        x_row: int,
        weight: Typed,
        bias: Typed,
        gamma: Typed,
        beta: Typed,
        silu: bool,
        eps: float,
    ) -> None: ...

def channel_statistics_cpu(
    problem: GroupNormFilm, x: int, dtype: str, stride: int, mean: int, m2: int, threads: int
) -> None: ...
def group_statistics(
    problem: GroupNormFilm, channel_mean: int, channel_m2: int, stride: int, mean: int, rstd: int
) -> None: ...
def group_norm_film_cpu(
    problem: GroupNormFilm, x: int, dtype: str, y: int, mean: Typed, rstd: Typed, threads: int
) -> None: ...
def group_norm_film_apply_cpu(
    problem: GroupNormFilm,
    x: int,
    dtype: str,
    mean: int,
    rstd: int,
    y: int,
    y_dtype: str,
    threads: int,
) -> None: ...
def group_norm_film_backward_cpu(
    problem: GroupNormFilm,
    dy: int,
    dy_dtype: str,
    x: int,
    dtype: str,
    mean: Typed,
    rstd: Typed,
    dz: int,
    dx: int,
    accumulate: bool,
    weight: Typed,
    bias: Typed,
    gamma: Typed,
    beta: Typed,
    threads: int,
) -> None: ...
def conv_weight_gradient_cpu(
    a: int,
    a_row: int,
    g: int,
    g_row: int,
    dtype: str,
    samples: int,
    shape: tuple[int, ...],
    in_channels: int,
    out_channels: int,
    dilation: int,
    dw: int,
    threads: int,
) -> None: ...
def copy_channels_cpu(
    voxels: int,
    channels: int,
    source: int,
    dtype: str,
    source_row: int,
    target: int,
    target_dtype: str,
    target_row: int,
    threads: int,
) -> None: ...

# Only where built_for has "cuda"; addresses of device memory.
def splat_room(problem: SplatProblem) -> int: ...
def splat_cuda(problem: SplatProblem, out: int, dtype: str, room: int, stream: int) -> None: ...
def splat_backward_cuda(
    problem: SplatProblem,
    grad_out: int,
    dtype: str,
    grad_peaks: int,
    grad_weights: int,
    grad_widths: int,
    room: int,
    stream: int,
) -> None: ...
def group_norm_film_room(problem: GroupNormFilm) -> int: ...
def group_norm_film_cuda(
    problem: GroupNormFilm,
    x: int,
    dtype: str,
    y: int,
    mean: int,
    rstd: int,
    room: int,
    stream: int,
) -> None: ...
def group_norm_film_backward_cuda(
    problem: GroupNormFilm,
    dy: int,
    x: int,
    dtype: str,
    mean: int,
    rstd: int,
    dx: int,
    accumulate: bool,
    weight: int,
    bias: int,
    gamma: int,
    beta: int,
    room: int,
    stream: int,
) -> None: ...

# ma_maps

class FociProblem:
    def __init__(
        self,
        *,
        bits: int,
        first: int,
        shape: Sequence[int],
        boxes: int,
        patterns: int,
        values: int,
        stride: int,
        ijk: int,
        offsets: int,
        kinds: int,
        n_studies: int,
    ) -> None: ...

def count_mask(bits: int, n_words: int, first: int) -> int: ...
def ma_sizes(problem: FociProblem, sizes: int, threads: int) -> None: ...
def ma_fill(
    problem: FociProblem,
    kind: str,
    value: float,
    starts: int,
    indices: int,
    data: int,
    threads: int,
) -> None: ...
def coverage_statistic(problem: FociProblem, weights: int, count: bool, out: int) -> None: ...
def ale_statistic(problem: FociProblem, out: int) -> None: ...
def cluster_maxima(
    bits: int, first: int, shape: Sequence[int], statistic: int, threshold: float
) -> tuple[int, float]: ...
