"""Studies drawn from a known intensity, as an ordinary dataset folder.

    intensity = base map x exp(what is the study's own + effects of its metadata)

A study is a Poisson number of peaks from its intensity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atlas import space
from atlas.contracts import Study
from atlas.data import dataset as dataset_module
from atlas.data import splits
from atlas.data.dataset import Dataset
from atlas.data.sources import Provenance
from atlas.metadata import FieldTable, Value

RESOLUTION = 4  # mm, of the cells that peaks are drawn from
FLOOR = 0.5  # of the base map, in units of its places' height
Metadata = Mapping[str, Value | None]


class Effect(NamedTuple):
    """A field that changes the log intensity around a place.

    Attributes
    ----------
    field : str
    place_mm : (x, y, z), MNI mm
    gain : float
        What is added to the log intensity at the place, times the field's weight: a category's
        own weight, a number in the units of `atlas.metadata` (field strength: 1 a tesla), or 1
        inside `within` and 0 outside.
    category : str
        Of a category field.
    within : (low, high), optional
        Of a number, both ends included.
    fwhm : float
        Of the place, mm.
    """

    field: str
    place_mm: tuple[float, float, float]
    gain: float
    category: str = ""
    within: tuple[float, float] | None = None
    fwhm: float = 32.0

    def weight(self, metadata: Metadata, fields: FieldTable) -> float:
        """Return the field's weight for a study; 0 where it is missing."""
        value = metadata.get(self.field)
        if value is None:
            return 0.0
        if isinstance(value, dict):
            return value.get(self.category, 0.0)
        if self.within:
            return float(self.within[0] <= value <= self.within[1])
        return float(fields[self.field].encode(value)[0])


EFFECTS = (
    Effect("task", (-46, 18, 14), 2.5, "language"),  # left inferior frontal
    Effect("task", (-56, -42, 10), 2.5, "language"),  # left posterior temporal
    Effect("field_strength", (-12, -20, 6), 0.9),  # left thalamus
)
YEARS = (1998, 2017)
YEAR_EFFECTS = tuple(  # a place of its own for every two years
    Effect("year", place, 2.5, within=(first, first + 1))
    for first, place in zip(
        range(YEARS[0], YEARS[1] + 1, 2),
        [
            (-38, 44, 20), (38, 44, 20), (-44, -4, 46), (44, -4, 46), (-32, -62, 48),
            (32, -62, 48), (-24, -90, 4), (24, -90, 4), (-28, -60, -26), (28, -60, -26),
        ],
    )
)  # fmt: skip
TASKS = ("language", "motor", "visual", "emotion")  # drawn; those without an effect are nulls


@dataclass(frozen=True)
class Design:
    """What to simulate.

    Attributes
    ----------
    studies : int
    peaks : float
        Expected number for a study of 20 participants.
    growth : float
        Exponent of the sample size in the number of peaks.
    effects : tuple of Effect
    variation : int
        Places at which studies differ for no reason in their metadata (log intensity, sd 1).
    seed : int
    """

    studies: int = 320
    peaks: float = 60.0
    growth: float = 0.5
    effects: tuple[Effect, ...] = EFFECTS
    variation: int = 8
    seed: int = 0


# Enough peaks for a region of the size of a place to say what happens there.
STANDARD = Design(studies=1600, peaks=400.0)
WITH_YEARS = Design(studies=800, peaks=400.0, effects=(*EFFECTS, *YEAR_EFFECTS))


class Truth:
    """The intensity that a simulation drew from.

    Attributes
    ----------
    design : Design
    log_base_V : (V,) float64 ndarray
    own_V : dict
        What each study adds to it for itself, (V,) float64, by id.
    """

    def __init__(self, design: Design) -> None:
        self.design, self.fields = design, FieldTable()
        self._centres = space.load(RESOLUTION).centres_mm
        rng = np.random.default_rng([design.seed, 0])
        base = sum(self._place(self._somewhere(rng), 36.0) for _ in range(24))
        self.log_base_V = np.log(FLOOR + base)
        self._variation = [self._place(self._somewhere(rng), 36.0) for _ in range(design.variation)]
        self._places = [self._place(e.place_mm, e.fwhm) for e in design.effects]
        self.own_V: dict[str, np.ndarray] = {}

    def _somewhere(self, rng: np.random.Generator) -> np.ndarray:
        return self._centres[rng.integers(len(self._centres))]

    def _place(self, centre_mm: Sequence[float] | np.ndarray, fwhm: float) -> np.ndarray:
        """Gaussian around a point, 1 at its centre, (V,)."""
        squared = np.square(self._centres - np.asarray(centre_mm)).sum(1)
        return np.exp(-4 * math.log(2) * squared / fwhm**2)

    def draw_own(self, study_id: str, rng: np.random.Generator) -> None:
        """Draw what a study adds to the log intensity for itself."""
        weights = rng.normal(size=len(self._variation))
        own = np.zeros(len(self.log_base_V))
        self.own_V[study_id] = sum((w * p for w, p in zip(weights, self._variation)), own)

    def effect(self, metadata: Metadata) -> np.ndarray:
        """Sum what metadata add to the log intensity, (V,)."""
        out = np.zeros(len(self.log_base_V))
        for effect, place in zip(self.design.effects, self._places):
            out += effect.gain * effect.weight(metadata, self.fields) * place
        return out

    def density(self, study_id: str, metadata: Metadata) -> np.ndarray:
        """Density of a study's peaks had it these metadata, (V,), summing to 1."""
        log = self.log_base_V + self.own_V[study_id] + self.effect(metadata)
        p = np.exp(log - log.max())
        return p / p.sum()

    def expected_peaks(self, n: float) -> float:
        """Return the expected number of peaks at a sample size."""
        return float(self.design.peaks * (n / 20) ** self.design.growth)


def simulate(path: Path, design: Design = STANDARD) -> tuple[Dataset, Truth]:
    """Draw studies and write them as a dataset folder.

    Every study has a task, year, sample size, age and field strength, drawn independently; its
    peaks lie in the 4 mm cells of the brain mask, anywhere inside the cell.

    Parameters
    ----------
    path : Path
        The dataset folder.
    design : Design

    Returns
    -------
    Dataset
        What was written, split 70/15/15.
    Truth
        What it was drawn from.
    """
    truth = Truth(design)
    studies = [_study(f"planted-{k:05d}", truth, k) for k in range(design.studies)]
    years = [s.metadata["year"] for s in studies]
    sides = splits.draw(
        [s.id for s in studies],
        years,  # type: ignore[arg-type]
        [len(s.peaks_mm) for s in studies],
        seed=design.seed,
    )
    provenance = Provenance("planted effects", "1", "simulated", {})
    return dataset_module.write(path, studies, sides, provenance, funnel={}), truth


def _study(study_id: str, truth: Truth, k: int) -> Study:
    rng = np.random.default_rng([truth.design.seed, 1, k])
    n = float(np.clip(round(20 * math.exp(rng.normal(0, 0.5))), 6, 200))
    metadata: dict[str, Value | None] = {
        "task": {str(rng.choice(TASKS)): 1.0},
        "year": float(rng.integers(YEARS[0], YEARS[1] + 1)),
        "n": n,
        "age": float(rng.integers(18, 71)),
        "field_strength": float(rng.choice([1.5, 3.0, 4.0])),
    }
    truth.draw_own(study_id, rng)
    p = truth.density(study_id, metadata)
    count = max(4, int(rng.poisson(truth.expected_peaks(n))))
    here = space.load(RESOLUTION)
    cells = rng.choice(len(p), count, p=p)
    half = RESOLUTION / 2
    peaks = here.centres_mm[cells] + rng.uniform(-half, half, (count, 3))
    metadata["n_peaks"] = float(count)
    return Study(study_id, f"simulated study {k + 1}", peaks, ("MNI",) * count, metadata)
