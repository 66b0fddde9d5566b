"""Maps on disk: NIfTI with a JSON sidecar that says what they are; whole files or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nibabel import Nifti1Image

from .errors import OptionError
from .files import replacing, write_text
from .inference import UNIT, Atlas, Counterfactual, Maps

SUFFIXES = (".nii.gz", ".nii")


def write(
    path: Path, maps: Maps, atlas: Atlas, metadata: Mapping[str, Any], **facts: Any
) -> list[Path]:
    """Write a map, its uncertainty (``_sd``) and a sidecar (``.json``) beside it.

    Parameters
    ----------
    path : Path
        Ends in .nii.gz or .nii.
    facts
        Whatever else the sidecar should hold.

    Returns
    -------
    list of Path
        What was written: map, uncertainty, sidecar.
    """
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    stem = path.name.removesuffix(suffix or "")
    if not suffix or not stem:
        raise OptionError(f"{path}: a map's name ends in .nii.gz or .nii")
    path.parent.mkdir(parents=True, exist_ok=True)
    sd, sidecar = path.with_name(f"{stem}_sd{suffix}"), path.with_name(f"{stem}.json")
    _save_image(maps.mean, path)
    _save_image(maps.sd, sd)
    said = {
        "unit": UNIT,
        "space": "MNI152NLin6Asym",
        "resolution_mm": atlas.card.data.resolution,
        "model": atlas.card.name,
        "atlas_version": atlas.card.atlas_version,
        "dataset": atlas.card.dataset,
        "metadata": dict(metadata),
        "imputed": maps.imputed,
        "extrapolated": list(maps.extrapolated),
        **facts,
    }
    write_text(sidecar, json.dumps(said, indent=1))
    return [path, sd, sidecar]


def write_counterfactual(
    folder: Path,
    result: Counterfactual,
    atlas: Atlas,
    study: str,
    metadata: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> list[Path]:
    """Write the factual and the counterfactual map, with sidecars, and their difference."""
    prefix = f"space-MNI152NLin6Asym_res-{atlas.card.data.resolution}"

    def name(description: str) -> Path:
        return folder / f"{prefix}_desc-{description}_stat-density_statmap.nii.gz"

    facts = {"study": study, "changes": dict(changes)}
    known = {key: value for key, value in metadata.items() if value is not None}
    written = write(name("factual"), result.factual, atlas, known, **facts)
    written += write(
        name("counterfactual"), result.counterfactual, atlas, {**known, **changes}, **facts
    )
    _save_image(result.difference, name("difference"))
    return [*written, name("difference")]


def _save_image(image: Nifti1Image, path: Path) -> None:
    with replacing(path) as work:
        image.to_filename(work)
