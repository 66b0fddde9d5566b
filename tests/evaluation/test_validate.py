"""Validation against the untrained model, and the anatomy measures."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from atlas import model_file, space
from atlas.data.dataset import Dataset
from atlas.evaluation import anatomy, validate
from atlas.evaluation.validate import checks, untrained
from tests.support import one_line_error, run_atlas

HERE = space.load(4)


def smooth_noise(fwhm_mm: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=HERE.mask.shape)
    return gaussian_filter(noise, fwhm_mm / 2.3548 / 4) if fwhm_mm else noise


def test_smoothness_is_the_width_of_the_kernel() -> None:
    for width in (10.0, 16.0):
        found = anatomy.smoothness_mm(smooth_noise(width), HERE.mask, 4)
        assert found == pytest.approx(width, rel=0.15)
    assert anatomy.smoothness_mm(smooth_noise(0), HERE.mask, 4) < 4
    assert anatomy.smoothness_mm(np.ones(HERE.mask.shape), HERE.mask, 4) == 0


def test_specks_are_found_and_blobs_are_not() -> None:
    centres = np.argwhere(HERE.mask)
    rng = np.random.default_rng(0)
    specks, blob = np.zeros(HERE.mask.shape), np.zeros(HERE.mask.shape)
    specks[tuple(centres[rng.permutation(len(centres))[:40]].T)] = 1
    blob[20:26, 25:30, 20:25] = 1
    assert anatomy.isolated_share(specks, HERE.mask) > 0.8
    assert anatomy.isolated_share(blob, HERE.mask) == 0
    assert anatomy.isolated_share(np.zeros(HERE.mask.shape), HERE.mask) == 0


def test_grey_matter_lies_where_it_should() -> None:
    grey = HERE.volume(anatomy.grey_matter(4))

    def at(*mm: float) -> float:
        cell, _ = HERE.cells(np.array([mm]))
        return float(grey[HERE.mask][cell[0]])

    assert at(-40, -22, 56) > at(-26, -20, 28)  # motor cortex above corona radiata
    assert at(0, 2, 40) > 0.3 and at(-26, -20, 28) < 0.3
    uniform = np.ones((1, HERE.n_cells))
    assert 0.2 < anatomy.grey_share(uniform, 4)[0] < 0.7


def test_mass_outside_the_fine_mask_is_counted() -> None:
    volume = np.zeros(HERE.mask.shape)
    volume[23, 27, 23] = 1.0
    assert anatomy.share_in_fine_mask(HERE.image(volume)) == 1
    volume[0, 0, 0] = 3.0
    assert anatomy.share_in_fine_mask(HERE.image(volume)) == pytest.approx(0.25)
    edge = anatomy.share_in_fine_mask(HERE.image(HERE.mask.astype(float)))
    assert 0.9 < edge < 1


def test_the_untrained_model_shares_buffers_not_weights(tiny_run: Path) -> None:
    model, card = model_file.read(tiny_run)
    fresh, again = untrained(model, card), untrained(model, card)
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name])
    trained = model.state_dict()
    weight = "encoder.stem.weight"
    assert not torch.equal(fresh.state_dict()[weight], trained[weight])
    assert torch.equal(fresh.state_dict()[weight], again.state_dict()[weight])


def test_checks_pass_and_fail() -> None:
    good = {
        "reconstruction": {"mse_drop": 0.6, "trained": {"r": [0.4, 0, 1]}},
        "diversity": {"trained": {"active_units": 8, "pairwise_correlation": 0.3}},
        "anatomy": {
            "trained": {
                "grey_matter": [0.5],
                "fine_mask": [0.97],
                "isolated": [0.0],
                "smoothness_mm": [9.0],
            },
            "held_out_maps": {"grey_matter": [0.5], "smoothness_mm": [10.0]},
            "uniform_grey_matter": 0.4,
        },
    }
    assert all(check["pass"] for check in checks(good, 8))
    bad = copy.deepcopy(good)
    bad["reconstruction"] = {"mse_drop": 0.4, "trained": {"r": [0.2, 0, 1]}}
    bad["diversity"]["trained"] = {"active_units": 1, "pairwise_correlation": 0.95}
    bad["anatomy"]["trained"] = {
        "grey_matter": [0.41],
        "fine_mask": [0.9],
        "isolated": [0.2],
        "smoothness_mm": [3.0],
    }
    assert not any(check["pass"] for check in checks(bad, 8))


@pytest.fixture(scope="module")
def validated(tiny_run: Path, bundled: Dataset, tmp_path_factory: pytest.TempPathFactory):
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("validated") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "STEPS", (-1.0, 1.0))  # pictures are most of the time
        patch.setattr(validate, "DIRECTIONS", 2)
        done = run_atlas("validate", run, "--data", bundled.path, "--split", "val")
    return run, done


@pytest.mark.slow
def test_the_command_prints_verdicts_and_writes_its_files(validated) -> None:
    run, done = validated
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "validation.json").read_text())
    assert results["studies"] == 48
    assert done.stdout.count("PASS") + done.stdout.count("FAIL") == len(results["checks"])
    for name in ("trained", "untrained", "held_out_maps"):
        assert 0 < results["anatomy"][name]["grey_matter"][0] < 1
    # Untrained, every study decodes to the base map.
    assert results["diversity"]["untrained"]["pairwise_correlation"] == pytest.approx(1, abs=1e-3)
    assert len(results["traversals"]) == 2
    for picture in results["traversals"]:
        assert (run / picture["picture"]).read_bytes().startswith(b"\x89PNG")
    page = (run / "report" / "validation.html").read_text()
    assert page.count("<img") == 2 and "https://" not in page


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    assert "holds no model.json" in one_line_error(run_atlas("validate", tmp_path))
