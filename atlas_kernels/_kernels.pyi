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
