"""The README's first command, whole, and what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from atlas.data import dataset
from atlas.inference import Atlas

pytestmark = pytest.mark.slow


def test_the_model_is_better_than_the_mean_map(quickstart_run: Path) -> None:
    methods = json.loads((quickstart_run / "test_results.json").read_text())["methods"]
    ours, mean_map = methods["atlas"]["bits_half"][0], methods["mean map"]["bits_half"][0]
    assert ours > mean_map + 0.1, (ours, mean_map)


def test_studies_decode_to_different_maps(quickstart_run: Path) -> None:
    atlas, data = Atlas.load(quickstart_run), dataset.read(quickstart_run / "dataset")
    maps = []
    for row in data.rows("test"):
        code = atlas.encode(data.peaks(row), data.metadata[row])
        maps.append(atlas.decode_array(code, data.metadata[row])[0].ravel())
    corr = np.corrcoef(maps)[np.triu_indices(len(maps), 1)]
    assert corr.mean() < 0.95


def test_it_leaves_results_report_and_maps(quickstart_run: Path) -> None:
    assert (quickstart_run / "report" / "index.html").stat().st_size > 100_000
    maps = sorted((quickstart_run / "counterfactual").glob("*statmap.nii.gz"))
    left, right = (next(m for m in maps if f"desc-{d}_" in m.name) for d in ("factual", "counterf"
                   "actual"))  # fmt: skip
    images = [nib.load(path).get_fdata() for path in (left, right)]
    assert images[0].shape == (46, 55, 46) and not np.array_equal(*images)


def test_it_says_the_table_and_how_to_open_the_viewer(quickstart_run: Path) -> None:
    said = (quickstart_run / "stdout.txt").read_text()
    for part in ("atlas", "mean map", "PCA-32", "ridge", "no year in this data set"):
        assert part in said
    assert said.rstrip().endswith(f"atlas serve {quickstart_run}")
    progress = (quickstart_run / "stderr.txt").read_text()
    assert "s left" in progress and "Warning" not in progress and "Tip:" not in progress
