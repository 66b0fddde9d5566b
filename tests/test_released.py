"""The model that ships with the package, without a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from atlas import model_file
from atlas.errors import AtlasError
from atlas.inference import Atlas
from tests.support import one_line_error, run_atlas

BROCA_MM, CALCARINE_MM = (-46, 20, 16), (4, -84, 2)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return Atlas.load()


def at(image: nibabel.Nifti1Image, place_mm: tuple[int, int, int]) -> float:
    voxel = np.linalg.inv(image.affine) @ [*place_mm, 1]
    return float(image.get_fdata()[tuple(np.round(voxel[:3]).astype(int))])


def test_it_is_small_and_says_what_it_is() -> None:
    folder = model_file.released()
    files = [path for path in folder.iterdir() if path.is_file()]
    said = {"README.md", "test_results.json", "validation.json", "directions.json"}
    assert {path.name for path in files} == {*said, model_file.CARD, model_file.WEIGHTS}
    assert sum(path.stat().st_size for path in files) < 20e6
    card = (folder / "README.md").read_text()
    for word in ("Neurosynth", "ODbL", "atlas train cvae_4mm", "CPU", "validation"):
        assert word in card, word


def test_it_says_what_was_measured_of_it() -> None:
    folder = model_file.released()
    found = json.loads((folder / "test_results.json").read_text())
    card = model_file.read(folder)[1]
    assert found["split"] == "test" and found["studies"] == 1966
    assert found["dataset"] == card.dataset
    assert found["latent"]["active_units"] == found["latent"]["size"] == 64
    shares = [share[0] for share in found["uncertainty_coverage"].values()]
    assert shares == sorted(shares) and 0 < shares[0] <= shares[-1] <= 1
    assert all(criterion["pass"] for criterion in found["criteria"])
    assert found["year"]["without_reversal"]["chance"] == found["year"]["chance"]
    checks = json.loads((folder / "validation.json").read_text())["checks"]
    assert checks and all(check["pass"] for check in checks)


def test_it_knows_language_from_vision(atlas: Atlas) -> None:
    language, vision = (atlas.decode(None, {"task": t}).mean for t in ("language", "visual"))
    assert at(language, BROCA_MM) > 1.5 * at(vision, BROCA_MM)
    assert at(vision, CALCARINE_MM) > 1.5 * at(language, CALCARINE_MM)


def test_a_code_keeps_what_it_was_given(atlas: Atlas) -> None:
    near, far = (atlas.decode(atlas.encode([p] * 5)).mean for p in (BROCA_MM, CALCARINE_MM))
    assert at(near, BROCA_MM) > 2 * at(far, BROCA_MM)


def test_years_outside_the_training_are_said(atlas: Atlas) -> None:
    assert atlas.decode(None, {"year": 2023}).extrapolated == ("year",)
    assert atlas.decode(None, {"year": 2010}).extrapolated == ()
    with pytest.raises(AtlasError, match="n: never observed"):
        atlas.decode(None, {"n": 20})


def test_generate_without_a_run(tmp_path: Path) -> None:
    out = tmp_path / "map.nii.gz"
    done = run_atlas("generate", "--set", "task=language", "--out", out)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(nibabel.load(out).get_fdata()).all()
    sidecar = json.loads((tmp_path / "map.json").read_text())
    assert "cvae_4mm" in json.dumps(sidecar)


def test_a_counterfactual_without_a_run_needs_a_dataset(tmp_path: Path) -> None:
    command = ("counterfactual", "--study", "1", "--set", "year=2010", "--out", tmp_path / "out")
    assert "name a dataset, --data" in one_line_error(run_atlas(*command), 2)
