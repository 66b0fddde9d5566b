"""The page in a real browser: every control reaches the model, every answer reaches the screen."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from atlas import space
from tests.support import require_tool

pytestmark = pytest.mark.browser

ARGUMENTS = [
    "--headless",
    "--no-sandbox",  # the tests may run as root, in a container
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    require_tool("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        yield chromium
        chromium.close()


class Viewer:
    """One page, with what it asked for and complained about."""

    def __init__(self, page, server: str) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)
        page.goto(server)
        page.wait_for_selector("body[data-ready=true]", timeout=60_000)
        self.rest()

    def _hear(self, message) -> None:
        if "GL Driver Message" not in message.text:  # the driver on its own speed
            self.complaints.append(f"{message.type}: {message.text}")

    def rest(self) -> None:
        """Wait until the newest map is drawn, the 3-D view included."""
        self.page.wait_for_selector("body[data-settled=true]", timeout=60_000)

    def data(self, name: str) -> str:
        return self.page.evaluate("name => document.body.dataset[name]", name)

    def act(self, action) -> None:
        """Do something that decodes, and wait for its map."""
        before = int(self.data("decodes"))
        action()
        self.page.wait_for_function(
            "n => Number(document.body.dataset.decodes) > n", arg=before, timeout=60_000
        )
        self.rest()

    def pixels(self) -> np.ndarray:
        shot = self.page.locator("#canvas").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def slider(self, selector: str, value: float) -> None:
        self.act(lambda: self.page.locator(selector).first.fill(str(value)))


@pytest.fixture(scope="module")
def one_page(browser, server) -> Viewer:
    return Viewer(browser.new_page(viewport=SIZE), server)


@pytest.fixture
def viewer(one_page) -> Viewer:
    """The page as after loading. Loading itself takes seconds where the processor draws."""
    one_page.page.check("input[value=mean]", force=True)
    one_page.act(lambda: one_page.page.click("#reset"))
    one_page.complaints.clear()
    return one_page


def changed(before: np.ndarray, after: np.ndarray) -> int:
    """Count the pixels that differ visibly."""
    assert before.shape == after.shape
    return int((np.abs(before - after).max(axis=-1) > 3).sum())


def number_field(atlas) -> dict:
    fields = atlas.describe()["fields"]
    return next(f for f in fields if f["kind"] == "number" and f["available"])


def interpolate(volume, affine, mm) -> float:
    """Trilinear, written apart from the page's own."""
    place = np.linalg.solve(np.array(affine), [*mm, 1])[:3].clip(0, np.array(volume.shape) - 1)
    low = np.minimum(np.floor(place).astype(int), np.array(volume.shape) - 2)
    for i, t in zip(low, place - low):
        volume = volume[i] * (1 - t) + volume[i + 1] * t
    return float(volume)


def test_the_page_asks_nobody_else_and_complains_of_nothing(one_page, server):
    assert one_page.complaints == []
    urls = [urlparse(url) for url in one_page.requests]
    assert {url.netloc for url in urls if url.scheme not in ("data", "blob")} == {
        urlparse(server).netloc
    }


def test_the_map_lies_where_it_belongs(browser, server, served_atlas, monkeypatch):
    """One blob, right, in front and above: neurological convention, left is left."""
    mm = np.array([30.0, 24.0, 42.0])
    grid = space.load(4)
    distance = np.linalg.norm(grid.centres_mm - mm, axis=1)
    blob = grid.volume(20 * np.exp(-((distance / 8) ** 2)).astype(np.float32))
    monkeypatch.setattr(served_atlas, "decode_array", lambda *_: (blob, {}))
    page = Viewer(browser.new_page(viewport=SIZE), server)
    pixels = page.pixels()
    page.page.close()

    height, width = pixels.shape[:2]
    x, y, z = 182, 218, 182  # mm that the template spans
    gap = 8
    scale = min((width - gap) / (x + y), (height - gap) / (y + z))
    left, top = (width - (x + y) * scale - gap) / 2, (height - (y + z) * scale - gap) / 2
    right, bottom = left + x * scale + gap, top + z * scale + gap
    from_edge = scale * (mm - [-91, -127, -73])  # left, posterior, inferior
    expected = {
        "coronal": (left + from_edge[0], bottom - gap - from_edge[2]),
        "sagittal": (right + from_edge[1], bottom - gap - from_edge[2]),
        "axial": (left + from_edge[0], bottom + y * scale - from_edge[1]),
    }
    warm = pixels[..., 0] - pixels[..., 2] > 60  # the map; the crosshair is blue, the brain grey
    tiles = {
        "coronal": (slice(0, int(bottom - gap)), slice(0, int(right - gap))),
        "sagittal": (slice(0, int(bottom - gap)), slice(int(right), None)),
        "axial": (slice(int(bottom), None), slice(0, int(right - gap))),
    }
    for name, (rows, columns) in tiles.items():
        row, column = np.argwhere(warm[rows, columns]).mean(axis=0)
        found = column + (columns.start or 0), row + (rows.start or 0)
        assert np.abs(np.subtract(found, expected[name])).max() < 4, name  # pixels, about 2 mm


def test_the_template_is_drawn(viewer):
    pixels = viewer.pixels()
    grey = np.ptp(pixels, axis=-1) < 12
    assert (grey & (pixels.max(axis=-1) > 80)).mean() > 0.05


def test_a_latent_slider_changes_the_picture(viewer):
    before, total = viewer.pixels(), viewer.data("imageSum")
    viewer.slider("#latent input", 3)
    after = viewer.pixels()
    assert viewer.data("imageSum") != total
    assert changed(before, after) > 20
    viewer.act(lambda: viewer.page.click("#reset"))
    assert viewer.data("imageSum") == total
    assert changed(before, viewer.pixels()) == 0
    assert viewer.complaints == []


def test_a_metadata_slider_changes_the_picture(viewer, served_atlas):
    field = number_field(served_atlas)
    control = f"#field-{field['name']}"
    before, total = viewer.pixels(), viewer.data("imageSum")
    assert "imputed" in viewer.page.inner_text(f"[data-field={field['name']}] output")
    viewer.slider(control, 0)
    low, low_total = viewer.pixels(), viewer.data("imageSum")
    assert viewer.page.is_checked(f"{control}-known")
    viewer.slider(control, viewer.page.get_attribute(control, "max"))
    assert changed(low, viewer.pixels()) > 20
    assert len({total, low_total, viewer.data("imageSum")}) == 3
    viewer.act(lambda: viewer.page.uncheck(f"{control}-known"))
    assert viewer.data("imageSum") == total
    assert changed(before, viewer.pixels()) == 0


def test_a_category_changes_the_map(viewer, served_atlas):
    fields = served_atlas.describe()["fields"]
    field = next(f for f in fields if f["kind"] == "category" and f["available"])
    control = f"#field-{field['name']}"
    total = viewer.data("imageSum")
    viewer.act(lambda: viewer.page.select_option(control, field["categories"][3]["value"]))
    assert viewer.data("imageSum") != total
    viewer.act(lambda: viewer.page.select_option(control, ""))
    assert viewer.data("imageSum") == total


def test_a_field_that_training_never_saw_is_disabled_and_says_why(viewer, served_atlas):
    missing = [f for f in served_atlas.describe()["fields"] if not f["available"]]
    assert missing
    for field in missing:
        control = viewer.page.locator(f"#field-{field['name']}")
        assert control.is_disabled()
        assert field["reason"] in viewer.page.inner_text(f"[data-field={field['name']}]")


def test_uncertainty_is_another_picture_with_its_own_bar(viewer):
    before, bar = viewer.pixels(), viewer.page.inner_text(".colorbar")
    viewer.act(lambda: viewer.page.check("input[value=sd]", force=True))
    assert viewer.data("quantity") == "sd"
    assert changed(before, viewer.pixels()) > 1000
    assert viewer.page.inner_text(".colorbar") != bar


@pytest.mark.parametrize("quantity", ["mean", "sd"])
def test_the_value_under_the_crosshair_is_the_models(viewer, served_atlas, quantity):
    """Ties order of axes, affine, float16 and interpolation together."""
    if quantity == "sd":
        viewer.act(lambda: viewer.page.check("input[value=sd]", force=True))
    volume, _ = served_atlas.decode_array(None, {}, quantity)
    affine = served_atlas.describe()["grid"]["affine"]
    viewer.page.focus("#canvas")
    for key in (None, "ArrowLeft", "ArrowUp", "PageDown", "PageDown", "ArrowDown", "ArrowDown"):
        if key:
            place = viewer.data("mm")
            viewer.page.keyboard.press(key)
            assert viewer.data("mm") != place
        mm, value = json.loads(viewer.data("mm")), float(viewer.data("value"))
        assert value == pytest.approx(
            interpolate(volume, affine, mm), abs=2e-3 * float(volume.max())
        )


def test_clicking_a_slice_moves_the_crosshair(viewer):
    place = viewer.data("mm")
    box = viewer.page.locator("#canvas").bounding_box()
    viewer.page.mouse.click(box["x"] + 0.42 * box["width"], box["y"] + 0.3 * box["height"])
    assert viewer.data("mm") != place


def test_fast_moves_end_at_the_last(viewer, served_atlas):
    first = served_atlas.describe()["latent"]["directions"][0]
    slider = viewer.page.locator("#latent input").first
    asked = len(viewer.requests)
    for step in range(30):
        slider.fill(str(round(-1.5 + 0.1 * step, 1)))
    viewer.rest()
    z = np.zeros(served_atlas.latent)
    z[first["index"]] = 1.4 * first["sd"]
    volume, _ = served_atlas.decode_array(z.tolist(), {})
    assert float(viewer.data("imageSum")) == pytest.approx(volume.sum(dtype=float), rel=1e-3)
    assert len(viewer.requests) - asked <= 30


def test_a_server_that_went_away_is_said(viewer):
    viewer.page.route("**/api/decode", lambda route: route.abort())
    viewer.page.locator("#latent input").first.fill("1")
    viewer.page.wait_for_selector("#status.failed")
    assert "atlas serve" in viewer.page.inner_text("#status")
    viewer.page.unroute("**/api/decode")
    viewer.act(lambda: viewer.page.click("#reset"))
    assert "decoded in" in viewer.page.inner_text("#status")


def test_without_webgl2_the_page_says_so(browser, server):
    page = browser.new_page()
    page.add_init_script(
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        "  return kind === 'webgl2' ? null : get.call(this, kind, ...rest); };"
    )
    page.goto(server)
    page.wait_for_selector("#notice:not([hidden])")
    assert "WebGL2" in page.inner_text("#notice")
    page.close()
