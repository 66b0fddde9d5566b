"""The results as a table for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from . import criteria
from .protocol import TASKS

COLUMNS = {
    "r": "r",
    "ssim": "SSIM",
    "mse": "MSE",
    "rmse": "RMSE",
    "psnr": "PSNR dB",
    "bits_unseen": "bits, unseen",
    "bits_half": "bits, half given",
}
MEANING = (
    "bits: information above the uniform map at a held-out peak; unseen: from the metadata alone; "
    "half given: the other half of the study's peaks"
)


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """Print every method's measures, the latent space, the year, and where the model loses."""
    console = console or Console(highlight=False, soft_wrap=True)
    table = Table(title=f"{results['studies']} {results['split']} studies of {results['source']}")
    table.add_column("")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for method, scores in results["methods"].items():
        table.add_row(method, *(_cell(scores.get(name)) for name in COLUMNS))
    # As wide as it needs to be: a table folded to a narrow log is unreadable.
    Console(file=console.file, width=max(console.width, 100), highlight=False).print(table)
    console.print(MEANING)
    for line in (*summary(results), *criteria.lines(results["criteria"])):
        console.print(line, markup=False)


def summary(results: dict[str, Any]) -> list[str]:
    """Say in plain lines what the table does not: code, year, where a baseline is better."""
    latent, year = results["latent"], results["year"]
    lines = [
        f"code: {latent['active_units']} of {latent['size']} directions active, "
        f"{latent['kl_nats']:.1f} nats; decoded maps correlate at "
        f"{latent['mean_pairwise_correlation']:.2f} between studies",
    ]
    covered = ", ".join(
        f"{level} %: {100 * share[0]:.1f}"
        for level, share in results["uncertainty_coverage"].items()
    )
    lines.append(f"cells of held-out maps inside the decoder's intervals, {covered}")
    for name, found in results["imputation"].items():
        r2 = "-" if found["r2"] is None else f"{found['r2'][0]:.2f}"
        lines.append(
            f"{name} hidden and imputed, {found['studies']} studies: R2 {r2}, "
            f"NLL {found['nll'][0]:.2f}, 90 % interval covers {100 * found['coverage_90'][0]:.1f} %"
        )
    lines += ["year adversary: no year in this data set"] if year is None else _year_lines(year)
    for baseline, measures in results["below"].items():
        lines.append(f"below {baseline} in: {', '.join(COLUMNS[m] for m in measures)}")
    if not results["below"]:
        lines.append("below no baseline in any measure")
    return lines


def _year_lines(year: dict[str, Any]) -> list[str]:
    """Say how well the year is read from codes, and by whom."""
    lines = []
    for run, found in (("", year), (" without reversal", year.get("without_reversal"))):
        if not found:
            continue
        readers = {
            "year adversary": found["adversary"],
            **{f"{name} probe of the year": s for name, s in found["probes"].items()},
            **{f"{name} probe, codes drawn": s for name, s in found["probes_drawn"].items()},
        }
        lines += [
            f"{name}{run}: balanced accuracy {s['balanced_accuracy'][0]:.3f} "
            f"({s['balanced_accuracy'][1]:.3f} to {s['balanced_accuracy'][2]:.3f}), "
            f"chance {found['chance']:.3f} "
            f"({s['permutation'][0]:.3f} to {s['permutation'][1]:.3f} with permuted years)"
            for name, s in readers.items()
        ]
    return lines


def _cell(interval: list[float] | None) -> str:
    if interval is None:
        return "-"
    digits = 1 if interval[0] > 10 else 3 if abs(interval[0]) > 0.02 else 4
    return f"{interval[0]:.{digits}f}"


BENCHMARK_COLUMNS = {
    "bits": "bits a peak",
    "auc": "AUC",
    "r": "r",
    "r 10": "r, 10 mm",
    "ssim 10": "SSIM, 10 mm",
    "r 16": "r, 16 mm",
    "ssim 16": "SSIM, 16 mm",
    "nats": "nats",
    "nats 10": "nats, 10 mm",
    "nats 16": "nats, 16 mm",
    "50": "50 %",
    "80": "80 %",
    "90": "90 %",
    "95": "95 %",
    "off": "off",
    "off lobe": "a lobe",
    "off peaks": "a tercile",
    "off expected": "expecting most",
    "log_score": "log score",
    "crps": "CRPS",
}
PARTS = ("peers", "runs")
COUNTS_MEANING = (
    "share of regions inside the central intervals; off: farthest from nominal, points: over all, "
    "in the worst lobe, in the worst tercile of the number of peaks, where a row expects most; "
    "log score (nats) and CRPS (peaks) a region: the lower, the more a row knows"
)


def print_benchmark(results: dict[str, Any], console: Console | None = None) -> None:
    """Print a table a task: the peers' rows, and the runs' under them."""
    console = console or Console(highlight=False, soft_wrap=True)
    head = f"{results['studies']} {results['split']} studies, {results['peaks']} peaks"
    console.print(f"{head}, of {results['source']}; mean [95 % interval over studies]")
    for task, found in results["tasks"].items():
        rows = {group: {k: _cells(v) for k, v in found[group].items()} for group in PARTS}
        every = [row for group in PARTS for row in rows[group].values()]
        columns = [c for c in BENCHMARK_COLUMNS if any(c in row for row in every)]
        scored = f", {found['studies']} studies" if "studies" in found else ""
        table = Table(title=f"({task}) {TASKS[task]}{scored}", title_justify="left")
        table.add_column("")
        for column in columns:
            table.add_column(BENCHMARK_COLUMNS[column], justify="right")
        for group in PARTS:
            for name, row in rows[group].items():
                table.add_row(name, *(_range(row.get(column)) for column in columns))
            table.add_section()
        Console(file=console.file, width=max(console.width, 130), highlight=False).print(table)
        if task == "d":
            console.print(COUNTS_MEANING, markup=False)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's cells by column; coverage as the mean alone, its intervals are in the JSON."""
    covered = row.get("coverage", {})
    return row | {level: f"{100 * share[0]:.1f}" for level, share in covered.items()}


def _range(value: list[float] | float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
