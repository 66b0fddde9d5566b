"""model.safetensors and model.json: all that inference reads of a run. No pickle.

model.json is the card: architecture, table of fields, what was observed in training and in which
range, how active each latent direction is, where the model comes from.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from .config import DataConfig, ModelConfig, YearHead
from .errors import AtlasError
from .files import replacing, write_text
from .metadata import FieldTable
from .models import build
from .models.model import Model

WEIGHTS, CARD = "model.safetensors", "model.json"
RELEASED = "cvae_4mm"  # folder in atlas/resources: the model that ships with the package
HEADER = "atlas"  # key in the weights' header of what they belong to


class FieldUse(BaseModel):
    """What training saw of one field: studies that had it, and the range of a number."""

    model_config = ConfigDict(extra="forbid")

    studies: int
    low: float | None = None
    high: float | None = None


class Card(BaseModel):
    """Everything about a model but its weights.

    Attributes
    ----------
    latent_activity : list of float
        Variance over the training studies of each direction's posterior mean; a direction above
        0.01 is active (Burda et al. 2016, ICLR).
    latent_mean, latent_sd : list of float
        Mean and standard deviation over those studies.
    display : (low, high)
        Range of a decoded map that shows structure, in units of the uniform density.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    name: str
    atlas_version: str
    created: str
    seed: int
    dataset: str
    source: str
    data: DataConfig
    model: ModelConfig
    fields: list[dict[str, Any]]
    used: dict[str, FieldUse]
    year_edges: list[float]
    year_head: YearHead = "bins"
    latent_activity: list[float]
    latent_mean: list[float]
    latent_sd: list[float]
    display: tuple[float, float]

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if set(self.table().names) != set(self.used):
            raise ValueError("fields and used name different fields")
        if not len(self.latent_activity) == len(self.latent_sd) == self.model.latent:
            raise ValueError("latent_activity and latent_sd do not fit model.latent")
        return self

    def table(self) -> FieldTable:
        """Return the table of fields that the model was trained with."""
        return FieldTable.from_snapshot(self.fields)


def write(run: Path, model: Model, card: Card, *, half: bool = False) -> None:
    """Write both files; each appears whole or not at all.

    With `half` the matrices are float16, half of the bytes; vectors (norms, biases, the base map,
    whose log densities float16 would round by a per cent) stay float32.
    """
    arrays = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        arrays = {name: a.half() if a.ndim > 1 else a for name, a in arrays.items()}
    said = {HEADER: json.dumps(origin(card.model, card.table()))}  # one key: their order is random
    with replacing(run / WEIGHTS) as work:
        work.write_bytes(save(arrays, said))
    write_text(run / CARD, card.model_dump_json(indent=1))


def released() -> Path:
    """Folder of the model that ships with the package; AtlasError where it has none."""
    folder = Path(str(resources.files("atlas").joinpath("resources", RELEASED)))
    if not (folder / CARD).is_file():
        raise AtlasError("no model is released with this version yet: name a run folder")
    return folder


def read(run: Path) -> tuple[Model, Card]:
    """Read a run's model, in evaluation mode on the CPU, as float32 whatever the file holds.

    Raises
    ------
    AtlasError
        A file is missing, truncated or of another format; the two do not belong together.
    """
    for name in (CARD, WEIGHTS):
        if not (run / name).is_file():
            raise AtlasError(f"{run}: holds no {name}; is it the folder of a finished atlas train?")
    try:
        card = Card.model_validate_json((run / CARD).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "damaged"
        raise AtlasError(f"{run / CARD}: {where}: {first['msg']}") from None
    model = build(card.model, card.table().width, card.data.resolution, card.year_head)
    try:
        state = load_file(run / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise AtlasError(f"{run / WEIGHTS}: damaged or truncated ({error})") from None
    _check_state(run, model, state, card)
    model.load_state_dict(state)
    return model.eval(), card


def origin(model: ModelConfig, fields: FieldTable) -> dict[str, Any]:
    """Return what weights belong to, as plain data: the architecture and the table of fields."""
    rows = {row.pop("name"): row for row in fields.snapshot()}
    return {"model": model.model_dump(mode="json"), "fields": {"order": list(rows), **rows}}


def belonging(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """List what differs between two origins; a key younger than the weights has its default."""
    filled = ModelConfig().model_dump(mode="json") | stored["model"]
    return differences({**stored, "model": filled}, wanted)


def differences(stored: Any, wanted: Any, path: str = "") -> list[str]:
    """List every key that differs between two trees of plain data, as `key was old, is new`."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            change
            for key in sorted(stored.keys() | wanted.keys())
            for change in differences(
                stored.get(key), wanted.get(key), f"{path}.{key}" if path else key
            )
        ]
    return [] if stored == wanted else [f"{path} was {stored}, is {wanted}"]


def _check_state(run: Path, model: Model, state: dict[str, Any], card: Card) -> None:
    """Compare what the weights say of themselves, and their shapes, with the card."""
    with safe_open(run / WEIGHTS, "pt") as file:
        said = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    changes = belonging(said, origin(card.model, card.table())) if said else []
    if changes:
        raise AtlasError(
            f"{run / CARD}: describes another model than {WEIGHTS}: {'; '.join(changes)}"
        )
    if wanted != found:
        different = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        name = different[0]
        raise AtlasError(
            f"{run / WEIGHTS}: {len(different)} arrays do not fit model.json, first {name}: "
            f"{found.get(name, 'missing')} in the file, {wanted.get(name, 'none')} expected"
        )
