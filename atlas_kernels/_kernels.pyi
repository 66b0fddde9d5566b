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
