"""DATASET/report.html: what a dataset holds, what was removed on the way and why."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atlas import pages, progress, space
from atlas.files import write_text
from atlas.metadata import Field

from . import splits
from .dataset import Dataset
from .density import mean_density
from .show import draw

LISTED = 20  # rows of a long list that the page shows
RESOLUTION, FWHM = 4, 10.0


def write(dataset: Dataset, out: Path | None = None) -> Path:
    """Write the page.

    Parameters
    ----------
    dataset : Dataset
    out : Path, optional
        By default DATASET/report.html.

    Returns
    -------
    Path
        One file, pictures inside, no external request.
    """
    sections = {
        "What it is": _what,
        "From the source to the dataset": _funnel,
        "Repeated peaks": _repeats,
        "Space and bounds": _bounds,
        "Years, peaks and tasks": _studies,
        "What is known of the studies": _fields,
        "Splits": _splits,
        "Where the peaks lie": _density,
        "Some studies": _examples,
    }
    parts = []
    with progress.track("report", len(sections)) as ticker:
        for heading, section in sections.items():
            parts.append((heading, section(dataset)))
            ticker.advance(note=heading)
    source = dataset.info["source"]
    about = f"{len(dataset):,} studies, {len(dataset.peaks_mm):,} peaks of {source['name']}"
    path = out or dataset.path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, pages.page(f"Dataset {dataset.path.name}", about, parts))
    return path


def _log(dataset: Dataset, name: str) -> Any:
    path = dataset.path / name
    return json.loads(path.read_text()) if path.is_file() else None


def _what(dataset: Dataset) -> str:
    source, info = dataset.info["source"], dataset.info
    settings = ", ".join(
        f"{key.replace('_', ' ')} {'-' if value is None else value}"
        for key, value in info.get("settings", {}).items()
    )
    rows = [
        ("source", f"{source['name']}, version {source['version'] or '-'}"),
        ("licence", source["licence"]),
        ("settings", settings),
        ("fingerprint", dataset.fingerprint),
        *((f"sha256 of {name}", digest) for name, digest in source["inputs"].items()),
        *(
            (
                f"{row['field']} from {row['file']}",
                f"column {row['column']}, {row['rows']:,} rows, {row['keys']:,} studies named, "
                f"{row['keys_with_several_values']} of them with several values (the last holds), "
                f"{row['studies_filled']:,} of the source's filled",
            )
            for row in info.get("joins", [])
        ),
    ]
    return pages.table(("", ""), rows, text=(1,))


def _funnel(dataset: Dataset) -> str:
    rows = [
        (r["step"], r["studies"], r["peaks"], r["changed"] or "", r["why"])
        for r in dataset.info.get("funnel", [])
    ]
    head = ("step", "studies", "peaks", "removed or moved", "why")
    note = (
        "Every removed peak stands in removed.parquet with its rule; nothing is moved silently. "
        "The logs speak of all studies, also where a subset was drawn."
    )
    return pages.table(head, rows, text=(4,)) + pages.paragraph(note, note=True)


def _repeats(dataset: Dataset) -> str:
    rates = dataset.info.get("repeats", [])
    rows = []
    for r in rates:
        row = [r["reading"], r["peaks"], f"{r['percent']:.2f} %", r["studies"]]
        if "mean" in r:
            row += [f"{r['mean']:.1f} ({r['sd']:.1f})", f"{r['low']:.1f} to {r['high']:.1f}"]
        rows.append(row)
    head = ["a peak repeats an earlier one", "peaks", "share", "studies"]
    draws = any("mean" in r for r in rates)
    if draws:
        head += ["draws of 1,000: mean (sd), %", "range, %"]
    out = pages.table(head, rows)
    out += pages.paragraph(
        "Coordinates as printed, before any conversion. Mirrored peaks are findings, not repeats."
        + (
            " The last columns: 40 stratified draws of 1,000 studies. The 8.4 % that an earlier "
            "system reported on such a draw lies in the range of the first row."
            if draws and rates[0]["low"] <= 8.4 <= rates[0]["high"]
            else ""
        ),
        note=True,
    )
    listed = _log(dataset, "repeats.json")
    if listed:
        tables, heavy = listed["tables"], listed["studies"]
        out += _list(
            f"{len(tables):,} tables that are repeated whole, or were parsed twice",
            ("study", "table", "repeats", "peaks"),
            [(r["study"], r["table"], r["repeats"], r["peaks"]) for r in tables],
            "repeats.json",
        )
        out += _list(
            f"{len(heavy):,} studies of whose peaks at least 40 % repeat, with "
            f"{sum(r['repeated'] for r in heavy):,} repeats",
            ("study", "peaks", "repeated"),
            [(r["study"], r["peaks"], r["repeated"]) for r in heavy],
            "repeats.json",
        )
    pairs = _log(dataset, "twins.json") or []
    side = {study: name for name, members in dataset.splits.items() for study in members}
    apart = sum(side[a] != side[b] for a, b in pairs)
    return out + pages.paragraph(
        "Between studies nothing is removed. Pairs that share at least five coordinates which "
        f"make up half of the smaller one: {len(pairs)} (twins.json); "
        + (f"{apart} of them lie apart in this inherited split." if apart else "none lies apart.")
    )


def _list(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]], file: str) -> str:
    more = f" (the first {LISTED}; all in {file})" if len(rows) > LISTED else ""
    summary = html.escape(title + more)
    body = pages.table(head, rows[:LISTED], text=(1, 2) if "why" in head else ())
    return f"<details><summary>{summary}</summary>{body}</details>"


def _bounds(dataset: Dataset) -> str:
    log = _log(dataset, "mismatches.json")
    if log is None:
        return pages.paragraph("No mismatch log.")
    outside = [row for row in log if row["rule"] == "outside mask"]
    whole = [row for row in log if row["rule"] == "study"]
    distances = np.array(
        [float(row["why"].split(" mm")[0]) for row in outside if " mm" in row["why"]]
    )
    out = pages.paragraph(
        f"After conversion {len(outside):,} peaks lie outside the 2 mm brain mask: "
        f"{len(outside) - len(distances):,} out of the volume (removed), "
        f"{int((distances > 8).sum()):,} inside it but over 8 mm from the mask, "
        f"{int((distances <= 8).sum()):,} nearer. Where nothing else was asked for, those in the "
        "volume stay. All are in mismatches.json."
    )
    if len(distances):
        figure, axes = pages.pyplot().subplots(figsize=(8, 2.6), layout="constrained")
        axes.hist(np.minimum(distances, 40), bins=40, color="#4477aa")
        axes.set(xlabel="mm outside the mask (40: or more)", ylabel="peaks", yscale="log")
        out += pages.picture(figure, "distances outside the brain mask")
    return out + _list(
        f"{len(whole):,} suspicious studies",
        ("study", "why"),
        [(row["study"], row["why"]) for row in whole],
        "mismatches.json",
    )


def _studies(dataset: Dataset) -> str:
    summaries = dataset.info.get("summary", {})
    out = _bars({name: s["years"] for name, s in summaries.items()}, "studies by year")
    sizes = np.diff(dataset.offsets)
    figure, axes = pages.pyplot().subplots(figsize=(8, 2.6), layout="constrained")
    axes.hist(sizes, bins=np.geomspace(1, max(sizes.max(), 2), 40), color="#4477aa")
    axes.set(xscale="log", xlabel="peaks a study", ylabel="studies")
    out += pages.picture(figure, "peaks a study")
    rows: list[list[object]] = []
    first = next(iter(summaries.values()), None)
    if first is None:
        return out
    for label, shown in (
        ("studies", lambda s: s["studies"]),
        ("peaks", lambda s: s["peaks"]),
        ("peaks a study, mean", lambda s: f"{s['mean_peaks']:.1f}"),
        *(
            (f"peaks a study, {q} %", lambda s, q=q: f"{s['peaks_quantiles'][q]:.0f}")
            for q in first["peaks_quantiles"]
        ),
        *(
            (f"strongest task: {task}", lambda s, task=task: f"{100 * s['tasks'][task]:.1f} %")
            for task in first["tasks"]
        ),
        *(
            (f"with {name}", lambda s, name=name: f"{100 * s['coverage'][name]:.2f} %")
            for name in first["coverage"]
            if name != "fwhm"
        ),
    ):
        rows.append([label, *(shown(s) for s in summaries.values())])
    return out + pages.table(["", *summaries], rows)


def _bars(series: dict[str, dict[str, int]], title: str) -> str:
    labels = sorted({label for counts in series.values() for label in counts})
    if not labels:
        return pages.paragraph("No study has a year.")
    figure, axes = pages.pyplot().subplots(figsize=(11, 2.8), layout="constrained")
    width = 0.8 / len(series)
    for k, (name, counts) in enumerate(series.items()):
        total = max(sum(counts.values()), 1)
        shares = [100 * counts.get(label, 0) / total for label in labels]
        axes.bar(np.arange(len(labels)) + k * width, shares, width, label=name, align="edge")
    axes.set(xticks=np.arange(len(labels)) + 0.4, ylabel="% of the studies", title=title)
    axes.set_xticklabels(labels, rotation=60)
    axes.legend()
    return pages.picture(figure, title)


def _fields(dataset: Dataset) -> str:
    coverage = dataset.coverage()
    rows = []
    for field in dataset.fields:
        known = coverage[field.name]
        share = (
            "all" if field.name == "fwhm" else f"{100 * known / max(len(dataset), 1):.1f}\u00a0%"
        )
        rows.append(
            (
                f"{field.label} ({field.name})",
                "" if field.name == "fwhm" else known,
                share,
                _range(field),
                field.how,
            )
        )
    head = ("field", "studies", "share", "range", "how obtained")
    pictures = "".join(_histograms(dataset, coverage))
    return pages.table(head, rows, text=(3, 4)) + pictures


def _range(field: Field) -> str:
    if field.kind == "category":
        return f"{len(field.categories)} weights that sum to 1"
    return f"{field.low:g} to {field.high:g} {field.unit}".strip()


def _histograms(dataset: Dataset, coverage: dict[str, int]) -> Iterator[str]:
    fields = [f for f in dataset.fields if f.kind == "number" and coverage[f.name]]
    if not fields:
        return
    figure, axes = pages.pyplot().subplots(
        1, len(fields), figsize=(3 * len(fields), 2.6), layout="constrained", squeeze=False
    )
    for axis, field in zip(axes[0], fields):
        values = np.array(
            [m[field.name] for m in dataset.metadata if m.get(field.name) is not None]
        )
        values = values.astype(float)
        bins: Any = 30
        if field.log:
            bins = np.geomspace(max(values.min(), field.low), values.max() + 1, 30)
            axis.set_xscale("log")
        axis.hist(values, bins=bins, color="#4477aa")
        axis.set(title=field.label, xlabel=field.unit)
    yield pages.picture(figure, "distribution of every number that is known")


def _splits(dataset: Dataset) -> str:
    rows = []
    for name in (*splits.SPLITS, splits.UNASSIGNED):
        if not dataset.splits.get(name):
            continue
        mine = dataset.rows(name)
        years = [y for r in mine if (y := dataset.metadata[r].get("year")) is not None]
        rows.append(
            (
                name,
                len(mine),
                f"{100 * len(mine) / len(dataset):.1f} %",
                f"{np.median(np.diff(dataset.offsets)[mine]):g}",
                f"{np.median(np.array(years, float)):g}" if years else "-",
            )
        )
    return pages.table(("split", "studies", "share", "median peaks", "median year"), rows)


def _density(dataset: Dataset) -> str:
    here = space.load(RESOLUTION)
    density = mean_density(dataset, range(len(dataset)), RESOLUTION, FWHM)
    image = here.image(here.volume(density * here.n_cells))
    figure = pages.pyplot().figure(figsize=(12, 3.2))
    pages.glass_brain(figure.add_subplot(111), image, "", cmap="inferno")
    note = f"All studies' peaks at FWHM {FWHM:g} mm; 1 is the uniform density."
    return pages.picture(figure, "density of all peaks") + pages.paragraph(note, note=True)


def _examples(dataset: Dataset) -> str:
    """Draw the study in the middle, the largest, and one whose sample size is known."""
    sizes = np.diff(dataset.offsets)
    middle = int(np.argsort(sizes, kind="stable")[len(sizes) // 2])
    known = [r for r in range(len(dataset)) if dataset.metadata[r].get("n") is not None]
    chosen = Counter([middle, int(sizes.argmax()), *known[len(known) // 2 :][:1]])
    return "".join(
        pages.picture(draw(dataset, dataset.ids[row]), f"study {dataset.ids[row]}")
        for row in chosen
    )
