"""Studysets for comparing atlas_kernels.nimare with NiMARE: bundled, Neurosynth, made up."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.maskers import NiftiMasker
from nimare.dataset import Dataset
from nimare.nimads import Studyset
from nimare.utils import get_resource_path, get_template

logging.getLogger("nimare").setLevel(logging.ERROR)


def studyset(peaks: dict[str, np.ndarray], sizes: dict[str, int | None] | None = None) -> Studyset:
    """Make a Studyset of one analysis a study; peaks are (P, 3) mm, MNI."""
    studies = []
    for name, rows in peaks.items():
        size = (sizes or {}).get(name)
        points = [
            {"space": "MNI", "coordinates": [float(v) for v in row], "kind": None, "values": []}
            for row in rows
        ]
        analysis = {"id": "1", "name": "1", "conditions": [], "weights": [], "images": [],
                    "annotations": [], "points": points,
                    "metadata": {} if size is None else {"sample_sizes": [size]}}  # fmt: skip
        studies.append({"id": name, "name": name, "authors": "", "publication": "",
                        "metadata": {}, "analyses": [analysis]})  # fmt: skip
    return Studyset({"id": "s", "name": "s", "studies": studies}, target="mni152_2mm")


def drawn_sizes(names: Any) -> dict[str, int | None]:
    """Draw a sample size for each study."""
    rng = np.random.default_rng(0)
    return {name: int(rng.integers(8, 60)) for name in names}


@cache
def bundled(n: int = 24) -> Studyset:
    """The first studies that NiMARE carries, with drawn sample sizes."""
    folder = Path(get_resource_path()) / "nback_vs_flanker_studyset_2026-07"
    table = Studyset.from_parquet(str(folder), target=None).coordinates
    return _first(table, "study_id", n)


@cache
def neurosynth(folder: Path, n: int) -> Studyset:
    """The first n studies of Neurosynth, with drawn sample sizes."""
    return _first(neurosynth_table(folder), "id", n)


def neurosynth_table(folder: Path) -> pd.DataFrame:
    name = "neurosynth/data-neurosynth_version-7_coordinates.tsv.gz"
    return pd.read_table(folder / name, dtype={"id": str})


def _first(table: pd.DataFrame, key: str, n: int) -> Studyset:
    table = table[table[key].isin(table[key].unique()[:n])]
    groups = table.groupby(key, sort=False)
    peaks = {str(name): rows[["x", "y", "z"]].to_numpy(float) for name, rows in groups}
    return studyset(peaks, drawn_sizes(peaks))


@cache
def awkward_dataset() -> Dataset:
    """The same as a legacy Dataset."""
    return awkward().to_dataset()


@cache
def awkward() -> Studyset:
    """Half-way coordinates, peaks far and just outside, repeats, a study without peaks."""
    rng = np.random.default_rng(1)
    inside = rng.uniform((-60, -90, -30), (60, 60, 60), (70, 3))
    peaks = {
        "b half way": np.round(inside[:30]) + 1.0,  # odd millimetres lie between two voxels
        "a outside": np.array([[0, 0, 200], [-92, 0, 0], [400, 1, 1], [91, 91, 109]]),
        "corner": np.array([[-90, -126, -72]]),
        "none": np.zeros((0, 3)),
        "d repeated": np.repeat(inside[:4], 5, axis=0),
        "c many": inside,
        "e edge of the brain": np.array([[0, -104, 0], [-70, -20, 0], [0, 0, 78.0]]),
    }  # fmt: skip
    return studyset(peaks, drawn_sizes(peaks))


def masker(shape: tuple[int, int, int], affine: Any, seed: int = 0) -> NiftiMasker:
    """A fitted masker with holes, of any shape."""
    inside = np.random.default_rng(seed).random(shape) < 0.7
    inside[shape[0] // 2] = False
    return NiftiMasker(nib.Nifti1Image(inside.astype("uint8"), affine)).fit()


def foci(shape: tuple[int, int, int], seed: int = 0, n: int = 60) -> pd.DataFrame:
    """Voxel indices in and around a grid, of seven studies in no order, with sample sizes."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"id": rng.choice(list("gcafbed"), n)})
    table[["i", "j", "k"]] = rng.integers(-6, np.array(shape) + 6, (n, 3))
    table["sample_size"] = table["id"].map({name: 5.0 + 7 * i for i, name in enumerate("abcdefg")})
    return table


def brain() -> NiftiMasker:
    """NiMARE's 2 mm brain mask."""
    return NiftiMasker(get_template("mni152_2mm", mask="brain")).fit()
