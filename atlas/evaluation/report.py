"""RUN/report/index.html: one self-contained page with pictures (nilearn) of what a run learnt."""

from __future__ import annotations

import csv
import html
from pathlib import Path
from typing import Any

from atlas import pages
from atlas.data.dataset import Dataset
from atlas.errors import require
from atlas.files import write_text
from atlas.inference import Atlas, Maps

from .evaluate import find_dataset
from .example import describe_changes, example_counterfactual
from .table import COLUMNS, MEANING, summary

EXAMPLES = 3


def write(run: Path, results: dict[str, Any], dataset: Dataset | None = None) -> Path:
    """Write the report of an evaluated run.

    Parameters
    ----------
    run : Path
    results : dict
        As `atlas.evaluation.evaluate.evaluate` returns it.

    Returns
    -------
    Path
        RUN/report/index.html.
    """
    require("nilearn", "data")
    dataset = dataset or find_dataset(run)
    atlas = Atlas.load(run)
    methods = results["methods"]
    table = "".join(_row(name, scores) for name, scores in methods.items())
    head = "".join(f"<th>{title}</th>" for title in COLUMNS.values())
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in summary(results))
    means = f"Means over studies; the intervals are in test_results.json. {MEANING}."
    page = pages.page(
        f"atlas: {results['run']}",
        f"{results['studies']} {results['split']} studies of {results['source']}, "
        f"atlas {results['atlas']}",
        [
            (
                "Held-out studies",
                f"<table><tr><th></th>{head}</tr>{table}</table>"
                f"{pages.paragraph(means, note=True)}<ul>{lines}</ul>",
            ),
            ("Training", _curves(run / "metrics.csv")),
            (
                "Studies that training never saw",
                "".join(_examples(atlas, dataset, results["split"])),
            ),
            ("One code, other metadata", _counterfactual(atlas, dataset, results["split"])),
        ],
    )
    path = run / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    write_text(path, page)
    return path


def _row(name: str, scores: dict[str, list[float]]) -> str:
    cells = "".join(
        f'<td title="{scores[c][1]:.4f} to {scores[c][2]:.4f}">{scores[c][0]:.4f}</td>'
        if c in scores
        else "<td>-</td>"
        for c in COLUMNS
    )
    return f"<tr><td>{html.escape(name)}</td>{cells}</tr>"


def _curves(path: Path) -> str:
    if not path.is_file():
        return f"<p>No {path.name}: the run was not trained here.</p>"
    return pages.picture(training_curves(path), "training curves")


def training_curves(path: Path) -> Any:
    """Draw metrics.csv over the optimiser's steps, as a matplotlib figure."""
    shown = {
        "val/bits": "held-out bits a peak",
        "train/kl": "KL, nats",
        "val/active": "active directions",
        "beta": "beta",
        "lambda": "lambda of the year's reversal",
    }
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = pages.pyplot().subplots(1, len(shown), figsize=(16, 3), layout="constrained")
    for axis, (name, title) in zip(axes, shown.items()):
        known = [row for row in rows if row.get(name)]  # a validation within an epoch has val/ only
        axis.plot([int(row["step"]) for row in known], [float(row[name]) for row in known])
        axis.set(title=title, xlabel="step")
    return figure


def _examples(atlas: Atlas, dataset: Dataset, split: str) -> list[str]:
    """Draw the largest held-out studies: their peaks, the decoded map, its uncertainty."""
    rows = sorted(dataset.rows(split), key=lambda r: -len(dataset.peaks(r)))[:EXAMPLES]
    out = []
    for row in rows:
        metadata, peaks = atlas.usable(dataset.metadata[row]), dataset.peaks(row)
        maps = atlas.decode(atlas.encode(peaks, metadata), metadata)
        caption = f"{dataset.titles[row]} ({dataset.ids[row]}, {len(peaks)} peaks)"
        out.append(f"<p>{html.escape(caption)}</p>" + _study_picture(maps, caption))
    return out


def _study_picture(maps: Maps, caption: str) -> str:
    figure = pages.pyplot().figure(figsize=(13, 6))
    pages.glass_brain(figure.add_subplot(2, 1, 1), maps.mean, "decoded density")
    pages.glass_brain(figure.add_subplot(2, 1, 2), maps.sd, "standard deviation", cmap="viridis")
    return pages.picture(figure, f"decoded map of {caption}")


def _counterfactual(atlas: Atlas, dataset: Dataset, split: str) -> str:
    example = example_counterfactual(atlas, dataset, split)
    if example is None:
        return "<p>No field of this model can be moved.</p>"
    result, study, changes = example
    said = f"with {describe_changes(changes)}"
    figure = pages.pyplot().figure(figsize=(13, 9))
    pages.glass_brain(figure.add_subplot(3, 1, 1), result.factual.mean, "as it is")
    pages.glass_brain(figure.add_subplot(3, 1, 2), result.counterfactual.mean, said)
    pages.glass_brain(figure.add_subplot(3, 1, 3), result.difference, "difference", plot_abs=False)
    return f"<p>Study {html.escape(study)}</p>" + pages.picture(figure, f"counterfactual: {said}")
