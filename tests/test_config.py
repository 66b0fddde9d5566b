"""Configurations: shipped files, overrides, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from atlas import config
from atlas.errors import AtlasError


@pytest.mark.parametrize("name", config.shipped())
def test_shipped_files_resolve_and_round_trip(name: str, tmp_path: Path) -> None:
    resolved = config.load(name)
    path = tmp_path / "config.yaml"
    path.write_text(resolved.to_yaml())
    assert config.load(path) == resolved


def test_overrides_come_last() -> None:
    resolved = config.load("smoke", ["train.lr=1e-3", "model.blocks=[2, 2]", "data.fwhm=[6, 12]"])
    assert resolved.train.lr == 1e-3
    assert resolved.model.blocks == (2, 2) and resolved.model.width == 8
    assert resolved.data.fwhm == (6.0, 12.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", r"unknown key 'train.lrr'; did you mean 'train.lr'\?"),
        ("colour=1", r"unknown key 'colour'; there are seed, "),
        ("train.lr=fast", r"train.lr: .*got 'fast'"),
        ("train.epochs=1.5", r"train.epochs: .*got 1.5"),
        ("train.epochs=0", r"train.epochs: .*got 0"),
        ("model.width=12", r"model.width: .*multiple of 8"),
        ("train.lr", r"expected key=value"),
        ("seed.x.y=1", r"seed"),
    ],
)
def test_a_mistake_names_its_key(override: str, message: str) -> None:
    with pytest.raises(AtlasError, match=message):
        config.load(None, [override])


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, message in (
        ("train: {epochz: 3}", "mine.yaml: unknown key 'train.epochz'"),
        ("train: [", "mine.yaml: not YAML"),
        ("- a", "mine.yaml: expected sections, found list"),
    ):
        path.write_text(text)
        with pytest.raises(AtlasError, match=message):
            config.load(path)
    with pytest.raises(AtlasError, match="nowhere.yaml: no such file, nor a shipped one"):
        config.load("nowhere.yaml")


def test_yaml_never_builds_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(AtlasError, match="not YAML"):
        config.load(path)


def test_a_configuration_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load("smoke").train.lr = 1.0  # type: ignore[misc]
    assert yaml.safe_load(config.load("smoke").to_yaml())["train"]["epochs"] == 2
