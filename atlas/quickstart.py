"""The whole path on the studyset that NiMARE carries: dataset, training, evaluation, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import config, maps_file, progress
from .data.prepare import Settings, prepare
from .errors import AtlasError
from .evaluation import report
from .evaluation.evaluate import evaluate
from .evaluation.example import describe_changes, example_counterfactual
from .inference import Atlas
from .training.run import train


def quickstart(
    out: Path, overrides: tuple[str, ...] = (), *, force: bool = False
) -> dict[str, Any]:
    """Run every stage into one run folder, its dataset inside.

    Parameters
    ----------
    out : Path
        The run folder.
    overrides : tuple of str
        ``section.key=value`` over the shipped ``quickstart`` configuration.
    force : bool
        Write over an older run.

    Returns
    -------
    dict
        test_results.json.
    """
    if (out / "config.yaml").exists() and not force:
        raise AtlasError(f"{out}: holds a run already; --force to write over it")
    say = progress.console().print
    resolved = config.load("quickstart", overrides)
    say("1/5  dataset: the studies that NiMARE carries")
    dataset = prepare(Settings(source="bundled"), out / "dataset")
    printed, kept = dataset.info["funnel"][0], dataset.info["funnel"][-1]
    say(f"     {kept['studies']} studies, {kept['peaks']:,} of {printed['peaks']:,} peaks")
    say("2/5  training a conditional beta-VAE at 4 mm")
    train(resolved, dataset, out, force=force)
    say("3/5  evaluating it beside the linear baselines")
    results = evaluate(out, dataset)
    say("4/5  one counterfactual")
    _write_counterfactual(out, dataset)
    say("5/5  report")
    report.write(out, results, dataset)
    return results


def _write_counterfactual(out: Path, dataset: Any) -> None:
    atlas = Atlas.load(out)
    example = example_counterfactual(atlas, dataset, "test")
    if example is None:
        return
    result, study, changes = example
    metadata = atlas.usable(dataset.metadata[dataset.study_row(study)])
    folder = out / "counterfactual"
    maps_file.write_counterfactual(folder, result, atlas, study, metadata, changes)
    progress.console().print(f"     study {study} with {describe_changes(changes)}: {folder}")
