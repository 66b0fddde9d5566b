"""The volume cache: values, interruption, damage, places, and when it is chosen."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.config import DataConfig
from atlas.data import cache
from atlas.data.batches import Request, Splatter, StudyBatches
from atlas.data.dataset import Dataset
from atlas.data.prepare import Settings, prepare
from atlas.errors import AtlasError

WIDTHS = (10.0, 6.0)
ROWS = [0, 5, 9, 50, 5, 79]
FWHM = np.array([10.0, 6.0, 6.0, 10.0, 10.0, 6.0])
STUDIES, SHARDS, SIZE = 80, 5, 16
# A quarter of the shipped sizes: shards of 16 studies, and as many written behind.
SMALLER = {"_STUDIES_PER_SHARD": SIZE, "_BYTES_AHEAD": cache._BYTES_AHEAD // 4}

# A build in a process of its own that says when it splats a shard, and leaves time to kill it.
SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from atlas.data import cache, dataset

pause, limit = float(sys.argv[2]), int(sys.argv[3])
vars(cache).update(json.loads(sys.argv[4]))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
splat = cache._splat
def slow(*arguments):
    print("shard", flush=True)
    time.sleep(pause)
    return splat(*arguments)
cache._splat = slow
cache.build(dataset.read(Path(sys.argv[1])), 4, (10.0, 6.0))
"""


def start(path: Path, pause: float = 0, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), str(pause), str(limit), json.dumps(SMALLER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def objects(data: Dataset) -> dict[str, Path]:
    """Files of the shards by their key."""
    top = cache.folder(data, 4) / "volumes" / "c"
    files = (path for path in top.rglob("*") if path.is_file() and "__lock" not in path.name)
    return {path.relative_to(top).as_posix(): path for path in sorted(files)}


def contents(data: Dataset) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in objects(data).items()}


@pytest.fixture(scope="module", autouse=True)
def _smaller_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALLER.items():
            patch.setattr(cache, name, value)
        yield


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A quarter of the bundled studies, with a cache of five shards."""
    data = prepare(Settings(subset=STUDIES), tmp_path_factory.mktemp("cache") / "data")
    assert cache.build(data, 4, WIDTHS) == cache.folder(data, 4)
    return data


@pytest.fixture
def copy(cached: Dataset, tmp_path: Path) -> Dataset:
    """The same, to be damaged."""
    return replace(cached, path=Path(shutil.copytree(cached.path, tmp_path / "data")))


def opened(data: Dataset) -> cache.VolumeCache:
    return cache.VolumeCache(data, 4, WIDTHS)


# ---------------------------------------------------------------------- values


def test_what_was_splatted_is_read(cached: Dataset) -> None:
    drawn = Splatter(cached, 4)
    for width in WIDTHS:
        for start in range(0, STUDIES, SIZE):
            rows, fwhm = range(start, start + SIZE), np.full(SIZE, width)
            ours, exact = opened(cached).volumes(rows, fwhm), drawn.volumes(rows, fwhm)
            assert ours.dtype == torch.float32
            # float16: 11 significant bits, and no more below 2^-14
            torch.testing.assert_close(ours, exact, rtol=2**-11, atol=2**-25)
            assert torch.equal(ours, exact.half().float())


def test_the_order_of_rows_changes_nothing(cached: Dataset) -> None:
    volumes = opened(cached)
    batch = volumes.volumes(ROWS, FWHM)
    turned = volumes.volumes(ROWS[::-1], FWHM[::-1])
    assert torch.equal(batch, turned.flip(0))
    for k, row in enumerate(ROWS):
        assert torch.equal(batch[k : k + 1], volumes.volumes([row], FWHM[k : k + 1]))
    assert not torch.equal(batch[1], batch[4])  # one study at two widths


def test_the_cache_feeds_the_same_batch(cached: Dataset) -> None:
    config, request = DataConfig(fwhm=WIDTHS), Request(0, tuple(ROWS))
    fly = StudyBatches(cached, config, np.zeros(0))[request]
    read = StudyBatches(cached, config, np.zeros(0), volumes=opened(cached))[request]
    for ours, theirs in zip(read[:-1], fly[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-11, atol=2**-25)
    assert fly.ids == read.ids


def test_zarr_python_reads_the_cache(cached: Dataset) -> None:
    import zarr

    array = zarr.open_array(cache.folder(cached, 4) / "volumes", mode="r")
    assert array.shape == (STUDIES, 2, 46, 55, 46) and array.dtype == np.float16
    assert array.chunks == (1, 1, 46, 55, 46) and array.shards == (SIZE, 2, 46, 55, 46)
    ours = opened(cached).volumes([50, 15, 16], np.array([6.0, 10.0, 6.0]))
    theirs = np.stack([array[50, 1], array[15, 0], array[16, 1]]).astype(np.float32)
    assert np.array_equal(theirs, ours[:, 0].numpy())


# ---------------------------------------------------------------------- interruption


def test_a_finished_build_returns_at_once(copy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_splat", None)
    monkeypatch.setattr(cache, "_time", None)
    before = {p: p.stat().st_mtime_ns for p in cache.folder(copy, 4).rglob("*")}
    cache.build(copy, 4, WIDTHS)
    assert before == {p: p.stat().st_mtime_ns for p in cache.folder(copy, 4).rglob("*")}


@pytest.mark.parametrize(
    ("how", "after"), [(signal.SIGKILL, 3), (signal.SIGKILL, 5), (signal.SIGINT, 4)]
)
def test_a_killed_build_goes_on(
    how: signal.Signals, after: int, cached: Dataset, copy: Dataset
) -> None:
    shutil.rmtree(cache.folder(copy, 4))
    with start(copy.path, pause=0.2) as process:
        assert process.stdout is not None
        for _ in range(after):
            assert process.stdout.readline() == "shard\n"
        process.send_signal(how)
    assert process.returncode != 0
    with pytest.raises(AtlasError, match=r"not finished; go on with atlas data cache .* --fwhm 10"):
        opened(copy)
    done = {name: path.stat() for name, path in objects(copy).items()}
    assert 0 < len(done) < SHARDS
    cache.build(copy, 4, WIDTHS)
    for name, before in done.items():
        now = objects(copy)[name].stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert contents(copy) == contents(cached)
    assert torch.equal(opened(copy).volumes(ROWS, FWHM), opened(cached).volumes(ROWS, FWHM))


def test_a_write_that_fails_is_one_line_and_the_next_build_goes_on(
    cached: Dataset, copy: Dataset
) -> None:
    shutil.rmtree(cache.folder(copy, 4))
    sizes = sorted(path.stat().st_size for path in objects(cached).values())
    with start(copy.path, limit=sizes[2]) as process:  # as a full disk: two or three shards fit
        _, errors = process.communicate()
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert re.search(
        rf"AtlasError: {cache.folder(copy, 4)}: cannot be written \(.*\); mend that, then go on "
        rf"with atlas data cache {copy.path} --resolution 4 --fwhm 10 --fwhm 6$",
        last,
    )
    assert "tensorstore_spec" not in last
    with pytest.raises(AtlasError, match="not finished"):
        opened(copy)
    cache.build(copy, 4, WIDTHS)
    assert contents(copy) == contents(cached)


def test_another_build_in_the_same_place_stops_this_one(
    copy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    splat, other = cache._splat, replace(copy, info={**copy.info, "fingerprint": "0" * 64})

    def intruder(*arguments: object) -> np.ndarray:
        monkeypatch.setattr(cache, "_splat", splat)
        cache.build(other, 4, WIDTHS)
        return splat(*arguments)  # type: ignore[arg-type]

    shutil.rmtree(cache.folder(copy, 4))
    monkeypatch.setattr(cache, "_splat", intruder)
    with pytest.raises(AtlasError, match="another build has begun there"):
        cache.build(copy, 4, WIDTHS)
    with pytest.raises(AtlasError, match="made from another dataset"):
        opened(copy)


# ---------------------------------------------------------------------- refusal


def test_a_cache_of_something_else_is_refused(cached: Dataset, tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"kernel width; rebuild it with atlas data cache .* 12$"):
        cache.VolumeCache(cached, 4, (12.0,))
    with pytest.raises(AtlasError, match="no cache there; rebuild it with atlas data cache"):
        cache.VolumeCache(replace(cached, path=tmp_path), 4, WIDTHS)
    older = replace(cached, info={**cached.info, "fingerprint": "0" * 64})
    with pytest.raises(AtlasError, match="made from another dataset"):
        opened(older)


def test_a_stale_cache_is_built_again(copy: Dataset) -> None:
    path = cache.folder(copy, 4)
    (path / "notes.txt").write_text("mine")
    cache.build(copy, 4, (8.0,))
    with pytest.raises(AtlasError, match="made from another"):
        opened(copy)
    volume = cache.VolumeCache(copy, 4, (8.0,)).volumes([7], np.array([8.0]))
    exact = Splatter(copy, 4).volumes([7], np.array([8.0]))
    assert torch.equal(volume, exact.half().float())
    assert (path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["key.json", "volumes/zarr.json"])
def test_damaged_descriptions_are_refused(copy: Dataset, name: str) -> None:
    path = cache.folder(copy, 4) / name
    path.write_text(path.read_text()[:-9])
    with pytest.raises(AtlasError, match="damaged"):
        opened(copy)


@pytest.mark.parametrize(("ours", "theirs"), [("float16", "bfloat16"), ("NaN", "0"), ("80", "16")])
def test_an_array_of_another_kind_is_refused(copy: Dataset, ours: str, theirs: str) -> None:
    path = cache.folder(copy, 4) / "volumes" / "zarr.json"
    text = path.read_text()
    assert ours in text
    path.write_text(text.replace(ours, theirs))
    with pytest.raises(AtlasError, match="damaged or out of reach") as caught:
        opened(copy)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_an_error_and_is_built_alone(
    cached: Dataset, copy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects(copy)["4/0/0/0/0"].unlink()
    volumes = opened(copy)
    volumes.volumes([0], np.array([10.0]))
    with pytest.raises(AtlasError, match="a part is missing; rebuild it with .* --resolution 4"):
        volumes.volumes([0, 79], np.array([10.0, 10.0]))
    splat, spans = cache._splat, []
    monkeypatch.setattr(
        cache, "_splat", lambda s, rows, p: (spans.append(rows), splat(s, rows, p))[1]
    )
    cache.build(copy, 4, WIDTHS)
    assert spans == [range(64, 80)] and contents(copy) == contents(cached)


def test_a_damaged_shard_is_an_error_never_another_volume(cached: Dataset, copy: Dataset) -> None:
    rng, refused = np.random.default_rng(0), 0
    path, rows = objects(copy)["1/0/0/0/0"], list(range(SIZE, 2 * SIZE)) * 2
    fwhm = np.repeat(WIDTHS, SIZE)
    intact, whole = path.read_bytes(), opened(cached).volumes(rows, fwhm)
    places = [*rng.integers(0, len(intact), 18), len(intact) - 1, len(intact) - 300]  # the index
    for place in places:
        content = bytearray(intact)
        content[place] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            assert torch.equal(opened(copy).volumes(rows, fwhm), whole)
        except AtlasError as error:
            assert re.search(
                r"damaged or out of reach \(.*; remove .*/volumes and rebuild it", str(error)
            )
            assert "\n" not in str(error)
            refused += 1
    assert refused == len(places)
    # What the error says to do helps.
    shutil.rmtree(cache.folder(copy, 4) / "volumes")
    cache.build(copy, 4, WIDTHS)
    assert contents(copy) == contents(cached)


# ---------------------------------------------------------------------- places


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_url_is_a_place(scheme: str, cached: Dataset, tmp_path: Path) -> None:
    there = tmp_path / "a b"
    url = there.as_uri() if scheme == "file" else "memory://some/where"
    data = replace(cached, path=tmp_path / "none")
    assert cache.build(data, 4, WIDTHS, url) == url
    ours = cache.VolumeCache(data, 4, WIDTHS, url).volumes(ROWS, FWHM)
    assert torch.equal(ours, opened(cached).volumes(ROWS, FWHM))
    with pytest.raises(AtlasError, match=f"made from another.* --fwhm 9 --url {url}$"):
        cache.VolumeCache(data, 4, (9.0,), url)
    assert not data.path.exists() and (there / "key.json").is_file() == (scheme == "file")


@pytest.mark.parametrize("url", ["/data/cache", "nonsense://x"])
def test_an_address_that_is_none_is_one_line(url: str, cached: Dataset) -> None:
    with pytest.raises(AtlasError, match=f"^{url}: no place for a cache .*; give file:///FOLDER"):
        cache.build(cached, 4, WIDTHS, url)


def test_a_folder_that_cannot_be_written_is_one_line(cached: Dataset, tmp_path: Path) -> None:
    (tmp_path / "cache_4mm").write_text("a file")
    with pytest.raises(AtlasError, match=f"^{tmp_path}/cache_4mm: .*go on with atlas data cache"):
        cache.build(replace(cached, path=tmp_path), 4, WIDTHS)


# ---------------------------------------------------------------------- choice


@pytest.mark.parametrize("faster", [True, False])
def test_auto_takes_the_cache_that_was_faster(faster: bool, copy: Dataset) -> None:
    timing = cache.folder(copy, 4) / "timing.json"
    measured = json.loads(timing.read_text())
    assert measured["studies"] == 16 and min(measured["cache_s"], measured["fly_s"]) > 0
    timing.write_text(json.dumps({"cache_s": 1, "fly_s": 2 if faster else 0.5}))

    def kind(**settings: object) -> type:
        config = DataConfig.model_validate({"fwhm": WIDTHS, **settings})
        return type(cache.choose(copy, config))

    assert kind() is (cache.VolumeCache if faster else type(None))
    assert kind(cache="never") is type(None)
    assert kind(cache="always") is cache.VolumeCache
    assert kind(cache_url=cache.folder(copy, 4).as_uri()) is kind()
    # Another width, another place, workers: nothing that fits.
    assert kind(fwhm=(9.0,)) is kind(cache_url="memory://empty") is kind(workers=1) is type(None)
    for settings in ({"fwhm": (9.0,)}, {"workers": 1}, {"cache_url": "memory://empty"}):
        with pytest.raises(AtlasError):
            kind(cache="always", **settings)
    for text in ("{", "[]", "{}"):
        timing.write_text(text)
        assert kind() is type(None)


def test_a_timing_that_is_gone_is_measured_again(copy: Dataset) -> None:
    timing = cache.folder(copy, 4) / "timing.json"
    os.remove(timing)
    assert cache.choose(copy, DataConfig(fwhm=WIDTHS)) is None
    cache.build(copy, 4, WIDTHS)
    assert timing.is_file()
