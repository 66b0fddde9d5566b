"""Volumes of whole studies, splatted once into TensorStore, in a folder or a bucket.

::

    building.json   the key, written first: what is being built
    volumes/        zarr3 array (study, width, X, Y, Z) in shards of 64 studies
    key.json        the same key, written last: all of it is there
    timing.json     a batch from here and on the fly, in seconds: what `data.cache: auto` goes by

The key is the fingerprint of the dataset, the grid and the kernel widths. A shard is one object,
written in one step, so a shard that exists is complete: a build that was killed goes on with the
missing ones. A cache with another key, or not finished, is refused with the command to run.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas import progress, space
from atlas.config import DataConfig
from atlas.errors import AtlasError, require

from .batches import Splatter, Volumes
from .dataset import Dataset

_STUDIES_PER_SHARD = 64
_BYTES_AHEAD = 128 << 20  # splatted but not yet written: a few shards at 4 mm, one at 2 mm
_BATCH, _REPEATS = 16, 7  # of timing.json
_MARKS = ("key.json", "timing.json", "building.json")  # in the order in which they are removed
_FAILURES = (ValueError, OSError, RuntimeError)  # what TensorStore raises


def folder(dataset: Dataset, resolution: int) -> Path:
    """Where a dataset's cache lies unless a URL says otherwise."""
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
        "format": 2,
    }


def build(
    dataset: Dataset, resolution: int, fwhm: Sequence[float], url: str | None = None
) -> Path | str:
    """Splat every study at every width and write the cache, or what is missing of it.

    Parameters
    ----------
    dataset : Dataset
    resolution : int
        Of the grid, mm.
    fwhm : sequence of float
        Kernel widths in mm.
    url : str, optional
        ``file://``, ``s3://``, ``gs://`` or ``memory://``; without it `folder`. Whatever another
        build left there under the names above is removed, and nothing else. One build at a time.

    Returns
    -------
    Path or str
        The folder, or `url`.

    Raises
    ------
    AtlasError
        The place cannot be written, for example a full disk. The next build goes on from there.
    """
    place = _Place(dataset, resolution, fwhm, url)
    if place.read("building.json") != place.key:
        place.clear()
        place.write("building.json", place.key)
    missing = place.missing()
    if missing:
        _write_shards(place, missing, Splatter(dataset, resolution))
    if place.read("key.json") != place.key:
        place.write("key.json", place.key)
    if not place.read("timing.json"):
        cached = VolumeCache(dataset, resolution, fwhm, url)
        place.write("timing.json", _time(cached, Splatter(dataset, resolution), len(dataset), fwhm))
    return place.name


class VolumeCache:
    """Reads volumes back; the same face as `atlas.data.batches.Splatter`.

    Raises
    ------
    AtlasError
        The cache is missing, unfinished, damaged or made from something else.
    """

    def __init__(
        self, dataset: Dataset, resolution: int, fwhm: Sequence[float], url: str | None = None
    ) -> None:
        self._place = place = _Place(dataset, resolution, fwhm, url)
        stored = place.read("key.json")
        if stored is None and place.read("building.json") is not None:
            raise AtlasError(f"{place.name}: not finished; go on with {place.command}")
        if stored is None:
            raise AtlasError(f"{place.name}: no cache there; rebuild it with {place.command}")
        if stored != place.key:
            what = "made from another dataset, grid or kernel width" if stored else "damaged"
            raise AtlasError(f"{place.name}: {what}; rebuild it with {place.command}")
        self._columns = {width: k for k, width in enumerate(place.key["fwhm"])}
        self._store, self._shape = place.array(), place.shape[2:]
        self._target = require("tensorstore", "data").array

    @property
    def faster(self) -> bool:
        """Whether reading a batch was clearly faster than splatting it where it was built."""
        timing = self._place.read("timing.json") or {}
        return bool(timing.get("cache_s", np.inf) < 0.8 * timing.get("fly_s", 0))

    def volumes(self, rows: Sequence[int], fwhm: np.ndarray) -> torch.Tensor:
        """Return (B, 1, X, Y, Z) float32 volumes of all peaks, one FWHM in mm a row."""
        columns = [self._columns[float(width)] for width in fwhm]
        half = np.empty((len(columns), 1, *self._shape), np.float16)
        # All chunks in one read, decoded in parallel. Into arrays of NumPy's: it asks for huge
        # pages, without which a batch at 2 mm takes twice as long.
        with self._place.reading():
            chunks = self._store.vindex[[int(row) for row in rows], columns]
            self._target(half[:, 0]).write(chunks).result()
        out = torch.from_numpy(np.empty(half.shape, np.float32)).copy_(torch.from_numpy(half))
        if out[:, 0, 0, 0, 0].isnan().any():  # the fill value: a chunk that is not there
            raise AtlasError(
                f"{self._place.name}: a part is missing; rebuild it with {self._place.command}"
            )
        return out


def choose(dataset: Dataset, data: DataConfig) -> Volumes | None:
    """Return the cache that a run reads from, or None for splatting on the fly.

    ``auto`` takes a cache that fits and was faster when it was built. Nothing is measured here, so
    that a run and its continuation take the same. TensorStore reads with threads of its own and
    ends a forked process that uses it, hence no cache for workers.
    """
    if data.cache == "never" or (data.cache == "auto" and data.workers):
        return None
    if data.workers:
        raise AtlasError(f"data.cache=always with data.workers={data.workers}: set data.workers=0")
    try:
        cached = VolumeCache(dataset, data.resolution, data.fwhm, data.cache_url)
        return cached if data.cache == "always" or cached.faster else None
    except AtlasError:
        if data.cache == "always":
            raise
        return None


class _Place:
    """Where one cache lies: its key, the objects there, and what to tell the user about them."""

    def __init__(
        self, dataset: Dataset, resolution: int, fwhm: Sequence[float], url: str | None
    ) -> None:
        self.name: Path | str = url or folder(dataset, resolution)
        self.key = key(dataset, resolution, fwhm)
        self.shape = (len(dataset), len(fwhm), *self.key["shape"])
        widths = " ".join(f"--fwhm {width:g}" for width in fwhm)
        self.command = f"atlas data cache {dataset.path} --resolution {resolution} {widths}"
        self.command += f" --url {url}" if url else ""
        volumes = f"{str(self.name).rstrip('/')}/volumes"
        self.repair = f"remove {volumes} and rebuild it with {self.command}"
        address = (url or folder(dataset, resolution).absolute().as_uri()).rstrip("/")
        address += "//" if address.endswith(":") else "/"  # memory:// alone is an address too
        self._ts = require("tensorstore", "data")
        try:
            self._kv = self._ts.KvStore.open(address, context=_context()).result()
        except _FAILURES as error:
            raise AtlasError(
                f"{url}: no place for a cache ({_reason(error)}); "
                "give file:///FOLDER, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
            ) from None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what TensorStore raises into one line."""
        try:
            yield
        except _FAILURES as error:
            reason = f"damaged or out of reach ({_reason(error)})"
            raise AtlasError(f"{self.name}: {reason}; {self.repair}") from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what TensorStore raises into one line."""
        try:
            yield
        except _FAILURES as error:
            reason = f"cannot be written ({_reason(error)})"
            raise AtlasError(
                f"{self.name}: {reason}; mend that, then go on with {self.command}"
            ) from None

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object, None where there is none, {} where it is damaged."""
        with self.reading():
            found = self._kv.read(name).result()
        if found.state != "value":
            return None
        try:
            value = json.loads(found.value)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON object in one step."""
        with self.writing():
            self._kv.write(name, json.dumps(value, indent=1).encode()).result()

    def clear(self) -> None:
        """Remove what a build writes, the mark that it is complete first."""
        with self.writing():
            for name in _MARKS:
                self._kv.write(name, None).result()
            self._kv.delete_range(self._ts.KvStore.KeyRange("volumes/", "volumes0")).result()

    def missing(self) -> list[int]:
        """List the shards that are not there yet."""
        with self.reading():
            present = set((self._kv / "volumes/c/").list().result())
        shards = range(-(-self.shape[0] // _STUDIES_PER_SHARD))
        return [shard for shard in shards if f"{shard}/0/0/0/0".encode() not in present]

    def array(self, create: bool = False) -> Any:
        """Open the volumes; metadata that differ from ours in anything are refused."""
        spec = {
            "driver": "zarr3",
            "kvstore": (self._kv / "volumes/").spec().to_json(),
            "metadata": _metadata(self.shape),
        }
        with self.writing() if create else self.reading():
            return self._ts.open(spec, open=True, create=create, context=_context()).result()


@functools.cache
def _context() -> Any:
    """One for the process: what memory:// holds belongs to it."""
    return require("tensorstore", "data").Context()


def _reason(error: BaseException) -> str:
    """Cut off the specification that TensorStore prints after the reason."""
    return " ".join(
        str(error).split(" [tensorstore_spec=")[0].split(" [source locations=")[0].split()
    )


def _metadata(shape: tuple[int, ...]) -> dict[str, Any]:
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1}},
        {"name": "crc32c"},  # a damaged chunk is an error, never a wrong volume
    ]
    chunks = {"chunk_shape": [1, 1, *shape[2:]], "codecs": codecs}  # a volume at one width
    shards = {"chunk_shape": [_STUDIES_PER_SHARD, *shape[1:]]}
    return {
        "shape": list(shape),
        "data_type": "float16",
        "fill_value": "NaN",  # one element tells whether a chunk is there
        "dimension_names": ["study", "fwhm", "x", "y", "z"],
        "chunk_grid": {"name": "regular", "configuration": shards},
        "codecs": [{"name": "sharding_indexed", "configuration": chunks}],
    }


def _write_shards(place: _Place, shards: Sequence[int], splatter: Splatter) -> None:
    """Splat one shard while the ones before it are compressed and written."""
    store, (studies, *volume) = place.array(create=True), place.shape
    ahead = _BYTES_AHEAD // (2 * _STUDIES_PER_SHARD * int(np.prod(volume)))
    writes: deque[tuple[Any, int]] = deque()
    with progress.track(f"cache {place.name}", studies) as ticker:

        def finish_one() -> None:
            write, count = writes.popleft()
            with place.writing():
                write.result()
            ticker.advance(count)

        spans = [range(studies)[k * _STUDIES_PER_SHARD :][:_STUDIES_PER_SHARD] for k in shards]
        if done := studies - sum(map(len, spans)):
            ticker.advance(done, "of an earlier build")
        for rows in spans:
            if place.read("building.json") != place.key:
                raise AtlasError(f"{place.name}: another build has begun there; choose another URL")
            block = _splat(splatter, rows, place)
            # A whole shard in one operation is one write of one object; no copy of the block.
            write = store[rows.start : rows.stop].write(
                block, can_reference_source_data_indefinitely=True
            )
            writes.append((write, len(rows)))
            while len(writes) > max(1, ahead):
                finish_one()
        while writes:
            finish_one()


def _splat(splatter: Splatter, rows: range, place: _Place) -> np.ndarray:
    """Return (rows, widths, X, Y, Z) float16; a few studies at a time, for their float32."""
    out = np.empty((len(rows), *place.shape[1:]), np.float16)
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        for k, width in enumerate(place.key["fwhm"]):
            volumes = splatter.volumes(part, np.full(len(part), width))
            torch.from_numpy(out[start : start + len(part), k]).copy_(volumes[:, 0])
    return out


def _time(cached: Volumes, fly: Volumes, studies: int, fwhm: Sequence[float]) -> dict[str, Any]:
    """Measure a batch of random studies both ways, in turns; medians, the first round warms up."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"cache_s": [], "fly_s": []}
    for _ in range(1 + _REPEATS):
        rows = rng.choice(studies, min(_BATCH, studies), replace=False).tolist()
        widths = rng.choice(fwhm, len(rows))
        for name, source in (("cache_s", cached), ("fly_s", fly)):
            start = time.perf_counter()
            source.volumes(rows, widths)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    return {"studies": min(_BATCH, studies), **medians}
