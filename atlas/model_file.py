"""model.safetensors and model.json: all that inference reads of a run. No pickle.

model.json is the card: architecture, table of fields, what was observed in training and in which
range, how active each latent direction is, where the model comes from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from .config import DataConfig, ModelConfig, YearHead
from .errors import AtlasError
from .files import replacing, write_text
from .metadata import FieldTable
from .models import build
from .models.model import Model

WEIGHTS, CARD = "model.safetensors", "model.json"


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


def write(run: Path, model: Model, card: Card) -> None:
    """Write both files; each appears whole or not at all."""
    arrays = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(run / WEIGHTS) as work:
        work.write_bytes(save(arrays))
    write_text(run / CARD, card.model_dump_json(indent=1))


def read(run: Path) -> tuple[Model, Card]:
    """Read a run's model, in evaluation mode on the CPU.

    Raises
    ------
    AtlasError
        A file is missing, truncated or of another format.
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
    _check_state(run, model, state)
    model.load_state_dict(state)
    return model.eval(), card


def _check_state(run: Path, model: Model, state: dict[str, Any]) -> None:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != found:
        different = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        name = different[0]
        raise AtlasError(
            f"{run / WEIGHTS}: {len(different)} arrays do not fit model.json, first {name}: "
            f"{found.get(name, 'missing')} in the file, {wanted.get(name, 'none')} expected"
        )
