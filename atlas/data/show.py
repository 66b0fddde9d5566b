"""One study as a picture: its peaks, its map, and what is known of it."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from atlas import pages, space
from atlas.files import replacing
from atlas.metadata import Value

from . import records
from .batches import splat_studies
from .dataset import REMOVED, Dataset

RESOLUTION, FWHM = 4, 10.0


def show(dataset: Dataset, study_id: str, out: Path) -> Path:
    """Draw one study into a picture file (PNG, PDF or SVG, by the suffix).

    Raises
    ------
    AtlasError
        An unknown study.
    """
    figure = draw(dataset, study_id)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as work:
        figure.savefig(work, dpi=110)
    pages.pyplot().close(figure)
    return out


def draw(dataset: Dataset, study_id: str) -> Any:
    """Return a matplotlib figure of one study: glass brain with its peaks, and `describe`."""
    row = dataset.study_row(study_id)
    peaks, here = dataset.peaks(row), space.load(RESOLUTION)
    volume = splat_studies([peaks], np.array([FWHM]), here.grid)[0, 0].numpy()
    figure = pages.pyplot().figure(figsize=(14, 4.6))
    figure.text(0.01, 0.97, describe(dataset, study_id), va="top", fontsize=8.5, wrap=False)
    axes = figure.add_axes((0.36, 0.02, 0.63, 0.9))
    display = pages.glass_brain(axes, here.image(volume), "", cmap="Reds")
    display.add_markers(peaks, marker_color="black", marker_size=4)
    return figure


def describe(dataset: Dataset, study_id: str) -> str:
    """Return what is known of a study, as lines of text; what is missing is named too."""
    row = dataset.study_row(study_id)
    study = records.read(dataset.path, dataset.fields)[row]
    split = next((name for name, ids in dataset.splits.items() if study_id in ids), "-")
    lines = [
        *textwrap.wrap(study.title or "(no title)", 62),
        *textwrap.wrap(study.authors, 62)[:3],
        ", ".join(filter(None, [study.journal, study.doi and f"doi {study.doi}"])),
        f"id {study.id}, {split} split",
        "",
    ]
    for field in dataset.fields:
        if field.name not in ("fwhm", "n_peaks"):
            value = _value(study.metadata.get(field.name), field.unit)
            lines += textwrap.wrap(f"{field.label}: {value}", 62)
    gone = Counter(
        finding.rule
        for finding in records.read_findings(dataset.path / REMOVED)
        if finding.study == study_id
    )
    lines.append(f"Peaks: {len(study.peaks_mm)} kept")
    lines += [f"    {count} removed: {rule}" for rule, count in gone.items()]
    # matplotlib reads a pair of dollars as mathematics.
    return "\n".join(line for line in lines if line is not None).replace("$", r"\$")


def _value(value: Value | None, unit: str) -> str:
    if value is None:
        return "not known"
    if isinstance(value, dict):
        strongest = sorted(value.items(), key=lambda pair: -pair[1])[:4]
        return ", ".join(f"{name} {weight:.2f}" for name, weight in strongest)
    return f"{value:g} {unit}".strip()
