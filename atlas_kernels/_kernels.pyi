"""Types of the compiled module (csrc/bindings/module.cpp). Addresses are plain ints."""

from collections.abc import Sequence

built_for: tuple[str, ...]

class SplatProblem:
    def __init__(
        self,
        *,
        peaks: int,
        offsets: int,
        fwhm: int,
        weights: int,
        n_studies: int,
        n_widths: int,
        shape: Sequence[int],
        spacing: Sequence[float],
        origin: Sequence[float],
        mode: str,
        support: str,
        truncate: float,
    ) -> None: ...

def splat_cpu(problem: SplatProblem, out: int, dtype: str, threads: int) -> None: ...
def splat_backward_cpu(
    problem: SplatProblem,
    grad_out: int,
    dtype: str,
    grad_peaks: int,
    grad_weights: int,
    grad_fwhm: int,
    threads: int,
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
