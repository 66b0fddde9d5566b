"""The report page and the picture of one study."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from atlas.contracts import Study
from atlas.data import dataset as folder
from atlas.data import records, report, show
from atlas.data.dataset import Dataset
from atlas.data.prepare import Settings, prepare
from atlas.data.sources import Provenance
from tests.support import one_line_error, run_atlas


@pytest.fixture(scope="module")
def page(bundled: Dataset) -> str:
    return report.write(bundled).read_text()


def test_the_page_holds_the_funnel_and_every_field(page: str, bundled: Dataset) -> None:
    for row in bundled.info["funnel"]:
        assert row["step"] in page and f"{row['peaks']:,}" in page
    for row in bundled.info["repeats"]:
        assert html.escape(row["reading"]) in page and f"{row['percent']:.2f} %" in page
    for field in bundled.fields:
        assert html.escape(f"{field.label} ({field.name})") in page
    for digest in bundled.info["source"]["inputs"].values():
        assert digest in page


def test_the_page_asks_nobody_for_anything(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page)
    assert page.count("<img") >= 6


def test_a_report_does_not_stand_in_the_way(page: str, bundled: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(bundled.path, tmp_path / "copy")
    assert (copy / "report.html").is_file()
    assert folder.read(copy).fingerprint == bundled.fingerprint
    assert prepare(Settings(), copy).fingerprint == bundled.fingerprint


def test_subset_and_full_set_stand_side_by_side(tmp_path: Path) -> None:
    text = report.write(prepare(Settings(subset=80), tmp_path / "data")).read_text()
    assert re.search(r"<tr><td>studies</td><td>320</td><td>80</td></tr>", text)


def test_a_dataset_without_logs_and_with_a_hostile_title(bundled: Dataset, tmp_path: Path) -> None:
    studies = records.read(bundled.path, bundled.fields)
    hostile = [dataclasses.replace(s, title="<script>alert($1$)</script>") for s in studies]
    provenance = Provenance("<b>x</b>", "", "none", {})
    data = folder.write(tmp_path / "data", hostile, bundled.splits, provenance)
    text = report.write(data, tmp_path / "page.html").read_text()
    assert "<script" not in text and "<b>x" not in text and "&lt;b&gt;x" in text


def test_one_study_as_a_picture(bundled: Dataset, tmp_path: Path) -> None:
    removed = records.read_findings(bundled.path / folder.REMOVED)
    study = removed[0].study
    text = show.describe(bundled, study)
    assert study in text and "removed: repeat" in text and "Year: not known" in text
    assert f"Peaks: {len(bundled.peaks(bundled.study_row(study)))} kept" in text
    path = show.show(bundled, study, tmp_path / "new" / "study.png")
    with Image.open(path) as image:
        assert image.size[0] > 1000 and len(set(image.convert("RGB").getdata())) > 100


def test_the_command_line(bundled: Dataset, tmp_path: Path) -> None:
    done = run_atlas("data", "report", bundled.path, "--out", tmp_path / "page.html")
    assert done.stdout.strip() == str(tmp_path / "page.html") and done.returncode == 0
    done = run_atlas("data", "show", bundled.path, bundled.ids[0], "--out", tmp_path / "s.png")
    assert (tmp_path / "s.png").is_file() and done.returncode == 0
    done = run_atlas("data", "show", bundled.path, "nobody", "--out", tmp_path / "n.png")
    assert "has no study 'nobody'" in one_line_error(done)
    assert not (tmp_path / "n.png").exists()


def test_a_study_with_nothing_known(tmp_path: Path, bundled: Dataset) -> None:
    studies = [
        Study(str(k), "", bundled.peaks(k).astype(float), ("MNI",) * len(bundled.peaks(k)))
        for k in range(3)
    ]
    sides = {"train": ["0"], "val": ["1"], "test": ["2"]}
    data = folder.write(tmp_path / "d", studies, sides, Provenance("x", "", "none", {}))
    assert "(no title)" in show.describe(data, "1")
    assert json.loads((data.path / "dataset.json").read_text())["coverage"]["n"] == 0
    assert "No study has a year" in report.write(data).read_text()
