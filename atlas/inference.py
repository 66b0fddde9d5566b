"""Atlas: a trained model to ask. Codes and metadata in, NIfTI maps out.

Maps are in units of the uniform density: 1 is a place where peaks are as likely as anywhere in
the brain, 3 one where they are three times as likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from nibabel import Nifti1Image

from . import model_file, space
from .data.batches import splat_studies
from .errors import AtlasError
from .metadata import Field, FieldTable, Value
from .models.model import Model
from .objectives import relative_density

UNIT = "times the uniform density"
Metadata = Mapping[str, object]


class Code(NamedTuple):
    """A posterior over the latent space: mean and standard deviation, (D,) or (B, D) float32."""

    mean: np.ndarray
    sd: np.ndarray


class Maps(NamedTuple):
    """What a code decodes to.

    Attributes
    ----------
    mean : Nifti1Image
        Density of peaks, in units of the uniform density; 4-D for a batch of codes.
    sd : Nifti1Image
        Standard deviation of one study's smoothed map around it, in the same units.
    imputed : dict
        What the model filled in for each missing field, of the first code.
    extrapolated : tuple of str
        Fields whose value lies outside the range seen in training.
    """

    mean: Nifti1Image
    sd: Nifti1Image
    imputed: dict[str, Any]
    extrapolated: tuple[str, ...]


class Point(NamedTuple):
    """A code and complete metadata, ready to decode.

    Attributes
    ----------
    z_BD, m_BM : float32 tensors
        Codes and metadata vectors; missing fields hold their imputed means.
    imputed : dict
        What was filled in for each missing field, of the first code.
    extrapolated : tuple of str
        As in `Maps`.
    """

    z_BD: torch.Tensor
    m_BM: torch.Tensor
    imputed: dict[str, Any]
    extrapolated: tuple[str, ...]


class Counterfactual(NamedTuple):
    """The same code under two sets of metadata, and the difference of the maps (second - first)."""

    factual: Maps
    counterfactual: Maps
    difference: Nifti1Image


class Atlas:
    """A trained model.

    Attributes
    ----------
    card : atlas.model_file.Card
        Architecture, fields, what training saw.
    """

    def __init__(self, model: Model, card: model_file.Card) -> None:
        self._model, self.card = model.eval(), card
        self._fields, self._space = card.table(), space.load(card.data.resolution)

    @classmethod
    def load(cls, run: str | Path | None = None) -> Atlas:
        """Load a run's model: model.safetensors and model.json, nothing else.

        Parameters
        ----------
        run : str or Path, optional
            A run folder, as `atlas train` writes it; by default the released model, which ships
            with the package.

        Raises
        ------
        AtlasError
            The folder holds no model, or a damaged one.
        """
        return cls(*model_file.read(Path(run) if run is not None else model_file.released()))

    @property
    def latent(self) -> int:
        """D, the number of latent directions."""
        return self.card.model.latent

    @property
    def space(self) -> space.Space:
        """Grid and mask of the maps."""
        return self._space

    @property
    def fields(self) -> FieldTable:
        """The table of fields that the model was trained with."""
        return self._fields

    # ------------------------------------------------------------------ metadata

    def _why_not(self, name: str) -> str | None:
        """Say why this model cannot be conditioned on a field; None where it can."""
        if not self._model.conditional:
            return "this model takes no metadata"
        used = self.card.used[name]
        if used.studies == 0:
            return "never observed in this model's training"
        if used.low is not None and used.low == used.high:
            return f"always {used.low:g} in this model's training"
        return None

    def field(self, name: str) -> Field:
        """Return the row of a field that can be set; AtlasError says why another cannot."""
        field: Field = self._fields[name]
        why_not = self._why_not(name)
        if why_not:
            raise AtlasError(f"{name}: {why_not}, cannot be set")
        return field

    def _metadata(self, m: Metadata | None) -> dict[str, Value]:
        """Check metadata: known fields, varied in training, legal values. Missing ones drop out."""
        items = (m or {}).items()
        return {name: self.field(name).check(v) for name, v in items if v is not None}

    def usable(self, m: Metadata) -> dict[str, object]:
        """Return a study's metadata without what is missing or what this model cannot use."""
        return {k: v for k, v in m.items() if v is not None and self._why_not(k) is None}

    def extrapolated(self, m: Metadata | None) -> tuple[str, ...]:
        """Return the fields whose value lies outside the range seen in training."""
        out = []
        for name, value in self._metadata(m).items():
            used = self.card.used[name]
            if isinstance(value, dict) or used.low is None or used.high is None:
                continue
            if not used.low <= value <= used.high:
                out.append(name)
        return tuple(out)

    def _vector(self, m: Metadata | None, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        vector, observed = self._fields.encode(m or {})
        return tuple(torch.from_numpy(x).expand(size, -1) for x in (vector, observed))  # type: ignore[return-value]

    @torch.no_grad()
    def _fill(self, z_BD: torch.Tensor, m: Metadata | None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Complete the metadata with the imputed means; describe them for the first code."""
        m_BM, kept_BM = self._vector(self._metadata(m), len(z_BD))
        mean_BM, log_variance_BM = self._model.impute(z_BD, m_BM, kept_BM)
        filled_BM = torch.where(kept_BM > 0, m_BM, mean_BM)
        imputed: dict[str, Any] = {}
        for field in self._fields:
            part = self._fields.slices[field.name]
            if float(kept_BM[0, part][0]) > 0 or self._why_not(field.name):
                continue
            value = field.decode(mean_BM[0, part].numpy())
            if isinstance(value, dict):
                imputed[field.name] = {"weights": value}
            else:
                sd = float(torch.exp(0.5 * log_variance_BM[0, part][0])) * field.spread
                imputed[field.name] = {"mean": value, "sd": sd * value if field.log else sd}
        return filled_BM, imputed

    # ------------------------------------------------------------------ codes

    def _codes(self, z: Any) -> tuple[torch.Tensor, bool]:
        """Return codes as (B, D) and whether a single one was given."""
        if z is None:
            z = np.zeros(self.latent)
        array = _numbers(z.mean if isinstance(z, Code) else z, "z").astype(np.float32)
        single = array.ndim == 1
        array = np.atleast_2d(array)
        if array.ndim != 2 or array.shape[1] != self.latent or not len(array):
            raise AtlasError(f"z: this model's codes have {self.latent} numbers, got {array.shape}")
        if not np.isfinite(array).all():
            raise AtlasError("z: holds a number that is not finite")
        return torch.from_numpy(array), single

    @torch.no_grad()
    def encode(self, source: Any, m: Metadata | None = None) -> Code:
        """Find the code of a study.

        Parameters
        ----------
        source : (P, 3) array-like of MNI mm, NiMARE Studyset, or Niimg-like (image or path)
            A Studyset gives one code for each study with peaks, in its order; an image enters
            through its local maxima (`peaks_of_image`).
        m : mapping, optional
            What is known of the study.

        Returns
        -------
        Code
            Posterior mean and standard deviation, (D,), or (B, D) for a Studyset.
        """
        studies, single = _peaks_of(source)
        code = self.encode_studies(studies, [self._metadata(m)] * len(studies))
        return Code(code.mean[0], code.sd[0]) if single else code

    @torch.no_grad()
    def encode_studies(self, peaks: Sequence[np.ndarray], metadata: Sequence[Metadata]) -> Code:
        """Find the codes of studies, each with metadata of its own, (B, D).

        Parameters
        ----------
        peaks : sequence of (P, 3) arrays, MNI mm
        metadata : sequence of mappings
            What is known of each.
        """
        fwhm = self.card.data.fwhm[0]
        volume = splat_studies(peaks, np.full(len(peaks), fwhm), self._space.grid)
        known = [self._fields.encode({**self._metadata(m), "fwhm": fwhm}) for m in metadata]
        m_BM, kept_BM = (torch.from_numpy(np.stack(rows)) for rows in zip(*known))
        mean, log_variance = self._model.encode(volume, m_BM, kept_BM)
        return Code(mean.numpy(), torch.exp(0.5 * log_variance).numpy())

    # ------------------------------------------------------------------ maps

    def point(self, z: Any = None, m: Metadata | None = None) -> Point:
        """Complete the metadata of codes; arguments as of `decode`."""
        z_BD, _ = self._codes(z)
        return Point(z_BD, *self._fill(z_BD, m), self.extrapolated(m))

    def pair(self, z: Any, m: Metadata | None, changes: Metadata) -> tuple[Point, Point]:
        """Complete the metadata of one code under m, and under m with changes.

        Only the named fields move: what m lacks is imputed once, under m, for both. A field whose
        change is None goes back to the imputer.
        """
        z_BD, single = self._codes(z)
        if not single:
            raise AtlasError("a counterfactual takes one code")
        for name in changes:
            self._fields[name]  # AtlasError for an unknown one, whatever its value
        m = self._metadata(m)
        left = self.point(z, m)
        vector_BM, changed_BM = self._vector(self._metadata(changes), 1)
        moved_BM = torch.where(changed_BM > 0, vector_BM, left.m_BM)
        imputed = {name: x for name, x in left.imputed.items() if changes.get(name) is None}
        freed = [name for name, value in changes.items() if value is None and name in m]
        if freed:
            without_BM, again = self._fill(z_BD, {k: v for k, v in m.items() if k not in freed})
            for name in freed:
                part = self._fields.slices[name]
                moved_BM[:, part], imputed[name] = without_BM[:, part], again[name]
        beyond = self.extrapolated({**m, **changes})
        return left, Point(z_BD, moved_BM, imputed, beyond)

    @torch.no_grad()
    def imputation(self, z_BD: torch.Tensor, m: Metadata | None) -> tuple[torch.Tensor, ...]:
        """Return mean and log variance of the metadata vector, (B, M), and what is free in it.

        The third, (M,) bool, marks the elements of fields that m lacks and that the model uses.
        """
        known_BM, kept_BM = self._vector(self._metadata(m), len(z_BD))
        mean_BM, log_variance_BM = self._model.impute(z_BD, known_BM, kept_BM)
        free_M = torch.zeros(self._fields.width, dtype=torch.bool)
        for field in self._fields:
            if (m or {}).get(field.name) is None and self._why_not(field.name) is None:
                free_M[self._fields.slices[field.name]] = True
        return torch.where(kept_BM > 0, known_BM, mean_BM), log_variance_BM, free_M

    @torch.no_grad()
    def cells(self, z_BD: torch.Tensor, m_BM: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Decode complete points to mean and sd over the mask's cells, (B, V) float32 each."""
        decoded = self._model.decode(z_BD, m_BM)
        mean_BV = relative_density(decoded).numpy()
        if not np.isfinite(mean_BV).all():
            raise AtlasError(
                "the decoded map is not finite: the code is absurd or the model damaged"
            )
        return mean_BV, torch.exp(0.5 * decoded.log_variance_BV).numpy()

    def _maps(self, point: Point, single: bool) -> Maps:
        volumes = (self._space.volume(v) for v in self.cells(point.z_BD, point.m_BM))
        mean, sd = (self._space.image(v[0] if single else np.moveaxis(v, 0, -1)) for v in volumes)
        return Maps(mean, sd, point.imputed, point.extrapolated)

    @torch.no_grad()
    def decode(self, z: Any = None, m: Metadata | None = None) -> Maps:
        """Decode codes under metadata.

        Parameters
        ----------
        z : (D,) or (B, D) array-like, or Code, optional
            Without it the centre of the prior, 0.
        m : mapping, optional
            Value by field name; a number, a category, or weights by category. Fields that are
            None or absent are imputed.

        Returns
        -------
        Maps
            3-D images for one code, 4-D for a batch.

        Raises
        ------
        AtlasError
            Wrong length of z; unknown field or category, value out of range, field that training
            never observed.
        """
        return self._maps(self.point(z, m), self._codes(z)[1])

    @torch.no_grad()
    def decode_array(
        self, z: Any = None, metadata: Metadata | None = None, quantity: str = "mean"
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Decode one code to a bare (X, Y, Z) float32 array, and what was imputed.

        Parameters
        ----------
        quantity : {"mean", "sd"}
            As the fields of `Maps`.
        """
        if quantity not in ("mean", "sd"):
            raise AtlasError(f"quantity: mean or sd, got {quantity!r}")
        point = self.point(self._codes(z)[0][0].numpy(), metadata)
        mean_BV, sd_BV = self.cells(point.z_BD, point.m_BM)
        return self._space.volume((mean_BV if quantity == "mean" else sd_BV)[0]), point.imputed

    @torch.no_grad()
    def counterfactual(self, z: Any, m: Metadata | None, changes: Metadata) -> Counterfactual:
        """Decode the same code under m and under m with changes.

        Only the named fields move: what m lacks is imputed once, under m, for both maps. A field
        whose change is None goes back to the imputer.
        """
        left, right = (self._maps(point, True) for point in self.pair(z, m, changes))
        difference = right.mean.get_fdata() - left.mean.get_fdata()
        return Counterfactual(left, right, self._space.image(difference))

    def traverse(
        self, direction: int, values: Sequence[float], z: Any = None, m: Metadata | None = None
    ) -> Maps:
        """Decode codes that differ in one latent direction; one map a value along the 4th axis."""
        z_BD, single = self._codes(z)
        if not single or direction not in range(self.latent):
            raise AtlasError(f"traverse takes one code and a direction below {self.latent}")
        codes = z_BD.numpy().repeat(len(values), axis=0)
        codes[:, direction] = values
        return self.decode(codes, m)

    def interpolate(self, a: Any, b: Any, steps: int = 7, m: Metadata | None = None) -> Maps:
        """Decode the line between two codes, both ends included, along the 4th axis."""
        if steps < 2:
            raise AtlasError(f"steps: an interpolation has at least 2, got {steps}")
        ends = torch.cat([self._codes(a)[0][:1], self._codes(b)[0][:1]]).numpy()
        share = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
        return self.decode((1 - share) * ends[0] + share * ends[1], m)

    # ------------------------------------------------------------------ description

    def describe(self) -> dict[str, Any]:
        """Describe the model as plain data: what a page needs to build its controls."""
        order = np.argsort(self.card.latent_activity)[::-1]
        return {
            "name": self.card.name,
            "version": self.card.atlas_version,
            "unit": UNIT,
            "conditioned": any(self._why_not(field.name) is None for field in self._fields),
            "latent": {
                "size": self.latent,
                "directions": [
                    {
                        "index": int(k),
                        "activity": round(self.card.latent_activity[k], 5),
                        "sd": round(self.card.latent_sd[k], 5),
                    }
                    for k in order
                ],
            },
            "fields": [self._describe_field(field) for field in self._fields],
            "grid": {
                "shape": list(self._space.grid.shape),
                "affine": [list(row) for row in self._space.grid.affine],
            },
            "display": dict(zip(("low", "high"), self.card.display)),
        }

    def _describe_field(self, field: Any) -> dict[str, Any]:
        used, number = self.card.used[field.name], field.kind == "number"
        reason = self._why_not(field.name)
        return {
            "name": field.name,
            "label": field.label,
            "kind": field.kind,
            "unit": field.unit or None,
            "low": field.low if number else None,
            "high": field.high if number else None,
            "step": None if not number else (0.1 if field.high < 20 else 1),
            "scale": "log" if field.log else "linear",
            "categories": None
            if number
            else [{"value": c, "label": c.replace("_", " ")} for c in field.categories],
            "available": reason is None,
            "reason": reason,
            "trained": [used.low, used.high] if number and reason is None else None,
            "help": field.how,
        }


def peaks_of_image(image: Any, threshold: float | None = None, most: int = 100) -> np.ndarray:
    """Find the local maxima of a statistic map, strongest first.

    Parameters
    ----------
    image : Niimg-like
        A 3-D image or its path, in MNI space.
    threshold : float, optional
        Only maxima above it; by default the 95th percentile of the positive voxels.
    most : int
        At most this many.

    Returns
    -------
    (P, 3) float64 array, MNI mm
        Voxels that are the largest of their 5 x 5 x 5 neighbourhood.
    """
    image = _load_image(image)
    volume = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32), posinf=0, neginf=0)
    if volume.ndim != 3:
        raise AtlasError(f"image: expected three dimensions, got {volume.ndim}")
    if not (volume > 0).any():
        raise AtlasError("image: has no positive voxel")
    if threshold is None:
        threshold = float(np.quantile(volume[volume > 0], 0.95))
    field = torch.from_numpy(volume)[None, None]
    largest = torch.nn.functional.max_pool3d(field, 5, stride=1, padding=2)[0, 0].numpy()
    ijk = np.argwhere((volume == largest) & (volume >= threshold))
    order = np.argsort(volume[tuple(ijk.T)], kind="stable")[::-1][:most]
    return nibabel.affines.apply_affine(image.affine, ijk[order])


def _load_image(image: Any) -> Any:
    if not isinstance(image, str | Path):
        return image
    try:
        return nibabel.load(image)
    except (OSError, nibabel.filebasedimages.ImageFileError) as error:
        raise AtlasError(f"{image}: cannot be read as an image ({error})") from None


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise AtlasError(f"{name}: expected numbers in rows of equal length") from None


def _peaks_of(source: Any) -> tuple[list[np.ndarray], bool]:
    """Turn whatever `encode` takes into a list of (P, 3) arrays, and whether it is one study."""
    if hasattr(source, "coordinates") and hasattr(source, "studies"):
        return [_checked(peaks, name) for name, peaks in _peaks_of_studyset(source)], False
    if isinstance(source, str | Path) or hasattr(source, "dataobj"):
        return [_checked(peaks_of_image(source), "image")], True
    return [_checked(_numbers(source, "peaks"), "peaks")], True


def _checked(peaks: np.ndarray, name: str) -> np.ndarray:
    """Refuse what is no list of peaks, or has none in the volume."""
    if peaks.ndim != 2 or peaks.shape[1] != 3 or len(peaks) == 0:
        raise AtlasError(f"{name}: expected an array (P, 3) of MNI mm, got shape {peaks.shape}")
    bad = np.flatnonzero(~np.isfinite(peaks).all(axis=1))
    if len(bad):
        raise AtlasError(f"{name}: row {bad[0] + 1} is not finite: {peaks[bad[0]].tolist()}")
    if not space.load(2).inside(peaks).any():
        raise AtlasError(f"{name}: no peak lies in the MNI volume; are they in mm?")
    return peaks


def _peaks_of_studyset(studyset: Any) -> list[tuple[str, np.ndarray]]:
    """Name and peaks of each study, converted to MNI by label where NiMARE has not done it."""
    from .contracts import Study
    from .data.clean import to_mni

    out = []
    for study_id, rows in studyset.coordinates.groupby("study_id", sort=False):
        labels = tuple(str(label).upper() for label in rows["space"])
        peaks = rows[["x", "y", "z"]].to_numpy(dtype=float)
        study = Study(str(study_id), "", peaks, labels)
        out.append((f"study {study_id}", to_mni(study, "label")[0].peaks_mm))
    if not out:
        raise AtlasError("studyset: has no study with peaks")
    return out
