"""The environment on a pod: made by pip from the lock, kept for the next job there."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from atlas.remote.pod import environment


def wheel(folder: Path, version: str) -> None:
    """A package that says its version."""
    about = f"Metadata-Version: 2.1\nName: atlas-demo\nVersion: {version}\n"
    info = f"atlas_demo-{version}.dist-info"
    with zipfile.ZipFile(folder / f"atlas_demo-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr("atlas_demo.py", f"print({version!r})\n")
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_pip_installs_what_the_lock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, root, cache = tmp_path / "index", tmp_path / "root", tmp_path / "cache"
    (root / "code").mkdir(parents=True)  # unpacked already; no C++ sources in it
    index.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    (root / environment.REQUIRED).write_text("atlas-demo>=1\n")
    (root / environment.LOCK).write_text("atlas-demo==1.2  # the newest is another\n")
    wheel(index, "1.3")
    with pytest.raises(SystemExit, match=r"^pip install: ERROR: .*atlas-demo"):
        environment.install(str(root))
    assert not list(cache.glob("atlas/env-*/.ready"))  # so that the next try begins anew
    wheel(index, "1.2")
    assert environment.install(str(root)) == "installed from the lock, kernels as in the wheel"
    python = (root / environment.PYTHON).read_text()
    assert subprocess.check_output([python, "-m", "atlas_demo"], text=True) == "1.2\n"
    (index / "atlas_demo-1.2-py3-none-any.whl").unlink()
    said = environment.install(str(root))
    assert said == f"reuses {Path(python).parents[1]}, kernels as in the wheel"
