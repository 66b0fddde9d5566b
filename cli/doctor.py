"""atlas doctor."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from ._options import json_option, print_json

# What each extra brings, by the module that shows that it is there.
EXTRAS = {
    "data": ("nimare", "nilearn", "pandas", "pyarrow", "scipy", "tensorstore"),
    "train": ("pytorch_lightning",),
    "wandb": ("wandb",),
    "web": ("fastapi", "uvicorn"),
    "remote": ("httpx",),
    "export": ("onnx", "onnxscript"),
    "notebook": ("ipywidgets",),
}
CORE = ("torch", "numpy", "nibabel", "safetensors", "click", "rich", "pydantic", "yaml")


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="Also describe a run's model.")
@json_option
def doctor(model: Path | None, as_json: bool) -> None:
    """Say what is installed, which kernels run here and why the others do not."""
    found = examine(model)
    if as_json:
        print_json(found)
        return
    click.echo(f"atlas {found['atlas']}, Python {found['python']}, {found['cpus']} CPUs")
    for name, version in found["core"].items():
        click.echo(f"  {name:18} {version or 'MISSING'}")
    for extra, modules in found["extras"].items():
        lacking = [name for name, version in modules.items() if version is None]
        state = f"lacks {', '.join(lacking)}: pip install 'generative-brain-atlas[{extra}]'"
        click.echo(f"  [{extra}]".ljust(21) + (state if lacking else "complete"))
    click.echo(f"  {'nvcc':18} {found['nvcc'] or 'none'}")
    click.echo(f"  {'page':18} {found['page']}")
    click.echo("kernels")
    for row in found["kernels"]:
        click.echo(f"  {row['op']:8} {row['implementation']:11} {row['why_not'] or 'runs here'}")
    for key, value in found.get("model", {}).items():
        click.echo(f"{key.replace('_', ' ')}: {value}")


def examine(model: Path | None) -> dict[str, Any]:
    """Collect everything that `doctor` says, as plain data."""
    import atlas_kernels
    from atlas import __version__

    static = importlib.util.find_spec("atlas.web")
    folder = Path(static.origin).parent / "static" if static and static.origin else None
    built = folder is not None and (folder / "index.html").is_file()
    found: dict[str, Any] = {
        "atlas": __version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "core": {name: _version(name) for name in CORE},
        "extras": {x: {name: _version(name) for name in names} for x, names in EXTRAS.items()},
        "nvcc": shutil.which("nvcc"),
        "page": "built" if built else "not built: make frontend",
        "kernels": atlas_kernels.implementations(),
    }
    if model is not None:
        found["model"] = _describe(model)
    return found


def _version(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    names = metadata.packages_distributions().get(module, [])
    return metadata.version(names[0]) if names else "unknown"


def _describe(run: Path) -> dict[str, Any]:
    from atlas import model_file

    network, card = model_file.read(run)
    seen = network.encoder.receptive_field()
    return {
        "model": card.name,
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        "receptive_field": f"{seen} cells, {seen * card.data.resolution} mm",
        "latent_directions": f"{card.model.latent}, "
        f"{sum(a > 0.01 for a in card.latent_activity)} active",
        "never_observed": ", ".join(n for n, u in card.used.items() if u.studies == 0) or "none",
    }
