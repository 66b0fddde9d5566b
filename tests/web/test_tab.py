"""The exported folder on a plain static host: what the tab answers is what the model answers."""

from __future__ import annotations

import base64
import functools
import gzip
import http.server
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import nibabel
import numpy as np
import pytest
from PIL import Image

from atlas import config, tab
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.explore import peaks, regions, strip, uncertainty
from atlas.explore.studies import Studies, bundled
from atlas.inference import Atlas
from atlas.training.run import train
from atlas.web.app import STATIC
from tests.support import one_line_error, run_atlas

from .test_browser import ARGUMENTS, SIZE, Viewer, browser  # noqa: F401

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HALF = 2**-11  # of the highest value: what float16 on the way from the server may move
META = {"task": "language", "year": 2008.0}
WIRE_MB = 8.0


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return Atlas.load()


@pytest.fixture(scope="module")
def studies() -> Studies:
    return bundled()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes, in place of an earlier export."""
    out = tmp_path_factory.mktemp("export") / "out"
    out.mkdir()
    (out / "atlas.json").write_text("{}")
    done = run_atlas("export", "--html", out)
    assert done.returncode == 0, done.stderr
    assert f"python -m http.server --directory {out}" in done.stdout
    return out


def test_model_and_runtime_on_the_wire(folder: Path) -> None:
    packed = [*folder.glob("*.onnx.lzma"), *folder.glob("assets/*.wasm.lzma")]
    assert len(packed) == 2  # its transposed convolutions are not for WebGPU
    assert sum(path.stat().st_size for path in packed) <= WIRE_MB * 1e6
    assert not [*folder.rglob("*.wasm")]


def serve(folder: Path) -> tuple[http.server.ThreadingHTTPServer, str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    host = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=host.serve_forever, daemon=True).start()
    return host, f"http://127.0.0.1:{host.server_port}"


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[str]:
    running, address = serve(folder)
    yield address
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="module")
def viewer(browser, host: str) -> Viewer:  # noqa: F811
    return Viewer(browser.new_page(viewport=SIZE), host)


def ask(viewer: Viewer, call: str, *arguments: object):
    """Ask the page's back end; volumes and blobs come as plain data."""
    return viewer.page.evaluate(
        """async ([call, given]) => {
          const base64 = (bytes) => {
            let letters = "";
            for (const byte of bytes) letters += String.fromCharCode(byte);
            return btoa(letters);
          };
          const plain = async (x) => {
            if (x instanceof Blob) return base64(new Uint8Array(await x.arrayBuffer()));
            if (x instanceof Float32Array) return base64(new Uint8Array(x.buffer));
            if (Array.isArray(x)) return Promise.all(x.map(plain));
            if (x === null || typeof x !== "object") return x;
            return Object.fromEntries(await Promise.all(Object.entries(x).map(async ([k, v]) => [k, await plain(v)])));
          };
          try { return await plain(await window.atlas.backend[call](...given)); }
          catch (error) { return { error: error.message }; }
        }""",  # noqa: E501
        [call, list(arguments)],
    )


def values(found: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(found), "<f4")


def volume(found: dict) -> np.ndarray:
    return values(found["values"]).reshape(found["shape"], order="F")


def point(z: np.ndarray | None = None, m: dict | None = None, sd: np.ndarray | None = None):
    listed = [None if x is None else [float(v) for v in x] for x in (z, sd)]
    return {"z": listed[0], "sd": listed[1], "metadata": m or {}}


def code(atlas: Atlas, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(atlas.latent).astype(np.float32)


def alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= HALF * np.abs(theirs).max())


@pytest.mark.parametrize("quantity", ["mean", "sd"])
@pytest.mark.parametrize("metadata", [{}, META, {"n_peaks": 60.0}])
def test_the_map_is_the_servers(viewer, atlas, quantity, metadata):
    for seed in range(2):
        z = code(atlas, seed)
        answer = ask(viewer, "decode", point(z, metadata), quantity)
        expected, imputed = atlas.decode_array(z, metadata, quantity)
        assert alike(volume(answer["maps"][quantity]), expected)
        assert answer["imputed"].keys() == imputed.keys()
        for name, value in imputed.items():
            for key, number in value.get("weights", value).items():
                found = answer["imputed"][name].get("weights", answer["imputed"][name])[key]
                assert found == pytest.approx(number, rel=1e-3, abs=2e-4)


def test_the_counterfactual_is_the_servers(viewer, atlas):
    z, changes = code(atlas), {"year": 2023.0, "task": None}
    answer = ask(viewer, "counterfactual", point(z, META), changes)
    expected = atlas.counterfactual(z, META, changes)
    for name, image in (
        ("factual", expected.factual.mean),
        ("counterfactual", expected.counterfactual.mean),
    ):
        assert alike(volume(answer["maps"][name]), image.get_fdata())
    scale = expected.factual.mean.get_fdata().max()
    difference = volume(answer["maps"]["difference"]) - expected.difference.get_fdata()
    assert np.abs(difference).max() <= HALF * scale
    assert answer["extrapolated"] == list(expected.counterfactual.extrapolated) == ["year"]
    assert "task" in answer["imputed"]


def test_what_is_imputed_or_extrapolated_is_of_either_side(viewer, atlas):
    """The year as the model takes it where it is unknown; one that is unusual where it is known."""
    imputed = ask(viewer, "counterfactual", point(code(atlas), {}), {"year": 2010.0})["imputed"]
    expected = atlas.decode_array(code(atlas), {})[1]["year"]["mean"]
    assert imputed["year"]["mean"] == pytest.approx(expected, rel=1e-4)
    beyond = ask(viewer, "counterfactual", point(None, {"year": 1991.0}), {"year": 2010.0})
    assert beyond["extrapolated"] == ["year"]


def test_identical_metadata_make_no_difference(viewer, atlas):
    answer = ask(viewer, "counterfactual", point(code(atlas), META), {"year": META["year"]})
    assert not volume(answer["maps"]["difference"]).any()


@pytest.mark.parametrize(("axis", "mm"), [(0, -33.0), (1, 10.5), (2, 40.0)])
def test_the_strip_is_the_servers(viewer, atlas, axis, mm):
    z, years = code(atlas), [1998.0, 2010.0, 2023.0]
    answer = ask(viewer, "strip", point(z, META), "year", years, axis, mm)
    expected = strip.strip(atlas, z, META, "year", years, axis, mm)
    assert answer["shape"] == list(expected.shape[1:])
    for found, slab in zip(answer["slices"], expected):
        assert alike(values(found).reshape(slab.shape, order="F"), slab)


def test_the_parts_of_the_uncertainty(viewer, atlas):
    """The draws differ, so their variances agree as estimates from 64 draws do."""
    z, sd = code(atlas), np.full(atlas.latent, 0.5, np.float32)
    answer = ask(viewer, "uncertainty", point(z, META, sd), 64)["maps"]
    expected = uncertainty.uncertainty(atlas, z, sd, META, 64)
    for part in uncertainty.PARTS:
        found, theirs = volume(answer[part])[atlas.space.mask], getattr(expected, part)
        assert np.corrcoef(found, theirs)[0, 1] > 0.9
        assert np.square(found).sum() == pytest.approx(np.square(theirs).sum(), rel=0.25)
    exact = ask(viewer, "uncertainty", point(z, META), 2)["maps"]
    assert not volume(exact["posterior"]).any()
    assert alike(volume(exact["decoder"]), atlas.decode_array(z, META, "sd")[0])


def test_the_same_question_has_the_same_answer(viewer, atlas):
    asked = point(code(atlas), {}), 4
    first = ask(viewer, "uncertainty", *asked)["maps"]["imputation"]["values"]
    ask(viewer, "uncertainty", point(), 2)  # what is kept is this one now
    assert first == ask(viewer, "uncertainty", *asked)["maps"]["imputation"]["values"]


def nearest(named: regions.Regions, mm: list[float]) -> set[str | None]:
    """Names of the nearest label within 4 mm; several where they are equally near."""
    voxels = np.argwhere(named.labels)
    distance = np.linalg.norm(nibabel.affines.apply_affine(named.affine, voxels) - mm, axis=1)
    if distance.min() > 4:
        return {None}
    return {named.names[int(named.labels[tuple(v)])] for v in voxels[distance == distance.min()]}


def test_the_table_of_peaks(viewer, atlas):
    z = code(atlas)
    named = regions.load()
    found = ask(viewer, "peaks", point(z, META), ["decoder"], 12)
    expected = peaks.peaks(atlas, z, None, META, ["decoder"], 2, most=12, regions=named)
    assert [p["mm"] for p in found] == [list(p.mm) for p in expected]
    assert all(p["region"] in nearest(named, p["mm"]) for p in found)
    for ours, theirs in zip(found, expected):
        for key in ("value", "low", "high"):
            assert ours[key] == pytest.approx(getattr(theirs, key), abs=2e-3 * theirs.high)


@pytest.mark.parametrize("quantity", ["mean", "difference"])
def test_the_nifti_file(viewer, atlas, tmp_path, quantity):
    z, changes = code(atlas), {"year": 2000.0}
    given = changes if quantity == "difference" else None
    raw = base64.b64decode(ask(viewer, "nifti", point(z, META), given, quantity))
    (tmp_path / "map.nii").write_bytes(gzip.decompress(raw))
    image = nibabel.load(tmp_path / "map.nii")
    expected = atlas.counterfactual(z, META, changes)
    theirs = expected.difference if quantity == "difference" else expected.factual.mean
    assert np.array_equal(image.affine, theirs.affine)
    for key in ("sform_code", "qform_code", "xyzt_units", "dim", "pixdim", "datatype"):
        assert np.array_equal(image.header[key], theirs.header[key]), key
    assert np.array_equal(image.get_qform(), theirs.get_qform())
    scale = expected.factual.mean.get_fdata().max()
    assert np.abs(image.get_fdata() - theirs.get_fdata()).max() <= HALF * scale


def query(**given: object) -> dict:
    return {"q": "", "category": None, "from": None, "to": None, "limit": 20, **given}


@pytest.mark.parametrize(
    ("given", "terms"),
    [
        ({}, {}),
        ({"q": "mémory WORKING"}, {"q": "mémory WORKING"}),
        ({"category": "working_memory", "q": "load"}, {"category": "working_memory", "q": "load"}),
        ({"from": 2005}, {"first": 2005}),  # these studies have no year
    ],
)
def test_the_search_is_the_servers(viewer, studies, given, terms):
    answer, expected = ask(viewer, "studies", query(**given)), studies.search(**terms)
    assert [row["id"] for row in answer["studies"]] == [row.id for row in expected[:20]]
    assert answer["total"] == len(expected)


def test_a_study_brings_its_code(viewer, atlas, studies):
    position = 5
    row, expected = studies.rows[position], studies.code(position, atlas)
    found = ask(viewer, "study", row.id)
    assert np.abs(np.array(found["code"]["mean"]) - expected.mean).max() < 1e-3
    assert np.abs(np.array(found["code"]["sd"]) - expected.sd).max() < 1e-3
    for name, value in studies.metadata(position, atlas).items():
        weights = {k: w for k, w in value.items() if w > 0} if isinstance(value, dict) else value
        assert found["metadata"][name] == pytest.approx(weights, abs=1e-4)
    assert "no study" in ask(viewer, "study", "none")["error"]


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({"year": 1800}, "year: 1800 is outside its range"),
        ({"task": "juggling"}, "unknown category juggling"),
        ({"age": 30}, "age: never observed in this model's training, cannot be set"),
        ({"shoe_size": 9}, "unknown metadata field shoe_size"),
    ],
)
def test_bad_metadata_are_refused_in_a_line(viewer, metadata, line):
    assert line in ask(viewer, "decode", point(None, metadata), "mean")["error"]


def test_what_the_tab_cannot_do_it_says(viewer):
    for what in ("encode", "effect"):
        assert "atlas serve" in viewer.page.evaluate("x => window.atlas.backend.whyNot(x)", what)
    assert viewer.page.evaluate("window.atlas.backend.whyNot('nifti')") is None
    assert "atlas serve" in ask(viewer, "encode", [[0, 0, 0]], {})["error"]


def test_the_page_shows_it(viewer, atlas):
    viewer.open("")
    viewer.slider("#latent input", 2)
    first = atlas.describe()["latent"]["directions"][0]
    z = np.zeros(atlas.latent)
    z[first["index"]] = 2 * first["sd"]
    expected = float(atlas.decode_array(z)[0].sum())
    assert viewer.sums()[0] == pytest.approx(expected, rel=1e-3)
    viewer.view("confidence")
    assert viewer.page.locator("#peaks tbody tr, #details tbody tr").count() > 0
    viewer.view("counterfactual")
    viewer.view("latent")


def test_it_asks_nobody_but_its_host_and_complains_of_nothing(viewer, host):
    urls = [urlparse(url) for url in viewer.requests]
    assert {u.netloc for u in urls if u.scheme not in ("data", "blob")} == {urlparse(host).netloc}
    assert viewer.complaints == []


def test_the_served_page_does_not_load_the_runtime():
    page = (STATIC / "index.html").read_text()
    loaded = re.findall(r'(?:src|href)="\./assets/([^"]*)"', page)
    assert loaded
    assert not [name for name in loaded if name.startswith(("tab-", "decoder-", "ort-"))]


@pytest.mark.parametrize("fault", ["missing", "cut off", "damaged"])
def test_a_model_that_does_not_come_is_said(browser, folder, tmp_path, fault):  # noqa: F811
    broken = shutil.copytree(folder, tmp_path / "broken")
    model = broken / "model.onnx.lzma"
    content = bytearray(model.read_bytes())
    if fault == "missing":
        model.unlink()
    else:
        content = (
            content[:100_000] if fault == "cut off" else content[:50_000] + content[50_001:] + b"0"
        )
        model.write_bytes(content)
    running, address = serve(broken)
    page = browser.new_page(viewport=SIZE)
    try:
        page.goto(address)
        page.wait_for_selector("#status.failed", timeout=60_000)
        line = page.inner_text("#status")
        assert "The model could not be loaded" in line
        assert "\n" not in line
    finally:
        page.close()
        running.shutdown()
        running.server_close()


def test_a_foreign_folder_is_left_alone(atlas, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AtlasError, match="no exported page"):
        tab.write(atlas, tmp_path, STATIC, None, "none")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_page_that_is_not_built(atlas, tmp_path):
    with pytest.raises(AtlasError, match="make frontend"):
        tab.write(atlas, tmp_path / "out", tmp_path, None, "none")


def test_a_file_in_its_place(tmp_path):
    (tmp_path / "out").write_text("")
    assert "no exported page" in one_line_error(run_atlas("export", "--html", tmp_path / "out"))


@pytest.mark.parametrize("view", ["latent", "counterfactual", "confidence"])
def test_one_file_opens_without_a_server(viewer, browser, tmp_path, view):  # noqa: F811
    viewer.open(f"#view={view}&to.year=2015&fade=1")
    viewer.page.click("#downloads summary")
    with viewer.page.expect_download() as waiting:
        viewer.page.click("#get-html")
    path = tmp_path / "map.html"
    waiting.value.save_as(path)
    page = browser.new_page(viewport=SIZE)
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if "GL Driver" not in m.text else None)
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready=true]", timeout=60_000)
    data = "name => document.body.dataset[name]"
    values = json.loads(page.evaluate(data, "values"))
    shown = [float(x) for x in viewer.page.inner_text("#value").split(" · ")]
    assert values == pytest.approx(shown, abs=0.02)
    assert page.title().startswith("atlas · ")
    assert "cvae_4mm" in page.inner_text("dl")
    canvases = page.locator(".slices canvas")
    assert canvases.count() == len(values)
    before = np.asarray(Image.open(io.BytesIO(canvases.first.screenshot())).convert("RGB"))
    assert np.ptp(before.astype(int), axis=-1).max() > 60  # the map's colours are there
    canvases.first.focus()
    page.keyboard.press("ArrowLeft")
    assert json.loads(page.evaluate(data, "mm")) != json.loads(viewer.data("mm"))
    assert {urlparse(url).scheme for url in requests} <= {"file", "data", "blob"}
    assert [url for url in requests if url.startswith("file:")] == [path.as_uri()]
    assert complaints == []
    page.close()


def test_text_in_one_file_stays_text(viewer, browser, tmp_path):  # noqa: F811
    """What a title holds must not become markup."""
    viewer.open("")
    viewer.page.evaluate("window.atlas.loaded.title = '</script><script>alert(1)</script>'")
    viewer.page.click("#downloads summary")
    with viewer.page.expect_download() as waiting:
        viewer.page.click("#get-html")
    waiting.value.save_as(tmp_path / "map.html")
    page = browser.new_page()
    alerts = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto((tmp_path / "map.html").as_uri())
    page.wait_for_selector("body[data-ready=true]", timeout=60_000)
    assert alerts == []
    assert "<script>" in page.inner_text("h1")
    page.close()


@pytest.fixture(scope="module")
def direct(bundled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Atlas, Path]:
    """A model without convolutions, and its folder."""
    out = tmp_path_factory.mktemp("direct")
    given = ["model.name=direct_vae", "model.direct=16", "model.rank=8", "train.epochs=1"]
    train(config.load("smoke", given), bundled, out / "run")
    found = Atlas.load(out / "run")
    sizes = tab.write(found, out / "page", STATIC, out / "run", "none here")
    assert sizes["runtime"] + sizes["model"] <= WIRE_MB * 1e6
    return found, out / "page"


# Chromium's own graphics card in software, which the page would pass over.
GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader"]
REAL = "Object.defineProperty(GPUAdapterInfo.prototype, 'isFallbackAdapter', { get: () => false })"


@pytest.mark.parametrize(("card", "device"), [("real", "webgpu"), ("broken", "wasm")])
def test_a_graphics_card_decodes_where_there_is_one(
    browser,  # noqa: F811
    direct,
    tmp_path,
    card,
    device,
):
    atlas, page_folder = direct
    if card == "broken":  # whatever fails there, WebAssembly remains
        page_folder = shutil.copytree(page_folder, tmp_path / "page")
        (runtime,) = page_folder.glob("assets/*.jspi-*.lzma")
        runtime.write_bytes(b"0" + runtime.read_bytes()[1:])
    running, address = serve(page_folder)
    chromium = browser.browser_type.launch(
        executable_path=shutil.which("chromium"),
        args=[*ARGUMENTS, *GPU, "--enable-features=Vulkan"],
    )
    page = chromium.new_page(viewport=SIZE)
    page.add_init_script(REAL)
    page.goto(address)
    page.wait_for_selector("body[data-painted=true]", timeout=120_000)
    assert page.evaluate("window.atlas.backend.local.device") == device
    z = code(atlas)
    found = page.evaluate(
        """async (point) => Array.from(
            (await window.atlas.backend.decode(point, "mean")).maps.mean.values)""",
        point(z),
    )
    mean = atlas.cells(*atlas.point(z, {})[:2])[0][0]
    assert alike(np.array(found), atlas.space.volume(mean).ravel(order="F"))
    chromium.close()
    running.shutdown()
    running.server_close()
