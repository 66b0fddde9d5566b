"""The atlas in a tab: one decode in one thread of WebAssembly, and what travels on the wire.

The exported folder of the released model on a plain static host, headless Chromium.
"""

from __future__ import annotations

import functools
import gzip
import http.server
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas import tab
from atlas.inference import Atlas
from atlas.web.app import STATIC

ROUNDS = 60
BAR_MS, BAR_MB = 80, 8
DECODE = """async ([rounds, size]) => {
  const back = window.atlas.backend, taken = [];
  for (let i = 0; i < rounds; i++) {
    const z = Array.from({ length: size }, (_, k) => Math.sin(k + i));
    const start = performance.now();
    await back.decode({ z, sd: null, metadata: {} }, "mean");
    taken.push(performance.now() - start);
  }
  return taken;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tab") / "out"
    tab.write(Atlas.load(), path, STATIC, None, "no studies here")
    return path


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    host = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}"
    host.shutdown()
    host.server_close()


def test_decode_in_one_thread(address: str, report: Callable[..., None]) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
        )
        page = chromium.new_page()
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("body[data-painted=true]", timeout=120_000)
        first = time.perf_counter() - start
        page.wait_for_selector("body[data-settled=true]", timeout=120_000)
        taken = page.evaluate(DECODE, [ROUNDS, 64])[-50:]
        chromium.close()
    decode = statistics.median(taken)
    report(decode / 1e3, first_map_s=round(first, 2))
    assert decode <= BAR_MS


def test_bytes_on_the_wire(folder: Path, benchmark: Any) -> None:
    packed = [*folder.glob("*.onnx.lzma"), *folder.glob("assets/*.wasm.lzma")]
    texts = [p for p in folder.rglob("*.gz") if p.name != "template.nii.gz"]
    benchmark.extra_info.update(
        {f"{path.suffixes[-2][1:]}_MB": round(path.stat().st_size / 1e6, 2) for path in packed},
        texts_gzip_MB=round(sum(p.stat().st_size for p in texts) / 1e6, 2),
        own_script_gzip_kB=round(
            sum(
                len(gzip.compress(p.read_bytes(), 9))
                for p in (folder / "assets").glob("*.js")
                if not p.name.startswith(("niivue", "decoder"))
            )
            / 1000,
            1,
        ),
    )
    benchmark.pedantic(lambda: None)
    print(benchmark.extra_info)
    assert sum(path.stat().st_size for path in packed) <= BAR_MB * 1e6
