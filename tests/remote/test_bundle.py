"""What is sent: HEAD and the changes of tracked files, never anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from atlas.errors import AtlasError
from atlas.remote import bundle
from atlas.remote.pod import environment


def git(folder: Path, *arguments: str) -> str:
    options = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.check_output(["git", "-C", str(folder), *options, *arguments], text=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "atlas").mkdir(parents=True)
    (source / "cli").mkdir()
    (source / "constraints").mkdir()
    (source / "constraints" / "py311.txt").write_text("torch==2.13.0\n")
    (source / "atlas" / "a.py").write_text("a = 1\n")
    (source / "cli" / "__init__.py").write_text("")
    (source / "gone.txt").write_text("x")
    (source / ".gitignore").write_text("*.so\n")
    git(source, "init", "-q")
    git(source, "add", ".")
    git(source, "commit", "-qm", "one")
    git(source, "config", "remote.origin.url", "https://user:s3cret@host/x.git")
    (source / "atlas" / "a.py").write_text("a = 2\n")
    (source / "bin.dat").write_bytes(bytes(range(256)))
    git(source, "add", "bin.dat")
    (source / "gone.txt").unlink()
    (source / "untracked.env").write_text("KEY=s3cret")
    (source / "x.so").write_text("ignored")
    return source


def test_the_tree_arrives_as_it_is_tracked(checkout: Path, tmp_path: Path) -> None:
    root = tmp_path / "pod"
    assert bundle.make(root, checkout) == [
        "code.bundle", "code.diff", "requirements.txt", "lock.txt",
    ]  # fmt: skip
    for file in root.iterdir():
        assert b"s3cret" not in file.read_bytes()
    (root / "job.json").write_text(json.dumps({"commit": bundle.commit(checkout)}))
    environment.unpack(str(root))
    environment.unpack(str(root))  # a client that lost the connection asks again
    code = root / "code"
    assert (code / "atlas" / "a.py").read_text() == "a = 2\n"
    assert (code / "bin.dat").read_bytes() == bytes(range(256))
    assert not (code / "gone.txt").exists()
    assert not (code / "untracked.env").exists() and not (code / "x.so").exists()
    assert (code / "atlas" / "cli" / "__init__.py").exists()  # imported as atlas.cli
    assert "s3cret" not in git(code, "config", "--list")
    assert git(code, "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")


def test_a_clean_tree_has_no_diff(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "commit", "-qam", "two")
    root = tmp_path / "pod"
    bundle.make(root, checkout)
    assert (root / "code.diff").read_bytes() == b""
    (root / "job.json").write_text(json.dumps({"commit": bundle.commit(checkout)}))
    environment.unpack(str(root))
    assert (root / "code" / "atlas" / "a.py").read_text() == "a = 2\n"


def test_git_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(AtlasError, match="git bundle: "):
        bundle.make(tmp_path / "out", tmp_path)


def test_an_editable_installation_is_no_wheel(tmp_path: Path) -> None:
    """This one: without its checkout there is nothing that could be sent."""
    with pytest.raises(AtlasError, match="neither from a checkout nor from a wheel"):
        bundle.make(tmp_path / "out", tmp_path)


def test_what_is_required_there() -> None:
    names = [line.split(">")[0].split("<")[0] for line in bundle.required()]
    assert {"torch", "pytorch-lightning", "nimare"} <= {*names}
    assert not {"pytest", "generative-brain-atlas[data]", "fastapi"} & {*names}


def test_this_environment_is_known_to_lack_nothing(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / environment.REQUIRED).write_text("numpy>=1\nclick>=8\n")
    (tmp_path / environment.LOCK).write_text("numpy==0.1  # old\n")
    assert environment._missing(root, sys.executable, exact=False) == []
    assert environment._missing(root, sys.executable, exact=True) == ["numpy 0.1"]
    (tmp_path / environment.REQUIRED).write_text("no-such-package>=1\n")
    with pytest.raises(SystemExit, match="lacks no-such-package"):
        environment._given(root, sys.executable)


def test_the_versions_of_a_wheel_are_those_of_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop's torch is 2.13.0+cpu; the pod's pip finds 2.13.0."""
    built = SimpleNamespace(metadata={"Name": "torch"}, version="2.13.0+cpu")
    monkeypatch.setattr(bundle.metadata, "distributions", lambda: [built])
    assert bundle._lock(tmp_path) == "torch==2.13.0\n"
