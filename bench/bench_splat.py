"""splat beside a fill of the buffer that it writes or reads, and beside the PyTorch reference.

The 16 studies are real ones, as a training batch has them: their peaks cluster, and their numbers
differ, which drawn ones do not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from atlas import space
from atlas.data.dataset import Dataset
from atlas_kernels.splat.op import TABLE
from tests.kernels.cases import GRADIENT_TOLERANCE, TOLERANCE, Inputs

# The reference names no device; rows for a GPU alone would need its own way of timing.
FAST = [row.name for row in TABLE if "cpu" in (row.devices or ()) and not row.why_not()]

on_every_backend = pytest.mark.parametrize("backend", FAST)
in_every_mode = pytest.mark.parametrize("mode", ["sum", "max"])
at_every_width = pytest.mark.parametrize("fwhm", [6.0, 12.0], ids="fwhm{:g}".format)
on_every_grid = pytest.mark.parametrize("resolution", [2], ids="{}mm".format)


def studies(dataset: Dataset, number: int, fwhm: float, resolution: int) -> Inputs:
    """Make splat's arguments from the first studies of the training split, float32.

    Jittered, as in training: printed coordinates are whole millimetres, so that peaks tie for many
    a voxel, and which of them a maximum's gradient then goes to hangs on the last bit.
    """
    peaks = [torch.from_numpy(dataset.peaks(row)) for row in dataset.rows("train")[:number]]
    offsets = torch.tensor([0, *map(len, peaks)]).cumsum(0)
    stacked = torch.cat(peaks)
    stacked += 2 * torch.randn(stacked.shape, generator=torch.Generator().manual_seed(0))
    return Inputs(stacked, offsets, torch.tensor([fwhm]), None, space.load(resolution).grid, {})


def backward(given: Inputs, backend: str, mode: str) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Return a call of the gradient alone, of the peaks and the width."""
    out = given.requires_grad().splat(mode=mode, backend=backend)
    # Not all ones: the gradient of a sum would then be nearly 0 everywhere, by symmetry.
    upstream = torch.rand(out.shape, generator=torch.Generator().manual_seed(0))
    return lambda: torch.autograd.grad(out, given.leaves(), upstream, retain_graph=True)


def assert_equals_reference(given: Inputs, backend: str, mode: str) -> None:
    ours, reference = (given.splat(mode=mode, backend=name) for name in (backend, "reference"))
    assert_close(ours, reference, TOLERANCE[torch.float32])
    gradients = (backward(given, name, mode)() for name in (backend, "reference"))
    for mine, theirs in zip(*gradients, strict=True):
        assert_close(mine, theirs, GRADIENT_TOLERANCE[torch.float32])


def assert_close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float) -> None:
    assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


def fill(buffer: torch.Tensor) -> Callable[[], Any]:
    """Return a call of the C library's memset over a buffer, on one core."""
    return lambda: ctypes.memset(buffer.data_ptr(), 0, buffer.nbytes)


@on_every_grid
@at_every_width
@in_every_mode
@on_every_backend
def test_splat_forward(
    measure: Any, bundled: Dataset, backend: str, mode: str, fwhm: float, resolution: int
) -> None:
    # Studies are drawn independently, and the reference needs a second for one at 2 mm.
    assert_equals_reference(studies(bundled, 1, fwhm, resolution), backend, mode)
    given = studies(bundled, 16, fwhm, resolution)
    out = given.splat(mode=mode, backend=backend)
    measure(lambda: given.splat(mode=mode, backend=backend, out=out), memset=fill(out))


@on_every_grid
@at_every_width
@in_every_mode
@on_every_backend
def test_splat_backward(
    measure: Any, bundled: Dataset, backend: str, mode: str, fwhm: float, resolution: int
) -> None:
    assert_equals_reference(studies(bundled, 1, fwhm, resolution), backend, mode)
    given = studies(bundled, 16, fwhm, resolution)
    buffer = torch.zeros(16, 1, *given.grid.shape)
    measure(backward(given, backend, mode), memset=fill(buffer))


# Beside the reference: four studies, for it needs seconds for sixteen, and one thread, because its
# many small operations wait for each other on a busy machine.


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@in_every_mode
@on_every_backend
def test_splat_forward_beside_reference(
    measure: Any, bundled: Dataset, backend: str, mode: str
) -> None:
    assert_equals_reference(studies(bundled, 4, 6.0, 4), backend, mode)
    given = studies(bundled, 4, 6.0, 4)
    measure(
        lambda: given.splat(mode=mode, backend=backend),
        reference=lambda: given.splat(mode=mode, backend="reference"),
    )


@pytest.mark.usefixtures("one_thread")
@in_every_mode
@on_every_backend
def test_splat_backward_beside_reference(
    measure: Any, bundled: Dataset, backend: str, mode: str
) -> None:
    assert_equals_reference(studies(bundled, 4, 6.0, 4), backend, mode)
    given = studies(bundled, 4, 6.0, 4)
    measure(backward(given, backend, mode), reference=backward(given, "reference", mode))
