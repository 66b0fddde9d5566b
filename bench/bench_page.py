"""The page in a browser: from a slider to the new map on the screen, and to the first paint.

Headless Chromium draws with the processor here. Everything is timed on one page of `atlas serve`
with the released model, and with a small one at 2 mm, in rounds: a move of the slider, then its
parts apart, each until the pixels can be read.
"""

from __future__ import annotations

import gzip
import shutil
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from atlas import config
from atlas.data.prepare import Settings, prepare
from atlas.inference import Atlas
from atlas.training.run import train
from atlas.web.app import STATIC, create_app

Report = Callable[..., None]
ROUNDS = 60
MOVE = """async (z) => {
  const page = window.atlas, panel = page.panels[0], { nv, overlay } = panel.viewer;
  const { gl } = nv, pixel = new Uint8Array(4);
  const finish = () => gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
  const timed = async (work) => {
    const start = performance.now();
    await work();
    return performance.now() - start;
  };
  const body = document.body.dataset;
  const slider = document.querySelector("#latent input");
  const next = () => new Promise((done) => {
    const before = body.decodes;
    const look = new MutationObserver(() => {
      if (body.decodes !== before) { look.disconnect(); done(); }
    });
    look.observe(document.body, { attributes: true });
    slider.value = String(z);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  });
  const total = await timed(async () => { await next(); finish(); });
  const code = page.latent.code().map((x) => x + 1e-3); // another map, which nobody has kept
  let answer;
  const decode = await timed(async () => {
    answer = await page.backend.decode({ z: code, sd: null, metadata: {} }, "mean");
  });
  const refresh = await timed(() => { nv.refreshLayers(overlay, 1); finish(); });
  const draw = await timed(() => { nv.drawScene(); finish(); });
  return { total, decode, refresh, draw };
}"""


@contextmanager
def served(atlas: Atlas) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(atlas), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(Atlas.load()) as address:
        yield address


@pytest.fixture(scope="module")
def address_2mm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a model on the 2 mm grid: eight times the cells."""
    folder = tmp_path_factory.mktemp("fine")
    data = prepare(Settings(), folder / "data")
    fine = ["data.resolution=2", "train.epochs=1", "model.dilations=[1,2]"]
    train(config.load("smoke", fine), data, folder / "run")
    with served(Atlas.load(folder / "run")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
        )
        yield chromium
        chromium.close()


@pytest.mark.parametrize("grid", ["4mm", "2mm"])
def test_from_a_slider_to_the_screen(
    browser: Any, grid: str, report: Report, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue("address" if grid == "4mm" else "address_2mm")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.wait_for_selector("body[data-settled=true]", timeout=60_000)
    page.evaluate("atlas.rest = async () => undefined")  # a hand that goes on: no 3-D view between
    page.evaluate(MOVE, 0.1)  # hides it
    rows = [page.evaluate(MOVE, round(-2.5 + 0.08 * i, 2)) for i in range(ROUNDS)]
    page.close()
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    parts = median["decode"] + median["refresh"] + median["draw"]
    report(
        median["total"] / 1e3,
        {"parts": round(median["total"] / parts, 3)},
        without_niivue_ms=round(median["total"] - median["refresh"] - median["draw"], 1),
        **{f"{key}_ms": round(value, 1) for key, value in median.items() if key != "total"},
    )


def test_first_paint(browser: Any, address: str, report: Report) -> None:
    """`painted`: the first map, with every control; `ready`: NiiVue has taken over."""
    seconds: dict[str, list[float]] = {"painted": [], "ready": []}
    for _ in range(7):
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()  # no cache
        start = time.perf_counter()
        page.goto(address, wait_until="commit")
        for state, taken in seconds.items():
            page.wait_for_selector(f"body[data-{state}=true]", timeout=60_000)
            taken.append(time.perf_counter() - start)
        page.context.close()
    ready = round(statistics.median(seconds["ready"]), 2)
    report(statistics.median(seconds["painted"]), ready_s=ready)


def test_bytes_of_the_page(benchmark: Any) -> None:
    files = Path(STATIC, "assets").glob("*.js")
    benchmark.pedantic(lambda: None)
    benchmark.extra_info["gzip_kB"] = {
        path.name: round(len(gzip.compress(path.read_bytes(), 9)) / 1000, 1) for path in files
    }
    print(benchmark.extra_info)
