"""Volumes of whole studies in TensorStore: zarr3 with sharding, one chunk a study.

On two cores splatting at 4 mm is faster than any cache, so this is for slow machines, fine grids
and other tools (zarr-python reads it). The key of a cache is the fingerprint of the dataset, the
grid and the kernel widths; a cache with another key is refused with the command that rebuilds it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas import progress, space
from atlas.errors import AtlasError, require

from .batches import Splatter
from .dataset import Dataset

_STUDIES_PER_SHARD = 64
_BATCH = 64


def folder(dataset: Dataset, resolution: int) -> Path:
    """Where a dataset's cache lies."""
    return dataset.path / f"cache_{resolution}mm"


def key(dataset: Dataset, resolution: int, fwhm: Sequence[float]) -> dict[str, Any]:
    """Everything that the cached volumes depend on."""
    grid = space.load(resolution).grid
    return {
        "dataset": dataset.fingerprint,
        "shape": list(grid.shape),
        "affine": [list(row) for row in grid.affine],
        "fwhm": [float(width) for width in fwhm],
        "mode": "sum",
        "format": 1,
    }


def build(dataset: Dataset, resolution: int, fwhm: Sequence[float]) -> Path:
    """Splat every study at every width and write the cache; it appears whole or not at all.

    Returns
    -------
    Path
        Folder of a float16 array (studies, widths, X, Y, Z); float16 of values below 2^4 errs by
        at most 2^-8 of a peak, 5e-4 relative.
    """
    path = folder(dataset, resolution)
    work = path.with_name(f"{path.name}.part{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        store = _create(work, (len(dataset), len(fwhm), *space.load(resolution).grid.shape))
        splatter = Splatter(dataset, resolution)
        with progress.track(f"cache {resolution} mm", len(dataset)) as ticker:
            for start in range(0, len(dataset), _BATCH):
                rows = range(start, min(start + _BATCH, len(dataset)))
                widths = [splatter.volumes(rows, np.full(len(rows), w)) for w in fwhm]
                block = torch.cat(widths, dim=1).numpy().astype(np.float16)
                store[start : start + len(rows)].write(block).result()
                ticker.advance(len(rows))
        (work / "key.json").write_text(json.dumps(key(dataset, resolution, fwhm), indent=1))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


class VolumeCache:
    """Reads volumes back; the same face as `atlas.data.batches.Splatter`.

    Raises
    ------
    AtlasError
        The cache is missing, damaged or made from something else.
    """

    def __init__(self, dataset: Dataset, resolution: int, fwhm: Sequence[float]) -> None:
        path = folder(dataset, resolution)
        widths = " ".join(f"--fwhm {width:g}" for width in fwhm)
        rebuild = (
            f"rebuild it with atlas data cache {dataset.path} --resolution {resolution} {widths}"
        )
        if not (path / "key.json").is_file():
            raise AtlasError(f"{path}: no cache there; {rebuild}")
        try:
            stored = json.loads((path / "key.json").read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise AtlasError(f"{path}/key.json: damaged; {rebuild}") from None
        if stored != key(dataset, resolution, fwhm):
            raise AtlasError(f"{path}: made from another dataset, grid or kernel width; {rebuild}")
        self._fwhm, self._rebuild, self._path = [float(w) for w in fwhm], rebuild, path
        try:
            self._store = require("tensorstore", "data").open(_spec(path)).result()
        except ValueError:
            raise AtlasError(f"{path}: damaged; {rebuild}") from None

    def volumes(self, rows: Sequence[int], fwhm: np.ndarray) -> torch.Tensor:
        """Return (B, 1, X, Y, Z) float32 volumes of all peaks, one FWHM in mm a row."""
        # All reads are issued before the first is waited for.
        reads = [
            self._store[int(row), self._fwhm.index(float(width))].read()
            for row, width in zip(rows, fwhm)
        ]
        try:
            stacked = np.stack([read.result() for read in reads])
        except ValueError:
            raise AtlasError(f"{self._path}: damaged; {self._rebuild}") from None
        # Every study has a peak; a chunk that is gone reads as zeros.
        if not stacked.reshape(len(stacked), -1).any(axis=1).all():
            raise AtlasError(f"{self._path}: a part is missing; {self._rebuild}")
        return torch.from_numpy(stacked.astype(np.float32)).unsqueeze(1)


def _spec(path: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / 'volumes'}/"}}


def _create(path: Path, shape: tuple[int, ...]) -> Any:
    chunk = [1, *shape[1:]]
    inner = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1}},
        {"name": "crc32c"},  # a damaged chunk is an error, never a wrong volume
    ]
    metadata = {
        "shape": list(shape),
        "data_type": "float16",
        "dimension_names": ["study", "fwhm", "x", "y", "z"],
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [_STUDIES_PER_SHARD, *shape[1:]]},
        },
        "codecs": [
            {"name": "sharding_indexed", "configuration": {"chunk_shape": chunk, "codecs": inner}}
        ],
    }
    spec = {**_spec(path), "metadata": metadata, "create": True}
    return require("tensorstore", "data").open(spec).result()
