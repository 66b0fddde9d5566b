"""A batch of 16 studies: drawn on the fly, and read from the cache beside other ways to store it.

The ways read the same random studies, one kernel width each, as float16; ours also turns them into
the float32 that the model is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas import config, space
from atlas.config import DataConfig
from atlas.data import cache
from atlas.data.batches import Request, Splatter, StudyBatches
from atlas.data.dataset import Dataset
from atlas.data.years import year_edges
from atlas.metadata import YEAR_BINS

DATASET = "bundled"  # the fixture of bench/conftest.py that every row here reads
CONFIG = config.load("quickstart").data
NO_YEARS = year_edges([], YEAR_BINS)
WIDTHS, STUDIES = (6.0, 12.0), 16
Reader = Callable[[Sequence[int], Sequence[int]], Any]


@pytest.fixture
def data(request: pytest.FixtureRequest) -> Dataset:
    return request.getfixturevalue(DATASET)


@pytest.fixture
def request_16(data: Dataset) -> Request:
    return Request(0, tuple(data.rows("train")[:STUDIES].tolist()))


@pytest.mark.parametrize("mm", [4, 2])
def test_batch_on_the_fly(measure: Any, data: Dataset, request_16: Request, mm: int) -> None:
    settings = DataConfig(resolution=mm, fwhm=CONFIG.fwhm)  # type: ignore[arg-type]
    batches = StudyBatches(data, settings, NO_YEARS)
    splatter, fwhm = Splatter(data, mm), np.full(STUDIES, CONFIG.fwhm[0])
    alone = splatter.volumes(request_16.rows, fwhm)
    assert torch.equal(batches[request_16].volume_B1XYZ, alone)
    measure(
        lambda: batches[request_16],
        splat=lambda: splatter.volumes(request_16.rows, fwhm),
    )


def test_batch_from_cache(measure: Any, data: Dataset, request_16: Request) -> None:
    cache.build(data, CONFIG.resolution, CONFIG.fwhm)
    cached = cache.VolumeCache(data, CONFIG.resolution, CONFIG.fwhm)
    ours = StudyBatches(data, CONFIG, NO_YEARS, volumes=cached)
    fly = StudyBatches(data, CONFIG, NO_YEARS)
    # The cache holds float16: 11 significant bits.
    volume, drawn = (batches[request_16].volume_B1XYZ for batches in (ours, fly))
    torch.testing.assert_close(volume, drawn, rtol=2**-11, atol=2**-25)
    measure(lambda: ours[request_16], fly=lambda: fly[request_16])


@pytest.fixture
def order(data: Dataset) -> Iterator[tuple[list[int], list[int]]]:
    """Yield random studies and widths for ever, each pair as often as there are ways to read."""
    rng = np.random.default_rng(0)
    return iter(
        lambda: (
            rng.choice(len(data), STUDIES, replace=False).tolist(),
            rng.integers(len(WIDTHS), size=STUDIES).tolist(),
        ),
        None,
    )


@pytest.mark.parametrize("mm", [4, 2])
def test_random_read(
    measure: Any, data: Dataset, order: Iterator[Any], tmp_path: Path, mm: int
) -> None:
    place = (tmp_path / "cache").as_uri()
    cache.build(data, mm, WIDTHS, place)
    cached, fly = cache.VolumeCache(data, mm, WIDTHS, place), Splatter(data, mm)
    widths = np.array(WIDTHS)
    readers: dict[str, Reader] = {
        "ours": lambda rows, columns: cached.volumes(rows, widths[columns]),
        "fly": lambda rows, columns: fly.volumes(rows, widths[columns]),
        "tensorstore": tensorstore(place),
        "zarr_python": zarr_python(tmp_path),
        "lmdb": lightning_db(tmp_path, data, mm),
        "memory_map": memory_map(tmp_path, data, mm),
    }
    rows, columns = next(order)
    exact = readers["ours"](rows, columns)[:, 0].numpy()
    for name in readers.keys() - {"ours", "fly"}:
        assert np.array_equal(np.stack(readers[name](rows, columns)).astype(np.float32), exact)
    measure(**{name: lambda read=read: read(*next(order)) for name, read in readers.items()})


def tensorstore(place: str) -> Reader:
    """TensorStore alone: every read is issued before the first is waited for."""
    import tensorstore as ts

    store = ts.open({"driver": "zarr3", "kvstore": f"{place}/volumes/"}).result()

    def read(rows: Sequence[int], columns: Sequence[int]) -> Any:
        futures = [store[row, column].read() for row, column in zip(rows, columns)]
        return [future.result() for future in futures]

    return read


def zarr_python(folder: Path) -> Reader:
    import zarr

    array = zarr.open_array(folder / "cache" / "volumes", mode="r")
    return lambda rows, columns: [array[row, column] for row, column in zip(rows, columns)]


def lightning_db(folder: Path, data: Dataset, mm: int) -> Reader:
    """LMDB, one key a volume, not compressed."""
    import lmdb

    shape = space.load(mm).grid.shape
    base = lmdb.open(str(folder / "lmdb"), map_size=16 << 30, readahead=False)
    for row, volumes in enumerate(raw(data, mm)):
        with base.begin(write=True) as write:
            for column, volume in enumerate(volumes):
                write.put(b"%d/%d" % (row, column), volume.tobytes())

    def read(rows: Sequence[int], columns: Sequence[int]) -> Any:
        with base.begin() as found:
            keys = [b"%d/%d" % pair for pair in zip(rows, columns)]
            return [np.frombuffer(found.get(k), np.float16).reshape(shape) for k in keys]

    return read


def memory_map(folder: Path, data: Dataset, mm: int) -> Reader:
    """One npy file, not compressed."""
    shape = (len(data), len(WIDTHS), *space.load(mm).grid.shape)
    path = folder / "volumes.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for row, volumes in enumerate(raw(data, mm)):
        array[row] = volumes
    array.flush()
    mapped = np.load(path, mmap_mode="r")
    return lambda rows, columns: [np.array(mapped[pair]) for pair in zip(rows, columns)]


def raw(data: Dataset, mm: int) -> Iterator[np.ndarray]:
    """Yield each study's volumes, (widths, X, Y, Z) float16."""
    splatter = Splatter(data, mm)
    for row in range(len(data)):
        volumes = splatter.volumes([row] * len(WIDTHS), np.array(WIDTHS))
        yield volumes[:, 0].half().numpy()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("neurosynth") / "data"


def test_prepare_neurosynth(once: Any, everything: Path) -> None:
    once("data", "prepare", "--source", "neurosynth", "--data-dir", source(), "--out", everything)


def test_cache_neurosynth(once: Any, everything: Path) -> None:
    if not everything.is_dir():
        pytest.skip("runs after test_prepare_neurosynth")
    once("data", "cache", everything, "--fwhm", 6, "--fwhm", 12)


def source() -> str:
    folder = os.environ.get("ATLAS_NEUROSYNTH")
    return folder or pytest.skip("ATLAS_NEUROSYNTH is not set: the real Neurosynth files")
