"""FIELDS: what is known of a study beside its peaks, one row a field.

Everything that depends on the list of fields derives from this table: the width of the metadata
vector, the mask of what was observed, FiLM's input, the imputation head, `--set`, the controls in
the page. A run stores its own copy (`model.json`), so that a later change here cannot change what
an old model means.

A value is a number (kind "number") or soft weights over categories (kind "category"), a mapping
from category to weight. Any value may be missing: None.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import AtlasError

Value = float | dict[str, float]

TASKS = (
    "working_memory",
    "attention_control",
    "memory",
    "language",
    "auditory",
    "visual",
    "motor",
    "pain_somatosensory",
    "emotion",
    "reward_decision",
    "social",
    "resting_state",
)
N_TOPICS = 50
YEAR_BINS = 10


@dataclass(frozen=True)
class Field:
    """One row of the table.

    Attributes
    ----------
    name, label : str
        Name in files and options; name on the page.
    kind : str
        "number" or "category" (soft weights that sum to 1).
    how : str
        How the value is obtained, for the documentation and the page.
    unit : str
        Unit of a number, "" where it has none.
    low, high : float
        Legal range of a number, both ends included.
    log : bool
        Whether a number is modelled by its logarithm.
    centre, spread : float
        A number x enters the model as ``(f(x) - f(centre)) / spread`` with f the identity or log.
    categories : tuple of str
        Names of the weights of a category field.
    """

    name: str
    label: str
    kind: str
    how: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    log: bool = False
    centre: float = 0.0
    spread: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of elements in the metadata vector."""
        return len(self.categories) or 1

    def check(self, value: object) -> Value:
        """Return a legal value, or raise AtlasError with the range or the categories."""
        return self._check_weights(value) if self.kind == "category" else self._check_number(value)

    def _check_number(self, value: object) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise AtlasError(f"{self.name}: expected a number, got {value!r}") from None
        if not self.low <= number <= self.high:
            unit = f" {self.unit}" if self.unit else ""
            raise AtlasError(
                f"{self.name}: {number:g} is outside its range {self.low:g} to {self.high:g}{unit}"
            )
        return number

    def _check_weights(self, value: object) -> dict[str, float]:
        weights = {value: 1.0} if isinstance(value, str) else value
        if not isinstance(weights, Mapping) or not weights:
            raise AtlasError(f"{self.name}: expected a category or weights, got {value!r}")
        for name, weight in weights.items():
            if name not in self.categories:
                raise AtlasError(
                    f"{self.name}: unknown category {name!r}; there are "
                    + ", ".join(self.categories)
                )
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise AtlasError(f"{self.name}: the weight of {name} must be at least 0")
        total = float(sum(weights.values()))
        if total <= 0:
            raise AtlasError(f"{self.name}: the weights sum to 0")
        return {name: float(weight) / total for name, weight in weights.items()}

    def parse(self, text: str) -> Value:
        """Read a value as typed in an option: ``14``, ``language``, ``language:2,memory:1``."""
        if self.kind == "number":
            return self.check(text)
        pairs = [part.partition(":") for part in text.split(",")]
        try:
            weights = {name.strip(): float(weight or 1) for name, _, weight in pairs}
        except ValueError:
            raise AtlasError(
                f"{self.name}: expected category or category:weight,..., got {text!r}"
            ) from None
        return self.check(weights)

    def encode(self, value: object) -> np.ndarray:
        """Turn a value into this field's elements of the metadata vector, (width,) float32."""
        value = self.check(value)
        if isinstance(value, dict):
            return np.array([value.get(name, 0.0) for name in self.categories], np.float32)
        if self.log:
            value, centre = math.log(value), math.log(self.centre)
        else:
            centre = self.centre
        return np.array([(value - centre) / self.spread], np.float32)

    def decode(self, elements: np.ndarray) -> Value:
        """Turn elements of the metadata vector back into a value (the inverse of `encode`)."""
        if self.kind == "category":
            weights = np.clip(elements, 0, None)
            weights = weights / max(float(weights.sum()), 1e-12)
            return {n: round(float(w), 4) for n, w in zip(self.categories, weights)}
        x = float(elements[0]) * self.spread
        # Clipped: an absurd code may ask for more than a float holds.
        number = math.exp(min(x + math.log(self.centre), 700.0)) if self.log else x + self.centre
        return min(max(number, self.low), self.high)


FIELDS: tuple[Field, ...] = (
    Field(
        "task",
        "Task",
        "category",
        "soft weights over twelve task categories, from the study's task names or LDA topics",
        categories=TASKS,
    ),
    Field(
        "topics",
        "Topics",
        "category",
        "weights of 50 LDA topics of the abstract (Neurosynth v7)",
        categories=tuple(f"topic_{k:02d}" for k in range(N_TOPICS)),
    ),
    Field(
        "year",
        "Year",
        "number",
        "year of publication",
        low=1990,
        high=2030,
        centre=2010,
        spread=8,
    ),
    Field(
        "n",
        "Sample size",
        "number",
        "participants whose images were analysed, all groups together",
        unit="participants",
        low=1,
        high=10000,
        log=True,
        centre=20,
        spread=0.7,
    ),
    Field(
        "age",
        "Age",
        "number",
        "mean age of the participants, groups weighted by their size",
        unit="years",
        low=0,
        high=100,
        centre=30,
        spread=15,
    ),
    Field(
        "field_strength",
        "Field strength",
        "number",
        "field strength of the scanner",
        unit="T",
        low=0.2,
        high=12,
        centre=3,
        spread=1,
    ),
    Field(
        "n_peaks",
        "Peaks",
        "number",
        "number of peaks that the study reports, after cleaning",
        unit="peaks",
        low=1,
        high=2000,
        log=True,
        centre=25,
        spread=1,
    ),
    Field(
        "fwhm",
        "Kernel width",
        "number",
        "width of the Gaussian kernel that made the map; known, it is the augmentation's",
        unit="mm",
        low=2,
        high=40,
        centre=10,
        spread=4,
    ),
)


class FieldTable(Sequence[Field]):
    """An ordered table of fields with the layout of the metadata vector.

    M is the sum of the fields' widths; a field's elements lie at ``slices[name]``.
    """

    def __init__(self, fields: Sequence[Field] = FIELDS) -> None:
        self._fields = tuple(fields)
        self.slices: dict[str, slice] = {}
        start = 0
        for field in self._fields:
            self.slices[field.name] = slice(start, start + field.width)
            start += field.width
        self.width = start

    def __len__(self) -> int:
        return len(self._fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self._fields)

    def __getitem__(self, key: Any) -> Any:
        """Return a field by its name or position; an unknown name raises AtlasError."""
        if not isinstance(key, str):
            return self._fields[key]
        for field in self._fields:
            if field.name == key:
                return field
        names = ", ".join(field.name for field in self._fields)
        raise AtlasError(f"unknown metadata field {key!r}; there are {names}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(field.name for field in self._fields)

    def encode(self, metadata: Mapping[str, object]) -> tuple[np.ndarray, np.ndarray]:
        """Encode one study's metadata.

        Parameters
        ----------
        metadata : mapping
            Value by field name; None or absent is missing.

        Returns
        -------
        vector_M : (M,) float32
            Encoded values, 0 where missing.
        observed_M : (M,) float32
            1 where the element's field is observed, else 0.
        """
        vector, observed = np.zeros(self.width, np.float32), np.zeros(self.width, np.float32)
        for name, value in metadata.items():
            field = self[name]
            if value is not None:
                vector[self.slices[name]] = field.encode(value)
                observed[self.slices[name]] = 1
        return vector, observed

    def check(self, metadata: Mapping[str, object]) -> None:
        """Refuse an unknown field and a value outside its range or categories."""
        for name, value in metadata.items():
            field = self[name]
            if value is not None:
                field.check(value)

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the rows as plain data, for model.json."""
        rows = [dataclasses.asdict(field) for field in self._fields]
        for row in rows:  # JSON has no infinity
            row["low"] = None if row["low"] == -math.inf else row["low"]
            row["high"] = None if row["high"] == math.inf else row["high"]
            row["categories"] = list(row["categories"])
        return rows

    @classmethod
    def from_snapshot(cls, rows: Sequence[Mapping[str, Any]]) -> FieldTable:
        """Rebuild a table from `snapshot`; a row that is none raises AtlasError."""
        fields = []
        try:
            for row in rows:
                row = dict(row, categories=tuple(row["categories"]))
                row["low"] = -math.inf if row["low"] is None else row["low"]
                row["high"] = math.inf if row["high"] is None else row["high"]
                fields.append(Field(**row))
        except (KeyError, TypeError, ValueError) as error:
            raise AtlasError(f"fields: a row is damaged ({error})") from None
        return cls(fields)
