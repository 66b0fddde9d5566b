"""Bodies of requests and answers. Everything is bounded, unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from atlas.explore.uncertainty import SAMPLES

MAX_LATENT = 1024  # longer than any code; the model itself then checks the exact length
Z_LIMIT = 1e3  # codes are of the order of 1; far beyond, float32 decoders overflow
MAX_PEAKS, MAX_ENTRIES = 5000, 50

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Along = Annotated[float, Field(strict=True, ge=-Z_LIMIT, le=Z_LIMIT)]
Code = Annotated[list[Along], Field(max_length=MAX_LATENT)]
Width = Annotated[float, Field(strict=True, ge=0, le=Z_LIMIT)]
Sd = Annotated[list[Width], Field(max_length=MAX_LATENT)]
Coordinate = Annotated[float, Field(strict=True, ge=-1000, le=1000)]
Text = Annotated[StrictStr, Field(max_length=100)]
Share = Annotated[float, Field(strict=True, ge=0, le=1e6)]
Weights = Annotated[dict[Text, Share], Field(max_length=200)]  # of a field's categories
Metadata = Annotated[dict[Text, Number | Text | Weights | None], Field(max_length=100)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Samples = Annotated[StrictInt, Field(ge=2, le=64)]
Quantity = Literal["mean", "sd"]
Part = Literal["decoder", "posterior", "imputation"]


class Body(BaseModel):
    """What all bodies share."""

    model_config = ConfigDict(extra="forbid")


# Requests ----------------------------------------------------------------------------------------


class Place(Body):
    """A place in the latent space.

    Attributes
    ----------
    z : list of float or None
        Latent code; None is the centre, all zeros.
    metadata : dict
        Number, category or weights of categories by field name; fields left out or None are
        imputed.
    """

    z: Code | None = None
    metadata: Metadata = {}


class DecodeRequest(Place):
    """One map: the mean, or the decoder's own uncertainty about it."""

    quantity: Quantity = "mean"


class CounterfactualRequest(Place):
    """The same code with other metadata; a change of None gives a field back to the imputer."""

    changes: Metadata = {}


class EffectRequest(CounterfactualRequest):
    """The same, with one field changed."""


class StripRequest(Place):
    """One slice for each value of a field; what else is missing is imputed once."""

    field: Text
    values: Annotated[list[Number | Text], Field(min_length=1, max_length=40)]
    axis: Literal[0, 1, 2]
    mm: Coordinate


class UncertaintyRequest(Place):
    """A place, how well its code is known (None: exactly), and how many draws to take."""

    sd: Sd | None = None
    samples: Samples = SAMPLES
    seed: Seed = 0


class PeaksRequest(UncertaintyRequest):
    """A table of peaks: which parts of the uncertainty its intervals hold."""

    parts: Annotated[list[Part], Field(max_length=3)] = ["decoder", "posterior", "imputation"]
    most: Annotated[StrictInt, Field(ge=1, le=50)] = 20


class NiftiRequest(Place):
    """A map to keep: of the place, or of the place with changes, or the difference."""

    changes: Metadata | None = None
    quantity: Literal["mean", "sd", "difference"] = "mean"


class EncodeRequest(Body):
    """Peaks in MNI mm, and what is known of their study."""

    peaks: Annotated[
        list[tuple[Coordinate, Coordinate, Coordinate]],
        Field(min_length=1, max_length=MAX_PEAKS),
    ]
    metadata: Metadata = {}


# Answers -----------------------------------------------------------------------------------------


class Problem(Body):
    """What is wrong, in one line."""

    detail: str


class Topic(Body):
    """A topic or task category that a direction goes along with."""

    label: str
    r: float


class Direction(Body):
    """One latent direction: its place in z, how much it does, the spread of codes along it."""

    index: int
    activity: float
    sd: float
    topics: list[Topic]


class Latent(Body):
    """The latent space; directions by activity, the most active first."""

    size: int
    directions: list[Direction]


class Category(Body):
    """One choice of a category field."""

    value: str
    label: str


class FieldControl(Body):
    """What the page needs to draw the control of one metadata field."""

    name: str
    label: str
    kind: Literal["category", "number"]
    unit: str | None
    low: float | None
    high: float | None
    step: float | None
    scale: Literal["linear", "log"]
    categories: list[Category] | None
    available: bool
    reason: str | None
    trained: tuple[float, float] | None
    help: str


class GridInfo(Body):
    """Shape and voxel-to-mm affine of a decoded map."""

    shape: tuple[int, int, int]
    affine: list[list[float]]


class Display(Body):
    """Fixed limits of the colours of the mean map."""

    low: float
    high: float


class Covered(Body):
    """Share of held-out cells that intervals of a nominal level covered."""

    level: float
    covered: float


class StudiesInfo(Body):
    """How many studies can be searched, from where; or why none."""

    count: int
    source: str | None
    reason: str | None


class RegionsInfo(Body):
    """Whether regions have names here."""

    available: bool
    reason: str | None


class Model(Body):
    """Body of GET /api/model."""

    name: str
    unit: str
    version: str
    run: str | None
    conditioned: bool
    latent: Latent
    fields: list[FieldControl]
    grid: GridInfo
    display: Display
    coverage: list[Covered] | None
    studies: StudiesInfo
    regions: RegionsInfo


class RegionNames(Body):
    """Names by label of /api/regions.bin."""

    names: dict[str, str]
    source: str
    licence: str


class CodeAnswer(Body):
    """A code: mean and standard deviation of its posterior."""

    mean: list[float]
    sd: list[float]


class StudyRow(Body):
    """A study in a list."""

    id: str
    title: str
    authors: str
    year: int | None
    category: str | None
    peaks: int


class StudyList(Body):
    """How many studies match, and the first of them."""

    total: int
    studies: list[StudyRow]


class Study(StudyRow):
    """One study with its code; its metadata are what this model can use."""

    metadata: dict[str, float | str | dict[str, float]]
    code: CodeAnswer


class Encoded(Body):
    """The code of peaks, and how many they were."""

    code: CodeAnswer
    peaks: int


class Entry(Body):
    """One study, table or image of a file."""

    label: str
    peaks: int
    code: CodeAnswer


class Entries(Body):
    """What a file holds; the note says what was left out or assumed."""

    entries: list[Entry]
    note: str


class Histogram(Body):
    """Counts between edges."""

    edges: list[float]
    counts: list[int]


class EffectAnswer(Body):
    """Size of a change, and its statistic beside the permutation null."""

    rms: float
    share: float
    field: str
    statistic: float | None
    null: tuple[float, float, float] | None
    histogram: Histogram | None
    p: float | None
    studies: int
    sentence: str


class PeakRow(Body):
    """A peak of the mean map with its 90 % interval."""

    mm: tuple[float, float, float]
    value: float
    low: float
    high: float
    region: str | None


class PeakTable(Body):
    """Peaks, highest first."""

    peaks: list[PeakRow]
