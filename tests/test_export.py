"""What `atlas export --onnx` writes computes what `Atlas` computes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from atlas.errors import AtlasError
from atlas.export import INPUTS, OUTPUTS, onnx_model
from atlas.inference import Atlas
from atlas.metadata import FieldTable
from tests.support import one_line_error, run_atlas

HALF = 2**-11  # of a value: what rounding to float16 may move it by


@pytest.fixture(scope="module", params=["released", "tiny"])
def atlas(request: Any) -> Atlas:
    """One with weights in float16 already, one in float32."""
    return Atlas.load(request.getfixturevalue("tiny_run") if request.param == "tiny" else None)


@pytest.fixture(scope="module")
def content(atlas: Atlas) -> bytes:
    return onnx_model(atlas)


def said(content: bytes) -> dict[str, Any]:
    (entry,) = onnx.load_from_string(content).metadata_props
    return json.loads(entry.value)


def run(content: bytes, codes: np.ndarray, metadata: list[dict[str, object]]) -> list[np.ndarray]:
    """Run the file with nothing but what it says of itself."""
    fields = FieldTable.from_snapshot(said(content)["fields"])
    encoded = [fields.encode(m) for m in metadata]
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    vectors, known = (np.stack(part) for part in zip(*encoded))
    return session.run(OUTPUTS, dict(zip(INPUTS, (codes, vectors, known))))


def drawn(atlas: Atlas, count: int) -> tuple[np.ndarray, list[dict[str, object]]]:
    """Random codes, each with a random part of the metadata that the model takes."""
    rng = np.random.default_rng(7)
    fields = [f for f in atlas.describe()["fields"] if f["available"]]
    metadata: list[dict[str, object]] = []
    for _ in range(count):
        given: dict[str, object] = {}
        for field in fields:
            if rng.random() < 0.5:
                continue
            if field["kind"] == "number":
                given[field["name"]] = float(rng.uniform(*field["trained"]))
            else:
                given[field["name"]] = str(rng.choice([c["value"] for c in field["categories"]]))
        metadata.append(given)
    codes = rng.standard_normal((count, atlas.latent)).astype(np.float32)
    return codes, metadata


@pytest.mark.parametrize("count", [1, 5])
def test_it_decodes_as_the_atlas_does(atlas: Atlas, content: bytes, count: int) -> None:
    codes, metadata = drawn(atlas, count)
    density, log_variance, _, _ = run(content, codes, metadata)
    shape, mask = said(content)["shape"], base64.b64decode(said(content)["mask"])
    cells = np.unpackbits(np.frombuffer(mask, np.uint8), count=int(np.prod(shape))).astype(bool)
    for k in range(count):
        maps = atlas.decode(codes[k], metadata[k])
        mean, sd = (image.get_fdata().ravel()[cells] for image in (maps.mean, maps.sd))
        assert np.abs(density[k] - mean).max() <= 2 * HALF * mean.max()
        assert np.abs(np.exp(0.5 * log_variance[k]) - sd).max() <= 2 * HALF * sd.max()


def test_it_imputes_as_the_atlas_does(atlas: Atlas, content: bytes) -> None:
    codes, metadata = drawn(atlas, 1)
    _, _, mean, log_variance = run(content, codes, metadata)
    fields = FieldTable.from_snapshot(said(content)["fields"])
    for name, imputed in atlas.decode(codes[0], metadata[0]).imputed.items():
        field, part = fields[name], fields.slices[name]
        value = field.decode(mean[0, part])
        if isinstance(value, dict):
            for category, weight in imputed["weights"].items():
                assert value[category] == pytest.approx(weight, abs=2e-3)
        else:
            assert value == pytest.approx(imputed["mean"], rel=2e-3)
            sd = float(np.exp(0.5 * log_variance[0, part][0])) * field.spread
            assert (sd * value if field.log else sd) == pytest.approx(imputed["sd"], rel=1e-2)


def test_released_weights_lose_nothing(content: bytes, atlas: Atlas) -> None:
    stored = {
        array.name.removesuffix("_half"): onnx.numpy_helper.to_array(array)
        for array in onnx.load_from_string(content).graph.initializer
    }
    name = "decoder.embed.0.weight"
    weights = atlas._model.state_dict()[name].numpy()
    (found,) = (array for key, array in stored.items() if key.endswith(name))
    assert found.dtype == np.float16
    assert np.abs(found - weights).max() <= HALF * np.abs(weights).max()
    if atlas.card.name == Atlas.load().card.name:
        assert np.array_equal(found, weights)


def test_the_model_still_decodes_after_an_export(atlas: Atlas, content: bytes) -> None:
    assert np.isfinite(atlas.decode_array()[0]).all()


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "out" / "model.onnx"
    done = run_atlas("export", "--onnx", path)
    assert (done.returncode, done.stdout.strip()) == (0, str(path))
    onnx.checker.check_model(path)


def test_nothing_to_write() -> None:
    assert "--onnx FILE" in one_line_error(run_atlas("export"), 2)


@pytest.mark.parametrize("module", ["onnx", "onnxscript"])
def test_the_extra_is_not_installed(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AtlasError, match=r"generative-brain-atlas\[export\]"):
        onnx_model(Atlas.load())
