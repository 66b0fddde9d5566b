"""The page in a real browser: every control reaches the model, every answer reaches the screen."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlparse

import nibabel
import numpy as np
import pytest
from PIL import Image

from atlas import space
from atlas.explore.studies import bundled
from atlas.inference import Atlas
from atlas.web.app import create_app
from atlas.web.library import find
from tests.support import require_tool
from tests.web.conftest import serving

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
SIZE = {"width": 1000, "height": 640}  # two and three panels take whole pixels


@pytest.fixture(scope="module")
def served_atlas() -> Atlas:
    """The released model: what most people see."""
    return Atlas.load()


@pytest.fixture(scope="module")
def served_study() -> Any:
    return bundled().rows[7]


@pytest.fixture(scope="module")
def server(served_atlas: Atlas) -> Iterator[str]:
    with serving(create_app(served_atlas, library=find(None, None))) as address:
        yield address


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
        self.server = server
        self.open("")

    def open(self, address: str) -> None:
        """Load the page at an address, as from a link."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.server}/{address}")
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

    def pixels(self, panel: int = 0) -> np.ndarray:
        return screenshot(self.page.locator("#stage .slices canvas").nth(panel))

    def sums(self) -> list[float]:
        """Sum of the map of each panel."""
        return json.loads(self.data("sums"))

    def view(self, name: str) -> None:
        self.act(lambda: self.page.click(f"#tab-{name}"))

    def slider(self, selector: str, value: float) -> None:
        self.act(lambda: self.page.locator(selector).first.fill(str(value)))


@pytest.fixture(scope="module")
def one_page(browser, server) -> Viewer:
    return Viewer(browser.new_page(viewport=SIZE), server)


@pytest.fixture
def viewer(one_page) -> Viewer:
    """The page as after loading. Loading itself takes seconds where the processor draws."""
    if one_page.data("view") != "latent":
        one_page.view("latent")
    one_page.page.check("input[value=prior]", force=True)
    one_page.page.check("input[name=quantity][value=mean]", force=True)
    one_page.act(lambda: one_page.page.click("#reset"))
    one_page.complaints.clear()
    return one_page


def screenshot(locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def changed(before: np.ndarray, after: np.ndarray) -> int:
    """Count the pixels that differ visibly."""
    assert before.shape == after.shape
    return int((np.abs(before - after).max(axis=-1) > 3).sum())


def colourful(pixels: np.ndarray) -> int:
    """Count pixels of the maps' warm and cold colours; crosshair and brain are neither."""
    red, blue = pixels[..., 0] - pixels[..., 1], pixels[..., 2] - pixels[..., 0]
    return int(((red > 60) | ((blue > 60) & (pixels[..., 1] < 190))).sum())


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures are the same but for the edges of letters and lines."""
    return changed(one, other) <= 0.001 * one.shape[0] * one.shape[1]


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
    blob = 20 * np.exp(-((distance / 8) ** 2)).astype(np.float32)[None]
    page = Viewer(browser.new_page(viewport=SIZE), server)
    page.open("#mm=30,24,42")
    monkeypatch.setattr(served_atlas, "cells", lambda *_: (blob, blob))
    page.slider("#latent input", 1.7)  # a map that nobody has kept
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
    before, total = viewer.pixels(), viewer.sums()
    viewer.slider("#latent input", 3)
    after = viewer.pixels()
    assert viewer.sums() != total
    assert changed(before, after) > 20
    viewer.act(lambda: viewer.page.click("#reset"))
    assert viewer.sums() == total
    assert alike(before, viewer.pixels())
    assert viewer.complaints == []


def test_a_metadata_slider_changes_the_picture(viewer, served_atlas):
    field = number_field(served_atlas)
    control = f"#field-{field['name']}"
    before, total = viewer.pixels(), viewer.sums()
    assert viewer.page.input_value(f"{control}-mode") == ""
    assert "±" in viewer.page.inner_text(f"#metadata [data-field={field['name']}] output")
    viewer.slider(control, 0)
    low, low_total = viewer.pixels(), viewer.sums()
    assert viewer.page.input_value(f"{control}-mode") == "known"
    viewer.slider(control, viewer.page.get_attribute(control, "max"))
    assert changed(low, viewer.pixels()) > 20
    assert len({total[0], low_total[0], viewer.sums()[0]}) == 3
    viewer.act(lambda: viewer.page.select_option(f"{control}-mode", ""))
    assert viewer.sums() == total
    assert alike(before, viewer.pixels())


def test_a_category_changes_the_map(viewer, served_atlas):
    fields = served_atlas.describe()["fields"]
    field = next(f for f in fields if f["kind"] == "category" and f["available"])
    control = f"#field-{field['name']}"
    total = viewer.sums()
    viewer.act(lambda: viewer.page.select_option(control, field["categories"][3]["value"]))
    assert viewer.sums() != total
    viewer.act(lambda: viewer.page.select_option(control, ""))
    assert viewer.sums() == total


def test_a_field_that_training_never_saw_is_disabled_and_says_why(viewer, served_atlas):
    missing = [f for f in served_atlas.describe()["fields"] if not f["available"]]
    assert missing
    for field in missing:
        control = viewer.page.locator(f"#field-{field['name']}")
        assert control.is_disabled()
        text = viewer.page.text_content(f"#metadata [data-field={field['name']}]")
        assert field["reason"] in text


def test_uncertainty_is_another_picture_with_its_own_bar(viewer):
    bar = ".panel:first-of-type .colorbar"
    before, text = viewer.pixels(), viewer.page.inner_text(bar)
    viewer.act(lambda: viewer.page.check("input[value=sd]", force=True))
    assert changed(before, viewer.pixels()) > 1000
    assert viewer.page.inner_text(bar) != text


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
    viewer.requests.clear()
    for step in range(30):
        slider.fill(str(round(-1.5 + 0.1 * step, 1)))
    viewer.rest()
    z = np.zeros(served_atlas.latent)
    z[first["index"]] = 1.4 * first["sd"]
    volume, _ = served_atlas.decode_array(z.tolist(), {})
    assert viewer.sums()[0] == pytest.approx(volume.sum(dtype=float), rel=1e-3)
    assert 1 <= len([url for url in viewer.requests if url.endswith("/api/decode")]) <= 30


def test_a_server_that_went_away_is_said(viewer):
    viewer.page.route("**/api/decode", lambda route: route.abort())
    viewer.page.locator("#latent input").first.fill("1")
    viewer.page.wait_for_selector("#status.failed")
    assert "atlas serve" in viewer.page.inner_text("#status")
    viewer.page.unroute("**/api/decode")
    viewer.act(lambda: viewer.page.click("#reset"))
    assert "decoded in" in viewer.page.inner_text("#status")


def test_a_counterfactual_stands_beside_the_fact(viewer, served_atlas):
    """Nothing changed: no difference, and no colour in its panel. A task changed: both."""
    viewer.view("counterfactual")
    same = viewer.sums()
    assert same[0] == same[1] and same[2] == 0
    assert min(colourful(viewer.pixels(i)) for i in (0, 1)) > 20
    assert colourful(viewer.pixels(2)) == 0
    assert "Change a field" in viewer.page.inner_text("#effect")

    category = served_atlas.field("task").categories[3]
    viewer.act(lambda: viewer.page.select_option("#change-task", category))
    moved = viewer.sums()
    expected = served_atlas.counterfactual(None, {}, {"task": category})
    assert moved[0] == pytest.approx(same[0])
    assert moved[1] == pytest.approx(expected.counterfactual.mean.get_fdata().sum(), rel=1e-3)
    assert "%" in viewer.page.inner_text("#effect")
    assert viewer.complaints == []
    viewer.page.check("input[name=zoom][value='16']", force=True)
    assert colourful(viewer.pixels(2)) > 100
    assert "zoom=16" in viewer.page.url


def test_crosshairs_are_linked(viewer):
    where = "atlas.panels.map(({ viewer }) => [...viewer.nv.scene.crosshairPos])"
    viewer.view("counterfactual")
    before = np.array(viewer.page.evaluate(where))
    viewer.page.focus("#canvas-1")
    for _ in range(6):
        viewer.page.keyboard.press("ArrowLeft")
    after = np.array(viewer.page.evaluate(where))
    assert before.shape == after.shape == (3, 3)
    assert np.ptp(before, axis=0).max() < 1e-6 and np.ptp(after, axis=0).max() < 1e-6
    assert (after[:, 0] < before[:, 0] - 0.05).all()  # six voxels of a hundred, in every panel


def test_the_strip_moves_a_number(viewer, served_atlas):
    """The year, where the model knows it."""
    name = number_field(served_atlas)["name"]
    viewer.view("counterfactual")
    slices = viewer.page.locator("#years .strip button")
    assert slices.count() >= 9
    assert "extrapolated" in slices.last.inner_text()
    viewer.act(lambda: slices.nth(3).click())
    value = viewer.page.locator("#years .strip [aria-current]").inner_text().split()[0]
    assert f"to.{name}={value}" in viewer.page.url
    assert viewer.page.inner_text(f"#changes [data-field={name}] output") == value


def test_parts_of_the_uncertainty_add_up(viewer, served_atlas):
    viewer.view("confidence")
    every = viewer.sums()
    decoder, _ = served_atlas.decode_array(None, {}, "sd")
    assert every[1] >= 0.99 * decoder.sum()
    for part in ("posterior", "imputation"):
        viewer.act(lambda part=part: viewer.page.uncheck(f"#part-{part}"))
    alone = viewer.sums()
    assert alone[0] == every[0]
    assert alone[1] == pytest.approx(decoder.sum(), rel=5e-3)
    viewer.act(lambda: viewer.page.uncheck("#part-decoder"))
    assert viewer.sums()[1] == 0
    for part in ("posterior", "imputation", "decoder"):
        viewer.act(lambda part=part: viewer.page.check(f"#part-{part}"))
    assert viewer.sums() == every


def test_what_is_uncertain_fades(viewer):
    viewer.view("confidence")
    solid = viewer.pixels()
    viewer.page.locator("#fade").fill("3")
    faded = viewer.pixels()
    assert colourful(faded) < colourful(solid)
    viewer.page.locator("#fade").fill("0")
    assert alike(solid, viewer.pixels())


def test_the_table_of_peaks_goes_where_it_says(viewer):
    viewer.view("confidence")
    place = viewer.page.locator("#peak-table .place").first
    text = place.inner_text()
    place.click()
    place = [int(x) for x in text.split(",")]
    assert np.abs(np.subtract(json.loads(viewer.data("mm")), place)).max() <= 0.5


def test_a_study_gives_its_code_and_metadata(viewer, served_study):
    viewer.page.check("input[name=start][value=study]", force=True)
    viewer.page.fill("#search", served_study.title)
    row = viewer.page.locator(".found button.row").first
    viewer.act(row.click)
    assert served_study.title in viewer.page.inner_text("#start-title")
    assert f"study={served_study.id}" in viewer.page.url
    assert viewer.page.locator("#latent output").first.inner_text() != "0"
    mine = viewer.sums()
    viewer.open(viewer.page.url.removeprefix(viewer.server + "/"))
    assert viewer.sums() == mine
    viewer.open("")


def test_the_search_filters(viewer):
    def found() -> int:
        viewer.page.wait_for_timeout(600)  # after the last letter, and the answer
        return int(viewer.page.inner_text(".search .hint").split()[0])

    viewer.page.check("input[name=start][value=study]", force=True)
    viewer.page.fill("#search", "n-back")
    every = found()
    viewer.page.select_option("#search-task", "working_memory")
    some = found()
    assert 0 < some <= every
    viewer.page.fill("#search", "no study has these words")
    assert found() == 0
    viewer.page.fill("#search", "")
    viewer.page.select_option("#search-task", "")
    assert found() == len(bundled())


def test_the_way_between_two_studies(viewer):
    viewer.page.check("input[name=start][value=between]", force=True)
    viewer.page.fill("#search-between", "memory")
    rows = viewer.page.locator("#start .found:visible li")
    rows.nth(0).get_by_role("button", name="A", exact=True).click()
    viewer.act(lambda: rows.nth(1).get_by_role("button", name="B", exact=True).click())
    middle = viewer.sums()
    assert "50 %" in viewer.page.inner_text("#start-title")
    viewer.act(lambda: viewer.page.locator("#share").fill("0"))
    first = viewer.sums()
    assert first != middle and "share=0" in viewer.page.url
    viewer.open(viewer.page.url.removeprefix(viewer.server + "/"))
    assert viewer.sums() == first
    viewer.act(lambda: viewer.page.locator("#share").fill("50"))
    assert viewer.sums() == middle
    viewer.open("")


def test_a_model_without_metadata_says_why_two_views_are_empty(browser, server):
    def without(route) -> None:
        model = route.fetch().json()
        fields = [{**field, "available": False, "reason": "none"} for field in model["fields"]]
        route.fulfill(json={**model, "conditioned": False, "fields": fields})

    page = browser.new_page(viewport=SIZE)
    page.route("**/api/model", without)
    viewer = Viewer(page, server)
    assert viewer.data("view") == "latent" and viewer.sums()[0] > 0
    page.click("#tab-confidence")
    assert "takes no metadata" in page.inner_text("#notice")
    page.click("#tab-latent")
    page.wait_for_selector("#notice", state="hidden")
    page.close()


def test_directions_say_what_they_go_along_with(viewer):
    assert viewer.page.locator("#latent .topics").first.inner_text().count(",") >= 2


def test_peaks_give_a_code_and_mistakes_a_line(viewer):
    centre = viewer.sums()
    viewer.page.check("input[name=start][value=peaks]", force=True)
    viewer.page.fill("#peaks", "-42 20 28\n44, 60")
    viewer.page.click("text=Encode peaks")
    assert "Line 2" in viewer.page.inner_text("#start-note")
    viewer.page.fill("#peaks", "-42 20 28\n44, -60, 40\n-30;-90;0")
    viewer.act(lambda: viewer.page.click("text=Encode peaks"))
    assert "3 peaks" in viewer.page.inner_text("#start-title")
    assert viewer.sums() != centre


def test_pasted_text_that_says_more_than_numbers_is_heard(viewer):
    """Talairach is converted, and each study of the text is one."""
    viewer.page.check("input[name=start][value=peaks]", force=True)
    studies = "\n".join(f"// {name}\n-42\t20\t28\n44\t-60\t40\n" for name in ("One", "Two"))
    viewer.page.fill("#peaks", f"//Reference=Talairach\n{studies}")
    viewer.page.click("text=Encode peaks")
    rows = viewer.page.locator(".own .found button.row")
    rows.nth(1).wait_for()
    assert "4 peaks converted from Talairach" in viewer.page.inner_text("#start-note")
    for row in range(2):  # the list stays for the next choice
        viewer.act(lambda row=row: rows.nth(row).click())
        assert "2 peaks" in viewer.page.inner_text("#start-title")


def test_a_dropped_file_gives_a_code(viewer, tmp_path):
    file = tmp_path / "mine.tsv"
    file.write_text("x\ty\tz\n-42\t20\t28\n44\t-60\t40\n")
    viewer.page.check("input[name=start][value=peaks]", force=True)
    viewer.act(lambda: viewer.page.set_input_files("#file", file))
    assert "2 peaks" in viewer.page.inner_text("#start-title")


ADDRESSES = [
    "#show=sd&m.year=2005&mm=-42,20,28",
    "#view=counterfactual&m.task=language&to.year=2023&to.task=&zoom=16&mm=10,-20,44",
    "#view=confidence&parts=decoder*imputation&fade=1.5&m=&mm=0,0,40",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_restores_the_state(viewer, address):
    viewer.open(address)
    assert dict(parse_qsl(urlparse(viewer.page.url).fragment, keep_blank_values=True)) == dict(
        parse_qsl(address[1:], keep_blank_values=True)
    )
    sums, mm = viewer.sums(), viewer.data("mm")
    viewer.open(viewer.page.url.removeprefix(viewer.server + "/"))
    assert (viewer.sums(), viewer.data("mm")) == (sums, mm)
    assert viewer.complaints == []
    viewer.open("")


def test_an_address_that_makes_no_sense_opens_what_does(viewer):
    viewer.open(
        "#view=no&z=!!&sd=AA&m.year=soon&m.task=dreaming&m.nothing=1&to.year=1e9&parts=&fade=x"
        "&mm=1,2&study=nobody&show=%00"
    )
    assert viewer.data("view") == "latent"
    assert viewer.data("settled") == "true"
    assert "decoded in" in viewer.page.inner_text("#status")
    assert "no such study" in viewer.page.inner_text("#start-note")
    viewer.open("")


def test_the_address_follows_the_crosshair(viewer):
    viewer.page.focus("#canvas")
    viewer.page.keyboard.press("ArrowUp")
    mm = ",".join(str(round(x)) for x in json.loads(viewer.data("mm")))
    viewer.page.wait_for_function(
        "mm => new URLSearchParams(location.hash.slice(1)).get('mm') === mm", arg=mm
    )


def test_a_random_brain_is_no_longer_the_study(viewer, served_study):
    viewer.open(f"#study={served_study.id}")
    assert viewer.page.evaluate("atlas.title()") == viewer.page.inner_text("#start-title")
    viewer.slider("#latent input", 1)
    assert viewer.page.evaluate("atlas.title()").endswith(", directions moved")
    viewer.page.check("input[name=start][value=prior]", force=True)
    viewer.act(lambda: viewer.page.click("#sample"))
    assert viewer.page.inner_text("#start-title") == "Random brain"
    assert viewer.page.evaluate("atlas.title()") == "Random brain"
    assert "study=" not in viewer.page.url and "sd=" not in viewer.page.url
    viewer.open("")


def test_other_views_download_the_mean_whatever_the_slider_shows(viewer):
    viewer.act(lambda: viewer.page.check("input[value=sd]", force=True))
    viewer.view("confidence")
    viewer.page.click("#downloads summary")
    with viewer.page.expect_download() as waiting:
        viewer.page.click("#get-nifti")
    assert waiting.value.suggested_filename.endswith("-mean.nii.gz")


def test_the_back_button_returns_to_the_view_before(viewer):
    before = viewer.sums()
    viewer.view("confidence")
    viewer.act(viewer.page.go_back)
    assert viewer.data("view") == "latent"
    assert viewer.sums() == before


def test_views_and_sliders_by_keyboard(viewer):
    viewer.page.focus("#tab-latent")
    viewer.act(lambda: viewer.page.keyboard.press("ArrowRight"))
    assert viewer.data("view") == "counterfactual"
    assert viewer.page.get_attribute("#tab-counterfactual", "aria-selected") == "true"
    viewer.act(lambda: viewer.page.keyboard.press("ArrowLeft"))
    total = viewer.sums()
    viewer.page.focus("#latent input")
    viewer.act(lambda: viewer.page.keyboard.press("End"))
    assert viewer.sums() != total


def test_every_control_has_a_name(viewer):
    """What a screen reader says of each control that is there."""
    nameless = """() => [...document.querySelectorAll('input, select, textarea, button, canvas[tabindex]')]
      .filter(n => !(n.labels?.length || n.getAttribute('aria-label') || n.textContent.trim()))
      .map(n => n.outerHTML)"""  # noqa: E501
    for view in ("counterfactual", "confidence", "latent"):
        viewer.view(view)
        assert viewer.page.evaluate(nameless) == []


@pytest.mark.parametrize("size", [(390, 700), (820, 700)])
def test_it_fits_a_narrow_screen(browser, server, size):
    page = Viewer(browser.new_page(viewport={"width": size[0], "height": size[1]}), server)
    for view in ("latent", "counterfactual", "confidence"):
        if view != "latent":
            page.view(view)
        assert page.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert (page.pixels().max(axis=-1) > 80).mean() > 0.03  # the brain is drawn
    page.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_system_s_colours(browser, server, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto(server)
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    level = sum(int(x) for x in re.findall(r"\d+", background)[:3]) / 3
    assert (level > 128) == (scheme == "light")
    page.close()


def test_downloads_are_what_is_shown(viewer, tmp_path, monkeypatch):
    def fetched(button: str):
        viewer.page.click("#downloads summary")
        with viewer.page.expect_download() as waiting:
            viewer.page.click(button)
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    viewer.slider("#latent input", 2)
    image = nibabel.load(fetched("#get-nifti"))
    assert image.get_fdata().sum() == pytest.approx(viewer.sums()[0], rel=1e-3)
    picture = np.asarray(Image.open(fetched("#get-png")).convert("RGB")).astype(int)
    assert colourful(picture) > 500
    viewer.page.click("#downloads summary")
    viewer.page.click("#get-python")
    code = viewer.page.inner_text("#python pre")
    viewer.page.keyboard.press("Escape")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    made = nibabel.load(tmp_path / "mean.nii.gz").get_fdata().sum()
    assert made == pytest.approx(viewer.sums()[0], rel=1e-3)


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
    assert colourful(screenshot(page.locator("#canvas + canvas"))) > 20  # plain slices stay
    page.close()


def test_the_first_map_waits_for_no_graphics(browser, server):
    """Plain slices stand where those of NiiVue will, and follow the controls."""
    page, held = browser.new_page(viewport=SIZE), []
    page.route("**/assets/niivue-*.js", lambda route: held.append(route))
    page.goto(server)
    page.wait_for_selector("body[data-painted=true]")
    preview = page.locator("#canvas + canvas")
    plain = screenshot(preview)
    assert colourful(plain) > 100
    page.locator("#latent input").first.fill("3")
    page.wait_for_function("() => Number(document.body.dataset.decodes) > 1")
    assert changed(plain, screenshot(preview)) > 100
    page.click("#reset")
    page.wait_for_function("() => Number(document.body.dataset.decodes) > 2")
    assert changed(plain, screenshot(preview)) == 0
    assert page.evaluate("document.body.dataset.ready") is None
    (route,) = held
    route.continue_()
    page.wait_for_selector("body[data-settled=true]", timeout=60_000)
    drawn = screenshot(page.locator("#canvas"))
    seen = plain.max(-1) > 60  # of the brain; NiiVue adds lines, letters and the 3-D view
    assert (np.abs(plain - drawn).max(-1)[seen] < 40).mean() > 0.95
    page.close()
