"""Configuration of a training run: frozen records with defaults, YAML files, dotted overrides.

A YAML file lists only what differs from the defaults. Unknown keys and wrong types are refused
with the path of the key. The resolved configuration is written to the run folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import AtlasError, OptionError

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
YearHead = Literal["bins", "ordinal"]
Width = Annotated[float, Field(ge=2, le=40)]  # as the field fwhm in atlas.metadata


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first number must not exceed the second")
    return pair


Shares = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]


class Record(BaseModel):
    """Base of every section: immutable, strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Record):
    """What a batch is made of."""

    resolution: Literal[2, 4] = 4  # mm
    fwhm: Annotated[tuple[Width, ...], Field(min_length=1)] = (10.0,)  # mm; drawn per sample
    cache: Literal["auto", "never", "always"] = "auto"  # auto: one that was measured to be faster
    cache_url: str | None = None  # file://, s3:// or gs://; without it beside the dataset
    keep: Shares = (0.4, 1.0)  # share of a study's peaks the encoder is given
    jitter: Annotated[float, Field(ge=0)] = 2.0  # mm, sd added to the encoder's peaks
    workers: Annotated[int, Field(ge=0)] = 0


class ModelConfig(Record):
    """Size of the network; every width is a multiple of 8 (GroupNorm's groups)."""

    name: Literal["cvae", "direct_vae", "baseline_vae"] = "cvae"
    latent: Count = 32
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 16  # channels after the stem
    growth: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    blocks: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)] = (
        2,
        2,
    )  # layers of the dense blocks before the dilated one
    dilations: Annotated[tuple[Count, ...], Field(min_length=1)] = (
        1,
        2,
        4,
    )  # of the encoder's last block, one a layer
    embedding: Count = 32  # width of the metadata embedding that drives FiLM
    halve: bool = False  # convolve cells of twice the edge; logits are interpolated
    direct: Annotated[int, Field(ge=0)] = 0  # width of the path around the convolutions; 0: none
    rank: Count = 256  # maps that the direct path mixes
    smooth: Annotated[float, Field(ge=0)] = 0.0  # FWHM of its maps, in its cells; 0: not smoothed
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # in the direct path
    code_dropout: Fraction = 0.0  # share of samples decoded from 0, so that 0 means "unknown"
    base_map: bool = True  # decoder starts from the training set's mean log density
    kernels: Literal["auto", "reference"] = "auto"  # fused layers, or the same in plain PyTorch


class KLConfig(Record):
    """The weight of the KL term.

    `target` steers the rate to a number of nats. `ratio` raises beta by 10 % when KL / total
    stays under `threshold` for `patience` epochs. `constant`, `linear` and `cyclical` are
    functions of the training step.
    """

    schedule: Literal["target", "ratio", "constant", "linear", "cyclical"] = "target"
    beta: Positive = 0.1  # start, or the value reached
    target: Positive = 12.0  # nats
    warmup: Fraction = 0.1  # share of the run over which linear and cyclical rise
    cycles: Count = 4
    threshold: Fraction = 0.05
    patience: Count = 3


class YearConfig(Record):
    """Gradient reversal of the publication year: lambda ramps between two shares of the run."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    head: YearHead = "bins"  # ten-bin softmax, or cumulative bins
    ramp: Shares = (0.2, 0.8)


class ObjectiveConfig(Record):
    """Terms of the loss."""

    reconstruction: Literal["peaks", "mse", "correlation"] = "peaks"
    temper: Fraction = 0.5  # power of a study's number of peaks by which its mean nats count
    hide: Fraction = 0.3  # chance that an observed field is hidden, so that imputing is learnt
    imputation: Annotated[float, Field(ge=0)] = 0.1
    uncertainty: Annotated[float, Field(ge=0)] = 1.0


class TrainConfig(Record):
    """The optimiser and its run."""

    epochs: Count = 30
    minutes: Annotated[float, Field(ge=0)] = 0.0  # of training, all stretches together; 0: no limit
    batch: Count = 16  # studies in one forward pass of one process
    accumulate: Count = 1  # batches in one step of the optimiser
    lr: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.995
    warmup: Fraction = 0.05
    clip: Positive = 1.0  # norm of the gradient
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay a step of the averaged weights; 0: none
    validate_every: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of an epoch
    patience: Annotated[int, Field(ge=0)] = 0  # validations without improvement; 0: no early stop
    requires: tuple[str, ...] = ()  # fields that training studies must have
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Count = 1  # processes, a GPU or a share of the CPU's cores each
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0  # 0: torch's own choice


class LoggingConfig(Record):
    """Where metrics go beside metrics.csv."""

    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "atlas"


class Config(Record):
    """A whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    kl: KLConfig = KLConfig()
    year: YearConfig = YearConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        return _tuples(value)

    def to_yaml(self) -> str:
        """Return every value, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Parameters
    ----------
    source : str or Path, optional
        A YAML file, or the name of a shipped one (``quickstart``). Without it, the defaults.
    overrides : sequence of str
        ``section.key=value`` with the value in YAML, applied in order.

    Raises
    ------
    AtlasError
        File missing or not YAML, unknown key, wrong type: names the file and the key.
    """
    where = str(source) if source else "defaults"
    tree = _read(_find(source)) if source else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise OptionError(f"{override!r}: expected key=value, as in train.lr=1e-3")
        _set(tree, key.split("."), _scalar(override, value), override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise AtlasError(f"{where}: unknown key {key!r}{_nearest(first['loc'])}") from None
        raise AtlasError(f"{where}: {key}: {first['msg']}, got {first['input']!r}") from None


def shipped() -> list[str]:
    """Names of the configurations inside the package."""
    folder = resources.files("atlas").joinpath("configs")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in shipped():
        return Path(str(resources.files("atlas").joinpath("configs", f"{source}.yaml")))
    raise AtlasError(f"{source}: no such file, nor a shipped one ({', '.join(shipped())})")


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AtlasError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise AtlasError(f"{path}: expected sections, found {type(tree).__name__}")
    return tree


def _scalar(override: str, value: str) -> Any:
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise OptionError(f"{override!r}: the value is not YAML") from None
    if isinstance(parsed, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", parsed):
        return float(parsed)  # YAML 1.1 reads 1e-3 as a string
    return parsed


def _set(tree: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for part in path[:-1]:
        tree[part] = {} if tree.get(part) is None else tree[part]
        tree = tree[part]
        if not isinstance(tree, dict):
            raise OptionError(f"{override!r}: {part} is a value, not a section")
    tree[path[-1]] = value


def _tuples(value: Any) -> Any:
    """Turn YAML's lists into tuples; strict records take nothing else."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _nearest(path: tuple[Any, ...]) -> str:
    """Suggest the key that the user probably meant."""
    import difflib

    record: Any = Config()
    for part in path[:-1]:
        record = getattr(record, str(part), None)
    known = list(type(record).model_fields) if isinstance(record, Record) else []
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return (
        f"; did you mean {'.'.join([*map(str, path[:-1]), close[0]])!r}?"
        if close
        else f"; there are {', '.join(known)}"
    )
