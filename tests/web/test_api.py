"""What the page gets from the server, on a real trained model."""

from __future__ import annotations

import gzip
import json
import re
import time
from importlib import resources

import httpx
import numpy as np
import pytest
from nibabel import Nifti1Image

from atlas import space
from atlas.errors import AtlasError
from atlas.explore import regions
from atlas.web.app import create_app
from atlas.web.maps import pack
from tests.support import ROOT


def unpack(response):
    shape = json.loads(response.headers["x-atlas-shape"])
    assert response.headers["x-atlas-dtype"] == "<f2"
    raw = np.frombuffer(response.content, "<f2").astype(np.float32)
    names, scales = (json.loads(response.headers[f"x-atlas-{x}"]) for x in ("names", "scales"))
    assert raw.size == len(names) * np.prod(shape)
    parts = raw.reshape(len(names), -1)
    return {n: p.reshape(shape, order="F") * s for n, p, s in zip(names, parts, scales)}


def first_number(atlas):
    return next(f for f in atlas.describe()["fields"] if f["kind"] == "number" and f["available"])


def test_model_is_the_description(client, served_atlas):
    response = client.get("/api/model")
    assert response.status_code == 200
    answered, described = response.json(), json.loads(json.dumps(served_atlas.describe()))
    for name, value in described.items():
        if name != "latent":
            assert answered[name] == value
    for ours, theirs in zip(
        answered["latent"]["directions"], described["latent"]["directions"], strict=True
    ):
        assert ours.items() >= theirs.items()


@pytest.mark.parametrize(
    "path",
    [
        "/api/model",
        "/api/template.nii.gz",
        "/api/regions",
        "/api/regions.bin",
        "/api/studies?q=memory",
    ],
)
def test_etag_spares_the_second_copy(client, path):
    first = client.get(path)
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(path, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize("quantity", ["mean", "sd"])
def test_decode_is_the_models_map(client, served_atlas, quantity):
    z = np.linspace(-1, 1, served_atlas.latent).tolist()
    field = first_number(served_atlas)
    metadata = {field["name"]: field["trained"][0]}
    body = {"z": z, "metadata": metadata, "quantity": quantity}
    response = client.post("/api/decode", json=body)
    assert response.status_code == 200
    expected, imputed = served_atlas.decode_array(z, metadata, quantity)
    np.testing.assert_allclose(
        unpack(response)[quantity], expected, atol=1e-3 * np.abs(expected).max()
    )
    assert json.loads(response.headers["x-atlas-imputed"]) == json.loads(json.dumps(imputed))
    assert json.loads(response.headers["x-atlas-extrapolated"]) == []
    assert field["name"] not in imputed
    assert (
        json.loads(response.headers["x-atlas-affine"]) == served_atlas.describe()["grid"]["affine"]
    )


def test_everything_left_out_is_the_centre(client, served_atlas):
    bare = client.post("/api/decode", json={})
    field = first_number(served_atlas)["name"]
    spelt_out = client.post(
        "/api/decode", json={"z": None, "metadata": {field: None}, "quantity": "mean"}
    )
    assert bare.status_code == 200
    assert bare.content == spelt_out.content


def test_axes_arrive_in_their_order():
    volume = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    raw, scale = pack(volume)
    values = np.frombuffer(raw, "<f2") * scale
    i, j, k = 1, 2, 3
    assert values[i + 2 * (j + 3 * k)] == pytest.approx(volume[i, j, k], rel=1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 1e6, 3e38])
def test_no_value_overflows_float16(size):
    volume = np.array([[[0, 0.5, -1]]], np.float32) * np.float32(size)
    raw, scale = pack(volume)
    values = np.frombuffer(raw, "<f2").astype(np.float64).reshape(volume.shape, order="F") * scale
    np.testing.assert_allclose(values, volume, rtol=1e-3)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ('{"z": [0]}', "z: this model's codes have"),
        ('{"z": ["a"]}', "z.0: Input should be a valid number"),
        ('{"z": [NaN]}', "z.0: Input should be"),
        ('{"z": [1e400]}', "z.0: Input should be"),
        ('{"z": [-1e30]}', "z.0: Input should be"),
        ('{"z": [true]}', "z.0: Input should be a valid number"),
        ('{"z": [' + "0, " * 5000 + "0]}", "z: List should have at most"),
        ('{"zz": [0]}', "zz: Extra inputs are not permitted"),
        ('{"quantity": "median"}', "quantity: Input should be 'mean' or 'sd'"),
        ('{"metadata": {"shoe_size": 43}}', "unknown metadata field 'shoe_size'"),
        ('{"metadata": {"n": -5}}', "n: -5 is outside its range"),
        ('{"metadata": {"n": NaN}}', "metadata.n"),
        ('{"metadata": {"n": "many"}}', "n: expected a number"),
        ('{"metadata": {"n": true}}', "metadata.n"),
        ('{"metadata": {"task": "juggling"}}', "task: unknown category 'juggling'"),
        ('{"metadata": {"task": {"juggling": 1}}}', "task: unknown category 'juggling'"),
        ('{"metadata": {"task": {"language": -1}}}', "metadata.task"),
        ('{"metadata": {"task": {"language": 0}}}', "task: the weights sum to 0"),
        ('{"metadata": {"n": {"language": 1}}}', "n: expected a number"),
        ('{"metadata": {"\\ud800": 1}}', "metadata."),
        ('{"metadata": []}', "metadata: Input should be a valid dictionary"),
        ("[]", "Input should be"),
        ("{", "JSON decode error"),
        ("", "Field required"),
    ],
)
def test_bad_requests_get_one_line(client, body, line):
    response = client.post(
        "/api/decode", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    detail = response.json()["detail"]
    assert line in detail
    assert "\n" not in detail


@pytest.mark.parametrize(
    "body", [b"[" * 30000, b'{"z": [' + b"1" * 6000 + b"]}", b"\xff\xfe", b"\x00" * 100]
)
def test_bytes_that_are_no_request_are_refused(client, body):
    response = client.post(
        "/api/decode", content=body, headers={"Content-Type": "application/json"}
    )
    assert 400 <= response.status_code < 500
    assert isinstance(response.json()["detail"], str)


def test_a_field_that_training_never_saw_is_refused(client, served_atlas):
    field = next(f for f in served_atlas.describe()["fields"] if not f["available"])
    value = field["categories"][0]["value"] if field["kind"] == "category" else field["low"]
    response = client.post("/api/decode", json={"metadata": {field["name"]: value}})
    assert response.status_code == 422
    assert "never observed" in response.json()["detail"]


def test_a_map_that_is_not_finite_is_refused(client, served_atlas, monkeypatch):
    broken = np.full((2, 2, 2), np.nan, np.float32)
    monkeypatch.setattr(type(served_atlas.space), "volume", lambda *_: broken)
    response = client.post("/api/decode", json={"z": [0.125] * served_atlas.latent})
    assert response.status_code == 422
    assert "not finite" in response.json()["detail"]


def test_template_lies_on_the_two_millimetre_grid(client):
    packed = client.get("/api/template.nii.gz").content
    image = Nifti1Image.from_bytes(gzip.decompress(packed))
    two = space.load(2)
    assert image.shape == two.mask.shape
    np.testing.assert_array_equal(image.affine, two.affine)
    data = np.asarray(image.dataobj)
    assert data.dtype == np.uint8
    assert (data[two.mask] > 0).mean() > 0.95  # the same brain in the same place
    assert (data[~two.mask] > 100).mean() < 0.05
    assert packed[4:8] == b"\0\0\0\0"  # no time of day in the gzip header
    assert len(packed) < 700_000


def test_template_carries_its_notice():
    notice = resources.files("atlas").joinpath("resources/mni152_t1_2mm.LICENSE.txt").read_text()
    assert "McGill University" in notice
    assert "above copyright notice appear in all copies" in notice.replace("\n", " ")


# ------------------------------------------------------------------ two sets of metadata


def number_field(atlas):
    """Name of a field, and two values within what training saw."""
    field = first_number(atlas)
    return field["name"], *field["trained"]


def test_counterfactual_is_the_models(client, served_atlas):
    name, low, high = number_field(served_atlas)
    z = np.linspace(-1, 1, served_atlas.latent).tolist()
    body = {"z": z, "metadata": {name: low}, "changes": {name: high}}
    response = client.post("/api/counterfactual", json=body)
    found = unpack(response)
    assert list(found) == ["factual", "counterfactual", "difference"]
    expected = served_atlas.counterfactual(z, {name: low}, {name: high})
    for part, image in zip(
        found.values(),
        (expected.factual.mean, expected.counterfactual.mean, expected.difference),
    ):
        values = image.get_fdata()
        np.testing.assert_allclose(part, values, atol=1e-3 * np.abs(values).max())
    assert found["difference"].any()
    beyond = client.post("/api/counterfactual", json={**body, "changes": {"n": 10000}})
    assert json.loads(beyond.headers["x-atlas-extrapolated"]) == ["n"]


def test_identical_metadata_differ_by_nothing(client, served_atlas):
    name, low, _ = number_field(served_atlas)
    for changes in ({name: low}, {}):
        body = {"metadata": {name: low}, "changes": changes}
        assert not unpack(client.post("/api/counterfactual", json=body))["difference"].any()


def test_a_change_of_null_gives_the_field_back(client, served_atlas):
    name, _, high = number_field(served_atlas)
    body = {"metadata": {name: high}, "changes": {name: None}}
    response = client.post("/api/counterfactual", json=body)
    found, unknown = unpack(response), unpack(client.post("/api/decode", json={}))["mean"]
    assert name in json.loads(response.headers["x-atlas-imputed"])
    np.testing.assert_allclose(found["counterfactual"], unknown, atol=0.02 * unknown.max())
    assert found["difference"].any()


def test_strip_is_a_slice_a_value(client, served_atlas):
    name, low, high = number_field(served_atlas)
    values = [low, (low + high) / 2, high]
    body = {"z": None, "field": name, "values": values, "axis": 2, "mm": 30}
    response = client.post("/api/strip", json=body)
    raw = np.frombuffer(response.content, "<f2").astype(np.float32)
    shape = json.loads(response.headers["x-atlas-shape"])
    assert shape == [46, 55]
    assert json.loads(response.headers["x-atlas-names"]) == [f"{v:g}" for v in values]
    slices = raw.reshape(3, -1)
    for one, scale, value in zip(slices, json.loads(response.headers["x-atlas-scales"]), values):
        changed = {"metadata": {}, "changes": {name: value}}
        whole = unpack(client.post("/api/counterfactual", json=changed))["counterfactual"]
        place = (30 - served_atlas.space.affine[2, 3]) / 4
        k = int(place)
        expected = whole[..., k] + (place - k) * (whole[..., k + 1] - whole[..., k])
        ours = one.reshape(shape, order="F") * scale
        np.testing.assert_allclose(ours, expected, atol=3e-3 * expected.max())
    assert client.post("/api/strip", json={**body, "mm": 400}).status_code == 422
    assert client.post("/api/strip", json={**body, "values": []}).status_code == 422
    assert client.post("/api/strip", json={**body, "values": [20] * 41}).status_code == 422
    assert client.post("/api/strip", json={**body, "field": "shoe_size"}).status_code == 422


def test_effect_stands_beside_its_null(client, served_atlas):
    name, low, high = number_field(served_atlas)
    body = {"metadata": {name: low}, "changes": {name: high}}
    found = client.post("/api/effect", json=body).json()
    assert found["field"] == name
    maps = unpack(client.post("/api/counterfactual", json=body))
    mask = served_atlas.space.mask
    rms = np.sqrt(np.square(maps["difference"][mask]).mean())
    assert found["rms"] == pytest.approx(rms, rel=1e-2)
    assert found["share"] == pytest.approx(
        rms / np.sqrt(np.square(maps["factual"][mask]).mean()), rel=1e-2
    )
    assert found["null"][0] <= found["null"][1] <= found["null"][2]
    assert 0 < found["p"] <= 1
    assert found["studies"] >= 10
    assert "held-out studies" in found["sentence"]
    unknown = client.post("/api/effect", json={"changes": {"shoe_size": None}})
    assert "unknown metadata field 'shoe_size'" in unknown.json()["detail"]
    two = client.post("/api/effect", json={"changes": {"n": 20, "age": 30}})
    assert two.status_code == 422
    assert "one field at a time" in two.json()["detail"]


# ------------------------------------------------------------------ uncertainty, peaks, regions


def test_uncertainty_comes_in_parts(client, served_atlas):
    body = {"z": None, "sd": [0.5] * served_atlas.latent, "metadata": {}, "samples": 8, "seed": 3}
    response = client.post("/api/uncertainty", json=body)
    found = unpack(response)
    assert list(found) == ["mean", "decoder", "posterior", "imputation"]
    assert all(part.min() >= 0 for part in found.values())
    assert found["posterior"].any()
    mean = unpack(client.post("/api/decode", json={}))["mean"]
    np.testing.assert_allclose(found["mean"], mean, atol=2e-3 * mean.max())
    exact = unpack(client.post("/api/uncertainty", json={**body, "sd": None}))
    assert not exact["posterior"].any()
    assert client.post("/api/uncertainty", json={**body, "samples": 65}).status_code == 422
    assert client.post("/api/uncertainty", json={**body, "sd": [1.0]}).status_code == 422


def test_peaks_have_intervals_and_regions(client, served_atlas):
    body = {"sd": [0.5] * served_atlas.latent, "samples": 4, "most": 5}
    found = client.post("/api/peaks", json=body).json()["peaks"]
    assert 1 <= len(found) <= 5
    assert all(row["low"] <= row["value"] <= row["high"] for row in found)
    values = [row["value"] for row in found]
    assert values == sorted(values, reverse=True)
    assert any(row["region"] for row in found)
    exact = client.post("/api/peaks", json={**body, "parts": []}).json()["peaks"]
    assert all(row["low"] == row["high"] for row in exact)


def test_regions_are_a_volume_and_names(client):
    names = client.get("/api/regions").json()
    response = client.get("/api/regions.bin")
    labels = np.frombuffer(response.content, np.uint8)
    shape, affine = (json.loads(response.headers[f"x-atlas-{x}"]) for x in ("shape", "affine"))
    labels = labels.reshape(shape, order="F")
    assert set(names["names"]) == {str(k) for k in np.unique(labels) if k}
    i, j, k = np.rint(np.linalg.solve(affine, [-38, -22, 56, 1])[:3]).astype(int)
    assert names["names"][str(labels[i, j, k])] == "Precentral Gyrus"
    assert "non-commercial" in names["licence"]


def test_without_an_atlas_of_regions_the_reason_is_said(client, monkeypatch):
    def refuse():
        raise AtlasError("install it")

    monkeypatch.setattr(regions, "load", refuse)
    for path in ("/api/regions", "/api/regions.bin"):
        response = client.get(path)
        assert (response.status_code, response.json()["detail"]) == (404, "install it")
    said = client.get("/api/model").json()["regions"]
    assert said == {"available": False, "reason": "install it"}


# ------------------------------------------------------------------ studies


def test_studies_are_searched(client, bundled):
    everything = client.get("/api/studies?limit=100").json()
    assert everything["total"] == len(bundled)
    assert len(everything["studies"]) == 100
    word = bundled.titles[5].split()[0]
    found = client.get("/api/studies", params={"q": f"{word} {bundled.ids[5]}"}).json()
    assert [row["id"] for row in found["studies"]] == [bundled.ids[5]]
    category = client.get("/api/studies", params={"category": "working_memory"}).json()
    assert 0 < category["total"] < len(bundled)
    assert {row["category"] for row in category["studies"]} == {"working_memory"}
    assert client.get("/api/studies?from=1998&to=2001").json()["total"] == 0  # none says its year
    assert client.get("/api/studies?limit=0").status_code == 422
    info = client.get("/api/model").json()["studies"]
    assert info == {"count": len(bundled), "source": bundled.info["source"]["name"], "reason": None}


def test_one_study_comes_with_its_code(client, served_atlas, bundled):
    found = client.get(f"/api/studies/{bundled.ids[7]}").json()
    metadata = served_atlas.usable(bundled.metadata[7])
    code = served_atlas.encode(bundled.peaks(7), metadata)
    np.testing.assert_allclose(found["code"]["mean"], code.mean, rtol=1e-5)
    np.testing.assert_allclose(found["code"]["sd"], code.sd, rtol=1e-5)
    assert found["peaks"] == len(bundled.peaks(7))
    assert found["metadata"] == json.loads(json.dumps(metadata))
    # What it says of the study can be sent back.
    body = {"z": found["code"]["mean"], "metadata": found["metadata"]}
    assert client.post("/api/decode", json=body).status_code == 200
    missing = client.get("/api/studies/../../etc/passwd")
    assert missing.status_code == 404
    assert client.get("/api/studies/no%2Fsuch").status_code == 404


def test_without_studies_the_reason_is_said(client_of, served_atlas, served_run):
    bare = client_of(create_app(served_atlas, run=served_run))
    said = bare.get("/api/model").json()["studies"]
    assert (said["count"], said["source"]) == (0, None)
    assert "--data" in said["reason"]
    assert bare.get("/api/studies").json() == {"total": 0, "studies": []}
    assert bare.get("/api/studies/1").status_code == 404
    effect = bare.post("/api/effect", json={"changes": {"n": 50}}).json()
    assert effect["statistic"] is None
    assert "no studies" in effect["sentence"]


def test_topics_appear_once_they_are_known(client):
    client.get("/api/model")
    for _ in range(600):
        directions = client.get("/api/model").json()["latent"]["directions"]
        if any(direction["topics"] for direction in directions):
            break
        time.sleep(0.05)
    labels = {topic["label"] for direction in directions for topic in direction["topics"]}
    assert labels & {"working memory", "attention control"}


def test_peaks_are_encoded(client, served_atlas):
    peaks = [[-38, 20, 6], [40, 20.5, 6]]
    name, low, _ = number_field(served_atlas)
    body = {"peaks": peaks, "metadata": {name: low}}
    found = client.post("/api/encode", json=body).json()
    expected = served_atlas.encode(peaks, {name: low})
    np.testing.assert_allclose(found["code"]["mean"], expected.mean, rtol=1e-5)
    assert found["peaks"] == 2


@pytest.mark.parametrize(
    ("peaks", "line"),
    [
        ([], "peaks: List should have at least 1"),
        ([[1, 2]], "peaks.0"),
        ([[1, 2, "3"]], "peaks.0.2"),
        ([[1, 2, 1e9]], "peaks.0.2"),
        ([[900, 900, 900]], "no peak lies in the MNI volume"),
        ([[0, 0, 0]] * 5001, "peaks: List should have at most 5000"),
    ],
)
def test_peaks_that_are_none_are_refused(client, peaks, line):
    response = client.post("/api/encode", json={"peaks": peaks})
    assert response.status_code == 422
    assert line in response.json()["detail"]


def test_a_file_is_encoded(client, served_atlas):
    raw = b"study\tx\ty\tz\na\t-38\t20\t6\nb\t40\t20\t6\n"
    found = client.post("/api/encode-file?name=x.tsv", content=raw).json()
    assert [(e["label"], e["peaks"]) for e in found["entries"]] == [("a", 1), ("b", 1)]
    expected = served_atlas.encode([[-38, 20, 6]]).mean
    np.testing.assert_allclose(found["entries"][0]["code"]["mean"], expected, rtol=1e-5)
    pasted = client.post("/api/encode-file", content=b"-38 20 6").json()
    assert pasted["entries"][0]["code"] == found["entries"][0]["code"]


def test_a_map_goes_out_and_comes_back(client, served_atlas):
    z = np.linspace(-1, 1, served_atlas.latent).tolist()
    response = client.post("/api/nifti", json={"z": z})
    assert response.headers["content-type"] == "application/gzip"
    assert response.headers["content-disposition"].endswith('desc-mean_statmap.nii.gz"')
    image = Nifti1Image.from_bytes(gzip.decompress(response.content))
    expected = served_atlas.decode_array(z, {})[0]
    np.testing.assert_allclose(image.get_fdata(), expected, rtol=1e-5, atol=1e-6)
    back = client.post("/api/encode-file?name=map.nii.gz", content=response.content)
    assert back.json()["entries"][0]["label"] == "statistic map"
    name, low, high = number_field(served_atlas)
    body = {"metadata": {name: low}, "changes": {name: high}, "quantity": "difference"}
    difference = client.post("/api/nifti", json=body)
    image = Nifti1Image.from_bytes(gzip.decompress(difference.content))
    expected = served_atlas.counterfactual(None, {name: low}, {name: high}).difference
    np.testing.assert_allclose(image.get_fdata(), expected.get_fdata(), atol=1e-5)


# ------------------------------------------------------------------ the whole


def test_the_same_question_is_answered_from_memory(client, served_atlas, monkeypatch):
    body = {"z": [0.25] * served_atlas.latent}
    first = client.post("/api/decode", json=body)
    monkeypatch.setattr(type(served_atlas), "cells", None)
    again = client.post("/api/decode", json={**body, "metadata": {}})
    assert again.content == first.content
    assert again.headers["x-atlas-scales"] == first.headers["x-atlas-scales"]


def test_answers_are_compressed_for_other_machines_alone(client_of, served_atlas, served_run):
    app = create_app(served_atlas, run=served_run)
    away, here = client_of(app), client_of(app, client=("127.0.0.1", 1))
    for method, path in (("get", "model"), ("get", "regions.bin"), ("post", "decode")):
        given = {"json": {}} if method == "post" else {}
        packed, plain = (getattr(one, method)(f"/api/{path}", **given) for one in (away, here))
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.content == plain.content
        assert int(packed.headers["content-length"]) < 0.6 * len(plain.content)
    assert "content-encoding" not in away.get("/api/template.nii.gz").headers
    assert "content-encoding" not in away.post("/api/nifti", json={}).headers


def test_the_documented_program_runs(client, monkeypatch):
    page = (ROOT / "docs" / "viewer.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    base = "http://127.0.0.1:8000"
    monkeypatch.setattr(
        httpx, "post", lambda url, **body: client.post(url.removeprefix(base), **body)
    )
    said = {}
    exec(program, said)
    expected = unpack(client.post("/api/decode", json={"metadata": {"task": "language"}}))
    np.testing.assert_array_equal(said["maps"]["mean"], expected["mean"])


def test_api_describes_itself(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        f"/api/{name}"
        for name in (
            "model", "template.nii.gz", "regions", "regions.bin", "studies", "studies/{study_id}",
            "encode", "encode-file", "decode", "counterfactual", "strip", "effect", "uncertainty",
            "peaks", "nifti",
        )
    }  # fmt: skip
