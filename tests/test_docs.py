"""The documentation is complete, and its code runs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from atlas import config
from atlas.metadata import FIELDS
from tests.support import ROOT

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in
         (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}  # fmt: skip
EVERYTHING = "\n".join(PAGES.values())
SERVED = {"docs/viewer.md"}  # its block asks a running server: tests/web does


def blocks() -> list[tuple[str, int, str]]:
    found = []
    for name, text in PAGES.items():
        if name not in SERVED:
            codes = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
            found += [(name, k, code) for k, code in enumerate(codes)]
    return found


@pytest.mark.parametrize(("page", "number", "code"), blocks(), ids=lambda x: str(x)[:40])
def test_python_blocks_run(
    page: str, number: int, code: str, tiny_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    program = compile(code, f"{page}, block {number}", "exec", dont_inherit=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages, as python says none by default
        exec(program, {"__name__": "__main__"})


def commands() -> list[str]:
    import importlib

    import click

    names = []
    for name in importlib.import_module("atlas.cli").COMMANDS:
        command = getattr(importlib.import_module(f"atlas.cli.{name}"), name)
        subcommands = command.commands if isinstance(command, click.Group) else None
        names += [f"{name} {sub}" for sub in subcommands] if subcommands else [name]
    return names


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"`atlas {command}" in PAGES["README.md"]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_is_documented(field) -> None:
    assert f"`{field.name}`" in PAGES["docs/data.md"]


def test_every_environment_variable_is_documented() -> None:
    sources = [p for folder in ("atlas", "atlas_kernels", "cli", "web", "tests", "bench")
               for p in (ROOT / folder).rglob("*.py")]  # fmt: skip
    sources += [ROOT / "setup.py", ROOT / "Makefile", ROOT / ".ci" / "run"]
    used = {v for p in sources for v in re.findall(r"\bATLAS_(?!WITH_)[A-Z_]+\b", p.read_text())}
    used -= {"ATLAS_PYTHON"}  # an option of CMakeLists.txt, set by setup.py
    assert used
    assert not [name for name in sorted(used) if f"`{name}`" not in PAGES["docs/conventions.md"]]


def test_every_shipped_configuration_and_schedule_is_documented() -> None:
    for name in config.shipped():
        assert f"`{name}`" in PAGES["docs/model.md"]
    for schedule in ("target", "ratio", "constant", "linear", "cyclical"):
        assert f"`{schedule}`" in PAGES["docs/model.md"]


def keys(record: type[config.Record], prefix: str = "") -> list[str]:
    found = []
    for name, field in record.model_fields.items():
        section = field.annotation
        inside = isinstance(section, type) and issubclass(section, config.Record)
        found += keys(section, f"{name}.") if inside else [prefix + name]
    return found


@pytest.mark.parametrize("key", keys(config.Config))
def test_every_configuration_key_is_documented(key: str) -> None:
    assert f"| `{key}` |" in PAGES["docs/configuration.md"]


def test_links_between_pages_lead_somewhere() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), (name, target)


def test_the_changelog_knows_this_version() -> None:
    from atlas import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
