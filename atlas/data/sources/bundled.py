"""The studyset that NiMARE's wheel carries: n-back and flanker studies, no network needed.

320 publications, 906 analyses, 9,492 peaks from NeuroStore's 2026-07 release, with task names,
sample sizes and ages extracted from the texts; no publication year.
"""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.contracts import Study
from atlas.errors import AtlasError, require
from atlas.metadata import Value

from ._provenance import Provenance, sha256

if TYPE_CHECKING:
    import pandas as pd

NAME = "nback_vs_flanker_studyset_2026-07"

# One row a task category: a study's weights are the shares of its task names that match. The
# first row that matches wins, so that an "emotional n-back task" counts as working memory.
TASK_PATTERNS: tuple[tuple[str, str], ...] = (
    ("working_memory", r"back\b|working memory|\bwm\b|sternberg|serial addition|number comparison"),
    (
        "attention_control",
        r"flanker|eri[ck]s[eo]n|stroop|simon|go.?no.?go|stop.?signal|stop task|nogo|interference"
        r"|conflict|attention|posner|vigilance|alertness|target detection|compatibility|\bsrc\b"
        r"|flexibility|switch",
    ),
    ("resting_state", r"resting"),
    ("reward_decision", r"reward|gambl|incentive|delay|approach.avoidance|decision"),
    ("emotion", r"emotion|affect|fear|face"),
    ("language", r"language|semantic|word|fluency|phonolog|reading|speech"),
    ("memory", r"memory|recollection|encoding|retrieval|recognition"),
    ("social", r"social|self|theory of mind|mentali"),
    ("auditory", r"auditory|listening|sound"),
    ("motor", r"motor|movement|tapping|ankle"),
    ("visual", r"visual|figure|object|spatial"),
    ("pain_somatosensory", r"pain|tactile|somatosens"),
)
_TASK_NAME = re.compile(r"TaskExtractor\.fMRITasks\[\d+\]\.TaskName")
_GROUP = re.compile(r"(ParticipantDemographicsExtractor\.groups\[\d+\])\.count")


def read(data_dir: Path | None = None) -> tuple[list[Study], Provenance]:
    """Read the studyset through NiMARE's public API.

    Parameters
    ----------
    data_dir : Path, optional
        A folder that holds the studyset in place of the one inside NiMARE.

    Raises
    ------
    AtlasError
        If NiMARE is not installed, or the folder holds no studyset that NiMARE can read.
    """
    nimads = require("nimare.nimads", "data")
    logging.getLogger("nimare").setLevel(logging.WARNING)
    folder = Path(data_dir) if data_dir else _inside_nimare()
    if not (folder / "studyset.json").is_file():
        raise AtlasError(f"{folder}: holds no studyset.json; is it a NiMARE studyset folder?")
    try:
        # target=None: as printed; NiMARE's default would convert by label already.
        studyset = nimads.Studyset.from_parquet(str(folder), target=None)
        coordinates, metadata = studyset.coordinates, _metadata(studyset.annotations_df)
        titles = {str(study.id): study.name for study in studyset.studies}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AtlasError(f"{folder}: cannot be read as a NiMARE studyset: {error}") from None
    nothing = coordinates.iloc[:0]  # a study may report no peak
    peaks = {str(study_id): rows for study_id, rows in coordinates.groupby("study_id", sort=False)}
    studies = [
        Study(
            id=study_id,
            title=titles[study_id] or "",
            peaks_mm=peaks.get(study_id, nothing)[["x", "y", "z"]].to_numpy(dtype=float),
            peak_space=tuple(str(x).upper() for x in peaks.get(study_id, nothing)["space"]),
            metadata=metadata.get(study_id, {}),
        )
        for study_id in titles
    ]
    provenance = Provenance(
        name=NAME,
        version=str(require("nimare", "data").__version__),
        licence="extracted from the literature by NeuroStore; carried by NiMARE (MIT)",
        inputs=sha256(p for p in folder.iterdir() if p.suffix in {".parquet", ".json"}),
    )
    return studies, provenance


def glance() -> int:
    """Return how many studies there are, without the seconds that importing NiMARE takes."""
    spec = find_spec("nimare")
    if spec is None or spec.origin is None:
        return 0
    path = Path(spec.origin).parent / "resources" / NAME / "studies.parquet"
    if not path.is_file():
        return 0
    return int(require("pyarrow.parquet", "data").read_metadata(path).num_rows)


def _inside_nimare() -> Path:
    return Path(require("nimare.utils", "data").get_resource_path()) / NAME


def _metadata(annotations: pd.DataFrame) -> dict[str, dict[str, Value | None]]:
    """Return task, n and age by study, from the few columns of the 929 that say so."""
    task_columns = [c for c in annotations.columns if _TASK_NAME.fullmatch(c)]
    groups = [m[1] for c in annotations.columns if (m := _GROUP.fullmatch(c))]
    wanted = {f"{g}.{key}" for g in groups for key in ("count", "age_mean", "imaging_sample")}
    columns = ["study_id", *task_columns, *sorted(wanted & set(annotations.columns))]
    # Annotations stand once an analysis; those of one study agree.
    first = annotations[columns].drop_duplicates("study_id").set_index("study_id")
    out: dict[str, dict[str, Value | None]] = {}
    for study_id, row in first.iterrows():
        values = row.dropna().to_dict()
        n, age = _sample(values, groups)
        names = [str(values[c]) for c in task_columns if c in values]
        out[str(study_id)] = {"task": task_weights(names), "n": n, "age": age}
    return out


def task_weights(names: list[str]) -> Value | None:
    """Turn a study's task names into weights over the task categories; None where none matches."""
    found = [
        next((task for task, pattern in TASK_PATTERNS if re.search(pattern, name.lower())), None)
        for name in names
    ]
    known = [task for task in found if task is not None]
    return {task: known.count(task) / len(known) for task in sorted(set(known))} or None


def _sample(row: dict[Any, Any], groups: list[str]) -> tuple[float | None, float | None]:
    """Return participants in all imaged groups, and their mean age where every group says it."""
    counts: list[float] = []
    ages: list[float] = []
    for group in groups:
        count = float(row.get(f"{group}.count", 0))
        if count <= 0 or str(row.get(f"{group}.imaging_sample", "yes")).lower() == "no":
            continue
        counts.append(count)
        if f"{group}.age_mean" in row:
            ages.append(float(row[f"{group}.age_mean"]))
    if not counts:
        return None, None
    total = sum(counts)
    if len(ages) < len(counts):
        return total, None
    return total, sum(c * a for c, a in zip(counts, ages)) / total
