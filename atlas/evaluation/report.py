"""RUN/report/index.html: one self-contained page with pictures (nilearn) of what a run learnt."""

from __future__ import annotations

import base64
import csv
import html
import io
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from atlas.data.dataset import Dataset
from atlas.errors import require
from atlas.files import write_text
from atlas.inference import Atlas, Maps

from .evaluate import find_dataset
from .example import describe_changes, example_counterfactual
from .table import COLUMNS, MEANING, summary

EXAMPLES = 3

PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ccc }
img { max-width: 100%; display: block; margin: .5rem 0 } .note { color: #555 }
</style>
<h1>$title</h1>
<p class="note">$about</p>
<h2>Held-out studies</h2>
<table><tr><th></th>$head</tr>$rows</table>
<p class="note">Means over studies; the intervals are in test_results.json. $meaning.</p>
<ul>$summary</ul>
<h2>Training</h2>$curves
<h2>Studies that training never saw</h2>$examples
<h2>One code, other metadata</h2>$counterfactual
</html>
""")


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
    page = PAGE.substitute(
        title=f"atlas: {html.escape(results['run'])}",
        about=f"{results['studies']} {results['split']} studies of "
        f"{html.escape(results['source'])}, atlas {results['atlas']}",
        head="".join(f"<th>{title}</th>" for title in COLUMNS.values()),
        rows="".join(_row(name, scores) for name, scores in methods.items()),
        meaning=MEANING,
        summary="".join(f"<li>{html.escape(line)}</li>" for line in summary(results)),
        curves=_curves(run / "metrics.csv"),
        examples="".join(_examples(atlas, dataset, results["split"])),
        counterfactual=_counterfactual(atlas, dataset, results["split"]),
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


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    return require("matplotlib.pyplot", "data")


def _picture(figure: Any, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    _pyplot().close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _curves(path: Path) -> str:
    if not path.is_file():
        return f"<p>No {path.name}: the run was not trained here.</p>"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) + 1 for row in rows]
    figure, axes = _pyplot().subplots(1, 4, figsize=(14, 3), layout="constrained")
    shown = ("val/bits", "train/kl", "beta", "lambda")
    titles = ("held-out bits a peak", "KL, nats", "beta", "lambda of the year's reversal")
    for axis, name, title in zip(axes, shown, titles):
        axis.plot(epochs, [float(row[name]) for row in rows])
        axis.set(title=title, xlabel="epoch")
    return _picture(figure, "training curves")


def _glass(figure: Any, row: int, rows: int, image: Any, title: str, **kwargs: Any) -> None:
    """Draw the strongest fifth of a map's cells on a glass brain."""
    values = np.abs(image.get_fdata())
    values = values[values > 0] if values.any() else values
    plotting = require("nilearn.plotting", "data")
    plotting.plot_glass_brain(
        image,
        axes=figure.add_subplot(rows, 1, row),
        title=title,
        display_mode="lyrz",
        colorbar=True,
        threshold=float(np.quantile(values, 0.8)),
        vmax=max(float(np.quantile(values, 0.9995)), 1e-6),
        **kwargs,
    )


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
    figure = _pyplot().figure(figsize=(13, 6))
    _glass(figure, 1, 2, maps.mean, "decoded density")
    _glass(figure, 2, 2, maps.sd, "standard deviation", cmap="viridis")
    return _picture(figure, f"decoded map of {caption}")


def _counterfactual(atlas: Atlas, dataset: Dataset, split: str) -> str:
    example = example_counterfactual(atlas, dataset, split)
    if example is None:
        return "<p>No field of this model can be moved.</p>"
    result, study, changes = example
    said = f"with {describe_changes(changes)}"
    figure = _pyplot().figure(figsize=(13, 9))
    _glass(figure, 1, 3, result.factual.mean, "as it is")
    _glass(figure, 2, 3, result.counterfactual.mean, said)
    _glass(figure, 3, 3, result.difference, "difference", plot_abs=False)
    return f"<p>Study {html.escape(study)}</p>" + _picture(figure, f"counterfactual: {said}")
