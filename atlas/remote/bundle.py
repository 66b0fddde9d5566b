"""What is sent: the checkout's commit and its changes, or the installed version as a wheel.

Never .git/config, never untracked or ignored files.
"""

from __future__ import annotations

import re
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

from atlas.errors import AtlasError

from .pod import environment

DISTRIBUTION = "generative-brain-atlas"
SOURCE = Path(__file__).resolve().parents[2]
EXTRAS = ("train", "data", "wandb")


def make(folder: Path, source: Path = SOURCE) -> list[str]:
    """Write what goes to the pod into a folder; returns the names of the files.

    Raises
    ------
    AtlasError
        git is missing or fails, or the installation is neither a checkout nor a wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = _checkout(folder, source) if (source / ".git").exists() else _wheel(folder)
    (folder / environment.REQUIRED).write_text("\n".join(required()) + "\n")
    (folder / environment.LOCK).write_text(_lock(source))
    return [*names, environment.REQUIRED, environment.LOCK]


def commit(source: Path = SOURCE) -> str | None:
    """Return the commit of the checkout; None where atlas was installed from a wheel."""
    return (
        _git(source, "rev-parse", "HEAD").decode().strip() if (source / ".git").exists() else None
    )


def _checkout(folder: Path, source: Path) -> list[str]:
    """Bundle the commits up to HEAD, and the difference of tracked files to it."""
    bundle, diff = folder / environment.BUNDLE, folder / environment.DIFF
    _git(source, "bundle", "create", "-q", str(bundle.resolve()), "HEAD")
    plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv")
    diff.write_bytes(_git(source, "diff", *plain, "HEAD"))
    return [bundle.name, diff.name]


def _git(source: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(source), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise AtlasError("git is not on this machine: install git") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise AtlasError(f"git {arguments[0]}: {said[0] if said else error.returncode}") from None


def _wheel(folder: Path) -> list[str]:
    """Zip the files of the installed distribution as its wheel had them."""
    installed = metadata.distribution(DISTRIBUTION)
    listed = [
        f for f in installed.files or () if ".." not in f.parts and "__pycache__" not in f.parts
    ]
    if not any(f.parts[0] == "atlas" for f in listed):
        raise AtlasError("atlas is installed neither from a checkout nor from a wheel")
    made_by_pip = {"INSTALLER", "REQUESTED", "direct_url.json"}
    with zipfile.ZipFile(folder / environment.WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in listed:
            if file.name not in made_by_pip:
                wheel.write(str(installed.locate_file(file)), str(file))
    return [environment.WHEEL]


def required() -> list[str]:
    """Return the requirements of a training, without those on our own extras."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or ():
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if not requirement.startswith(DISTRIBUTION) and (not extra or extra[1] in EXTRAS):
            found.append(requirement.strip())
    return found


def _lock(source: Path) -> str:
    """Return the checkout's lock; from a wheel the versions that are installed here."""
    lock = source / "constraints" / "py311.txt"
    if (source / ".git").exists() and lock.is_file():
        return lock.read_text()
    # Without what a build adds to its version: 2.13.0+cpu is on no index that pip asks there.
    names = {d.metadata["Name"]: d.version.partition("+")[0] for d in metadata.distributions()}
    names.pop(DISTRIBUTION, None)
    return "".join(f"{name}=={version}\n" for name, version in sorted(names.items()))
