"""Atlas: codes in, maps out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from atlas import model_file, space
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.inference import Atlas, Code, peaks_of_image

PEAKS = np.array([[-40.0, 20, 30], [40, 24, 28], [0, 18, 48], [-30, -60, 44]])


@pytest.fixture(scope="module")
def atlas(tiny_run: Path) -> Atlas:
    return Atlas.load(tiny_run)


def test_a_code_decodes_to_images(atlas: Atlas) -> None:
    maps = atlas.decode(np.zeros(8), {"task": "working_memory", "n": 20})
    here = space.load(4)
    assert maps.mean.shape == maps.sd.shape == here.grid.shape
    assert np.allclose(maps.mean.affine, here.affine)
    inside = maps.mean.get_fdata()[here.mask]
    assert inside.min() >= 0 and inside.mean() == pytest.approx(1, rel=1e-4)
    assert not maps.mean.get_fdata()[~here.mask].any()
    assert (maps.sd.get_fdata()[here.mask] > 0).all()
    assert set(maps.imputed) == {"age", "n_peaks"}
    assert maps.extrapolated == ()


def test_a_batch_of_codes_is_one_4d_image(atlas: Atlas) -> None:
    codes = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    together = atlas.decode(codes).mean.get_fdata()
    assert together.shape == (*space.load(4).grid.shape, 3)
    alone = atlas.decode(codes[1]).mean.get_fdata()
    assert np.allclose(together[..., 1], alone, rtol=1e-4)
    assert np.allclose(atlas.decode_array(codes[1])[0], alone, rtol=1e-5)


def test_peaks_images_and_studysets_encode(atlas: Atlas, tmp_path: Path) -> None:
    code = atlas.encode(PEAKS, {"n": 20})
    assert code.mean.shape == code.sd.shape == (8,) and (code.sd > 0).all()
    image = atlas.decode(code).mean
    path = tmp_path / "map.nii.gz"
    image.to_filename(path)
    from_image = atlas.encode(image)
    assert np.array_equal(from_image.mean, atlas.encode(str(path)).mean)
    assert np.array_equal(from_image.mean, atlas.encode(peaks_of_image(image)).mean)


def test_a_nimare_studyset_encodes_as_its_studies(atlas: Atlas, bundled: Dataset) -> None:
    from nimare.nimads import Studyset
    from nimare.utils import get_resource_path

    folder = Path(get_resource_path()) / "nback_vs_flanker_studyset_2026-07"
    code = atlas.encode(Studyset.from_parquet(str(folder)))
    raw = atlas.encode(Studyset.from_parquet(str(folder), target=None))
    assert code.mean.shape == (320, 8)
    assert np.allclose(code.mean, raw.mean, atol=1e-3)  # converted once, whoever does it


def test_local_maxima_are_found_where_they_are() -> None:
    from atlas.data.batches import splat_studies

    here = space.load(4)
    cells = here.centres_mm[[3000, 14000, 22000]]
    volume = splat_studies([cells.astype(np.float32)], np.array([9.0]), here.grid)
    found = peaks_of_image(here.image(volume[0, 0].numpy()), threshold=0.9)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, cells.tolist()))


def test_traversals_and_interpolations(atlas: Atlas) -> None:
    a, b = atlas.encode(PEAKS), atlas.encode(-PEAKS)
    line = atlas.interpolate(a, b, steps=5).mean.get_fdata()
    assert line.shape[3] == 5
    assert np.allclose(line[..., 0], atlas.decode(a).mean.get_fdata(), rtol=1e-4)
    assert np.allclose(line[..., -1], atlas.decode(b).mean.get_fdata(), rtol=1e-4)
    walk = atlas.traverse(2, [-2.0, 0.0, 2.0], z=a).mean.get_fdata()
    moved = a.mean.copy()
    moved[2] = 2.0
    assert np.allclose(walk[..., 2], atlas.decode(moved).mean.get_fdata(), rtol=1e-4)


def test_a_counterfactual_moves_only_what_it_names(atlas: Atlas) -> None:
    code, m = atlas.encode(PEAKS), {"task": "working_memory"}
    same = atlas.counterfactual(code, m, {"task": "working_memory"})
    assert not same.difference.get_fdata().any()
    moved = atlas.counterfactual(code, m, {"task": "attention_control"})
    left, right = moved.factual.mean.get_fdata(), moved.counterfactual.mean.get_fdata()
    assert np.allclose(moved.difference.get_fdata(), right - left, atol=1e-5)
    assert np.array_equal(left, same.factual.mean.get_fdata())
    assert moved.factual.imputed == moved.counterfactual.imputed
    assert "n" not in atlas.counterfactual(code, m, {"n": 50}).counterfactual.imputed


def test_values_beyond_the_training_data_are_named(atlas: Atlas) -> None:
    assert atlas.decode(None, {"n": 9000, "age": 30}).extrapolated == ("n",)


@pytest.mark.parametrize(
    ("z", "m", "message"),
    [
        (np.zeros(7), None, "codes have 8 numbers"),
        (np.full(8, np.nan), None, "not finite"),
        (None, {"year": 2010}, "year: never observed in this model's training"),
        (None, {"fwhm": 12}, "fwhm: always 10 in this model's training, cannot be set"),
        (None, {"n": 0}, "n: 0 is outside its range 1 to 10000 participants"),
        (None, {"task": "chess"}, "unknown category 'chess'"),
        (None, {"colour": 1}, "unknown metadata field 'colour'"),
    ],
)
def test_a_wrong_question_is_one_line(atlas: Atlas, z, m, message: str) -> None:
    with pytest.raises(AtlasError, match=message):
        atlas.decode(z, m)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 3)), r"expected an array \(P, 3\)"),
        ([[0, 0]], r"expected an array \(P, 3\)"),
        ([[0, 0, 0], [0, np.nan, 0]], "row 2 is not finite"),
        ([[0, 0, 0], [0, 0]], "peaks: expected numbers in rows of equal length"),
        ([[1000, 0, 0]], "no peak lies in the MNI volume"),
        ("nowhere.nii.gz", "nowhere.nii.gz: cannot be read as an image"),
        (nib.Nifti1Image(np.zeros((5, 5, 5), np.float32), np.eye(4)), "no positive voxel"),
    ],
)
def test_a_wrong_source_is_one_line(atlas: Atlas, source, message: str) -> None:
    with pytest.raises(AtlasError, match=message):
        atlas.encode(source)


def test_the_description_is_what_a_page_needs(atlas: Atlas) -> None:
    said = json.loads(json.dumps(atlas.describe()))
    fields = {field["name"]: field for field in said["fields"]}
    assert fields["year"]["available"] is False and "never observed" in fields["year"]["reason"]
    assert fields["n"]["scale"] == "log" and fields["n"]["trained"][0] >= 1
    assert {c["value"] for c in fields["task"]["categories"]} >= {"language", "memory"}
    activity = [d["activity"] for d in said["latent"]["directions"]]
    assert len(activity) == 8 and activity == sorted(activity, reverse=True)


# ---------------------------------------------------------------------- damaged files


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> Path:
    for name in (model_file.WEIGHTS, model_file.CARD):
        shutil.copy(tiny_run / name, tmp_path / name)
    return tmp_path


def test_truncated_weights_are_one_line(copy: Path) -> None:
    path = copy / model_file.WEIGHTS
    whole = path.read_bytes()
    for size in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(AtlasError, match=r"model.safetensors: damaged or truncated"):
            Atlas.load(copy)


def test_a_damaged_card_is_one_line(copy: Path) -> None:
    path = copy / model_file.CARD
    whole = path.read_text()
    for text in ("", whole[:-9], whole.replace('"latent": 8', '"latent": "many"'), "{}"):
        path.write_text(text)
        with pytest.raises(AtlasError, match=r"model.json: "):
            Atlas.load(copy)


def test_weights_of_another_architecture_are_refused(copy: Path) -> None:
    path = copy / model_file.CARD
    path.write_text(path.read_text().replace('"growth": 8', '"growth": 16'))
    with pytest.raises(AtlasError, match=r"describes another model .*model.growth was 8, is 16$"):
        Atlas.load(copy)
    save_file(load_file(copy / model_file.WEIGHTS), copy / model_file.WEIGHTS)  # without a header
    with pytest.raises(AtlasError, match="arrays do not fit model.json, first "):
        Atlas.load(copy)


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match="holds no model.json"):
        Atlas.load(tmp_path)


def test_a_code_is_also_a_z(atlas: Atlas) -> None:
    code = atlas.encode(PEAKS)
    assert isinstance(code, Code)
    assert np.array_equal(
        atlas.decode(code).mean.get_fdata(), atlas.decode(code.mean).mean.get_fdata()
    )
