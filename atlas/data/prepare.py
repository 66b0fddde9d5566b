"""Sources -> clean -> validate -> split -> dataset folder: four stages, run at once or one by one.

A stage is a function of what the stage before returned and of the settings. Run one by one, each
writes what it returned into ``OUT.stages/STAGE``, so that a pipeline tool can skip what is fresh.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atlas import progress
from atlas.contracts import Finding, Study
from atlas.errors import AtlasError, OptionError
from atlas.files import building
from atlas.metadata import FieldTable

from . import clean, dataset, joins, records, repeats, splits, summary, twins, validate
from .sources import SOURCES, Provenance

_EVIDENCE_DRAWS, _EVIDENCE_SIZE = 40, 1000


@dataclass(frozen=True)
class Settings:
    """How a dataset is made; dataset.json records every one.

    Attributes
    ----------
    source : str
        A row of `atlas.data.sources.SOURCES`.
    data_dir : Path, optional
        Where the source's files lie, for those that need to be told.
    joins : tuple of Join
        External tables.
    duplicates : {"study", "table", "none"}
        Where a repeated peak counts as one; see `atlas.data.repeats`.
    tolerance_mm : float
        How near a repeat lies; 0: equal after rounding to 1 mm.
    space_policy : {"label", "none"}
        Whether peaks labelled Talairach are converted to MNI.
    max_distance_mm : float, optional
        Remove the peaks that lie farther than this from the 4 mm brain mask.
    min_peaks : int
        Drop the studies with fewer peaks.
    subset : int, optional
        Draw so many studies, stratified.
    splits : Path, optional
        Inherit the split of this file.
    seed : int
        Of subset and split.
    """

    source: str = "bundled"
    data_dir: Path | None = None
    joins: tuple[joins.Join, ...] = ()
    duplicates: repeats.Scope = "study"
    tolerance_mm: float = 0.0
    space_policy: clean.SpacePolicy = "label"
    max_distance_mm: float | None = None
    min_peaks: int = 1
    subset: int | None = None
    splits: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class State:
    """What a stage hands to the next."""

    studies: list[Study]
    provenance: Provenance
    info: dict[str, Any] = field(default_factory=dict)  # settings, funnel and the like
    logs: dict[str, Any] = field(default_factory=dict)  # JSON files of the dataset folder
    removed: list[Finding] = field(default_factory=list)

    def after(self, step: str, studies: list[Study], changed: int, why: str, **log: Any) -> State:
        """Return the state after a step, with its row in the funnel."""
        row = {
            "step": step,
            "studies": len(studies),
            "peaks": sum(len(s.peaks_mm) for s in studies),
            "changed": changed,
            "why": why,
        }
        info = {**self.info, "funnel": [*self.info.get("funnel", []), row]}
        return dataclasses.replace(self, studies=studies, info=info, **log)

    def noting(self, **settings: Any) -> State:
        """Return the state with settings written down."""
        info = {**self.info, "settings": {**self.info.get("settings", {}), **settings}}
        return dataclasses.replace(self, info=info)


def fetch(_: None, settings: Settings) -> State:
    """Read the source, as printed, and join external tables."""
    if settings.source not in SOURCES:
        raise OptionError(f"unknown source {settings.source!r}; there are {', '.join(SOURCES)}")
    studies, provenance = SOURCES[settings.source](settings.data_dir)
    if not studies:
        raise AtlasError(f"source {settings.source}: it holds no study with peaks")
    state = State(studies, provenance, {"joins": []}).after(
        "as printed", studies, 0, f"read from {provenance.name}"
    )
    for join in settings.joins:
        studies, counts = joins.apply(state.studies, join)
        digest = hashlib.sha256(join.path.read_bytes()).hexdigest()
        inputs = {**state.provenance.inputs, join.path.name: digest}
        row = {"file": join.path.name, "field": join.field, "column": join.column, **counts}
        state = dataclasses.replace(
            state,
            studies=studies,
            provenance=dataclasses.replace(state.provenance, inputs=inputs),
            info={**state.info, "joins": [*state.info["joins"], row]},
        )
    return state.noting(source=settings.source)


def clean_stage(state: State, settings: Settings) -> State:
    """Remove repeated peaks and convert what is labelled Talairach."""
    printed, removed, unique, converted = state.studies, [], [], []
    moved = 0
    with progress.track("clean", 2 * len(printed)) as ticker:
        for study in printed:
            clean.check_finite(study)
            once, gone = repeats.drop_repeats(study, settings.duplicates, settings.tolerance_mm)
            in_mni, here = clean.to_mni(once, settings.space_policy)
            unique.append(once)
            converted.append(in_mni)
            removed += gone
            moved += here
            ticker.advance()
        rates = repeats.rates(printed, _evidence_draws(printed), ticker.advance)
    scope = f"repeats an earlier peak of the same {settings.duplicates}"
    state = state.after(
        "repeated peaks removed", unique, len(removed), scope, removed=[*state.removed, *removed]
    )
    state = state.after("Talairach converted to MNI", converted, moved, "labelled TAL; tal2mni")
    return dataclasses.replace(
        state,
        info={**state.info, "repeats": rates},
        logs={**state.logs, "repeats.json": repeats.listing(printed)},
    ).noting(
        duplicates=settings.duplicates,
        tolerance_mm=settings.tolerance_mm,
        space_policy=settings.space_policy,
    )


def _evidence_draws(studies: Sequence[Study]) -> list[np.ndarray]:
    """Return the positions of stratified draws of 1,000 studies, one a seed."""
    if len(studies) < 2 * _EVIDENCE_SIZE:
        return []
    return [
        splits.draw_subset(*_strata(studies), _EVIDENCE_SIZE, seed)
        for seed in range(_EVIDENCE_DRAWS)
    ]


def validate_stage(state: State, settings: Settings) -> State:
    """Drop what lies out of the volume, write down what does not fit, check the metadata."""
    studies = state.studies
    fine, coarse = validate.distance_to_mask(studies, 2), validate.distance_to_mask(studies, 4)
    validate.refuse_wrong_units(studies, coarse)
    mismatches = validate.mismatches(studies, fine)
    kept, removed = validate.drop_outside_all(studies, coarse, settings.max_distance_mm)
    why = "outside the 2 mm MNI152 grid"
    if settings.max_distance_mm is not None:
        why += f", or over {settings.max_distance_mm:g} mm from the brain mask"
    state = state.after(
        "peaks out of the volume removed",
        kept,
        len(removed),
        why,
        removed=[*state.removed, *removed],
        logs={**state.logs, "mismatches.json": [finding.as_json() for finding in mismatches]},
    )
    least = max(settings.min_peaks, 1)
    enough = [
        dataclasses.replace(s, metadata={**s.metadata, "n_peaks": float(len(s.peaks_mm))})
        for s in kept
        if len(s.peaks_mm) >= least
    ]
    if not enough:
        raise AtlasError("no study has a peak inside the brain" if least == 1 else
                         f"no study has {least} peaks inside the brain")  # fmt: skip
    validate.check_records(enough)
    few = "without peaks" if least == 1 else f"with fewer than {least} peaks"
    return state.after(
        f"studies {few} dropped", enough, len(kept) - len(enough), "nothing to learn from"
    ).noting(max_distance_mm=settings.max_distance_mm, min_peaks=least)


def split_stage(state: State, settings: Settings) -> tuple[State, dict[str, list[str]]]:
    """Draw the subset, find the twins, split by study."""
    everything = state.studies
    summaries = {"everything": summary.summarise(everything)}
    if settings.subset is not None:
        rows = splits.draw_subset(*_strata(everything), settings.subset, settings.seed)
        chosen = [everything[row] for row in rows]
        summaries["subset"] = summary.summarise(chosen)
        state = state.after(
            f"subset of {len(chosen)} drawn",
            chosen,
            len(everything) - len(chosen),
            "stratified by year and number of peaks",
        )
    studies = state.studies
    ids, years, counts = _strata(studies)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    pairs = twins.pairs(np.concatenate([s.peaks_mm for s in studies]), offsets)
    if settings.splits is not None:
        drawn = splits.inherit(ids, splits.read(settings.splits))
    else:
        drawn = splits.draw(ids, years, counts, twins.groups(pairs, len(ids)), settings.seed)
    empty = [name for name in splits.SPLITS if not drawn[name]]
    if empty:
        raise AtlasError(f"{len(studies)} studies are too few: the {empty[0]} split would be empty")
    inherited = None
    if settings.splits is not None:
        inherited = hashlib.sha256(settings.splits.read_bytes()).hexdigest()
    state = dataclasses.replace(
        state,
        info={**state.info, "summary": summaries, "twins": len(pairs)},
        logs={**state.logs, "twins.json": twins.names(pairs, ids)},
    ).noting(subset=settings.subset, seed=settings.seed, splits_sha256=inherited)
    return state, drawn


def _strata(studies: Sequence[Study]) -> tuple[list[str], list[float | None], list[int]]:
    years = [s.metadata.get("year") for s in studies]
    known = [float(y) if isinstance(y, int | float) else None for y in years]
    return [s.id for s in studies], known, [len(s.peaks_mm) for s in studies]


_BEFORE: dict[str, Callable[[Any, Settings], State]] = {
    "fetch": fetch,
    "clean": clean_stage,
    "validate": validate_stage,
}
STAGES = (*_BEFORE, "split")


def prepare(settings: Settings, out: Path) -> dataset.Dataset:
    """Make a dataset folder from a source: all four stages.

    Raises
    ------
    AtlasError
        Whatever is wrong with the source's files, the settings or `out`.
    """
    state: Any = None
    for stage in _BEFORE.values():
        state = stage(state, settings)
    return _finish(state, settings, out)


def run_stage(stage: str, settings: Settings, out: Path) -> Path:
    """Run one stage on what the stage before left in ``OUT.stages``; returns the folder written."""
    position = STAGES.index(stage)
    state = _read_state(stage_folder(out, STAGES[position - 1])) if position else None
    if stage == "split":
        assert state is not None
        return _finish(state, settings, out).path
    folder = stage_folder(out, stage)
    _write_state(folder, _BEFORE[stage](state, settings))
    return folder


def stage_folder(out: Path, stage: str) -> Path:
    """Where a stage run by itself writes."""
    return out.with_name(f"{out.name}.stages") / stage


def _finish(state: State, settings: Settings, out: Path) -> dataset.Dataset:
    state, drawn = split_stage(state, settings)
    return dataset.write(
        out, state.studies, drawn, state.provenance, state.logs, state.removed, **state.info
    )


def _write_state(folder: Path, state: State) -> None:
    with building(folder) as work:
        records.write(work, state.studies, FieldTable())
        records.write_findings(work / dataset.REMOVED, state.removed)
        content = {
            "fields": FieldTable().snapshot(),
            "source": dataclasses.asdict(state.provenance),
            "info": state.info,
            "logs": state.logs,
        }
        (work / "state.json").write_text(json.dumps(content, indent=1))


def _read_state(folder: Path) -> State:
    stage = folder.name
    try:
        content = json.loads((folder / "state.json").read_text())
        fields = FieldTable.from_snapshot(content["fields"])
        return State(
            records.read(folder, fields),
            Provenance(**content["source"]),
            content["info"],
            content["logs"],
            records.read_findings(folder / dataset.REMOVED),
        )
    except FileNotFoundError:
        raise AtlasError(f"{folder}: not there; run --stage {stage} first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise AtlasError(f"{folder}: damaged ({error}); run --stage {stage} again") from None
