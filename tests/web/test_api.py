"""What the page gets from the server, on a real trained model."""

from __future__ import annotations

import gzip
import json
from importlib import resources

import numpy as np
import pytest
from nibabel import Nifti1Image

from atlas import space
from atlas.web.maps import pack


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


@pytest.mark.parametrize("path", ["/api/model", "/api/template.nii.gz"])
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
        ('{"metadata": {"task": {"language": 1}}}', "metadata.task"),
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
