"""What the wheels and the sdist hold, built from a clean copy of the tree.

A clean copy, because a build folder left by an earlier build would reach the next wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import atlas_kernels
from tests.test_cpp_example import build, check_images, cmake, draw

ROOT = Path(__file__).resolve().parent.parent
PAGE = "atlas/web/static/index.html"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """The files that git tracks or would track, and the built page, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout, so there is no list of the project's files")
    names = {Path(name) for name in listing.stdout.split("\0") if name}
    names |= {path.relative_to(ROOT) for path in (ROOT / "web" / "static").rglob("*")}
    return sorted(name for name in names if (ROOT / name).is_file())


def copy_tree(files: list[Path], to: Path) -> Path:
    for name in files:
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return to


@pytest.fixture
def tree(files: list[Path], tmp_path: Path) -> Path:
    """A copy to build in, one a test."""
    return copy_tree(files, tmp_path / "tree")


class Built(NamedTuple):
    wheel: Path
    kernels_only: Path
    cmake: Path  # the build folder of both


@pytest.fixture(scope="module")
def built(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both wheels from one tree: they hold the same extension, so it is compiled once.

    For one architecture of GPUs: that the module has code for all is checked where it is built.
    """
    tree = copy_tree(files, tmp_path_factory.mktemp("built") / "tree")
    environment = {
        "ATLAS_REQUIRE_EXTENSION": "1",
        "CMAKE_ARGS": "-DCMAKE_CUDA_ARCHITECTURES=80-real",
    }
    wheel, _ = build_wheel(tree, **environment)
    for left in tree.glob("build/lib*"):  # the packages of the first
        shutil.rmtree(left)
    for left in tree.glob("*.egg-info"):
        shutil.rmtree(left)
    kernels_only, _ = build_wheel(tree, "only", ATLAS_KERNELS_ONLY="1", **environment)
    (cache,) = tree.glob("build/temp*/CMakeCache.txt")
    return Built(wheel, kernels_only, cache.parent)


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run without this process's PYTHONPATH, which may name the checkout."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )


def build_wheel(tree: Path, folder: str = "wheels", **environment: str) -> tuple[Path, str]:
    """Build one wheel and return it with what the build printed."""
    out = tree.parent / folder
    arguments = ("wheel", ".", "-v", "--no-deps", "--no-build-isolation", "--wheel-dir", out)
    result = run("-m", "pip", *arguments, cwd=tree, **environment)
    assert result.returncode == 0, result.stdout
    (wheel,) = out.glob("*.whl")
    return wheel, result.stdout


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def modules_in(wheel: Path) -> list[str]:
    return [name for name in names_in(wheel) if name.endswith((".so", ".pyd"))]


def top_level(wheel: Path) -> set[str]:
    names = {name.split("/")[0] for name in names_in(wheel)}
    return {name for name in names if not name.endswith(".dist-info")}


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name).decode()


def install(wheel: Path, target: Path) -> Path:
    result = run("-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=target.parent)
    assert result.returncode == 0, result.stdout
    return target


def test_wheel(built: Built, files: list[Path], subtests: pytest.Subtests) -> None:
    wheel = built.wheel
    names = set(names_in(wheel))
    assert wheel.name.startswith("generative_brain_atlas-")
    assert top_level(wheel) == {"atlas", "atlas_kernels"}
    assert [Path(name).parent.name for name in modules_in(wheel)] == ["atlas_kernels"]
    assert not [name for name in names if "frontend" in name or name.endswith((".cpp", ".h"))]
    for source in files:
        if source.parts[0] in ("atlas", "atlas_kernels") and source.suffix in (".py", ".yaml"):
            assert source.as_posix() in names
        if source.parts[0] in ("cli", "web") and source.suffix == ".py":
            assert f"atlas/{source.as_posix()}" in names
    with subtests.test("the viewer's page is inside"):
        if not (ROOT / "web/static/index.html").exists():
            pytest.skip("web/static is not built")
        assert PAGE in names


SENT = """
import sys
from pathlib import Path
from atlas.remote import bundle
from atlas.remote.pod import environment
root = sys.argv[1]
assert bundle.commit() is None
assert bundle.make(Path(root)) == ["code.whl", "requirements.txt", "lock.txt"]
environment.unpack(root)
assert "torch==" in Path(root, "lock.txt").read_text()
"""


def test_an_installed_wheel_is_sent_as_it_was(built: Built, tmp_path: Path) -> None:
    """For a pod: there is no commit, so the installed files are packed again and run from there."""
    target, root = install(built.wheel, tmp_path / "target"), tmp_path / "root"
    root.mkdir()
    sent = run("-c", SENT, root, cwd=tmp_path, PYTHONPATH=str(target))
    assert sent.returncode == 0, sent.stdout
    with zipfile.ZipFile(built.wheel) as first, zipfile.ZipFile(root / "code.whl") as again:
        assert {*first.namelist()} == {*again.namelist()}
        for name in first.namelist():
            assert name.endswith("/RECORD") or first.read(name) == again.read(name), name
    code = str(root / "code")
    said = run("-m", "atlas.cli", "train", "smoke", "--data", "none", "--out", "run",
               cwd=root, PYTHONPATH=code)  # fmt: skip
    assert said.returncode == 1 and said.stdout.count("Error: none: ") == 1, said.stdout
    where = run("-c", "import atlas; print(atlas.__file__)", cwd=root, PYTHONPATH=code)
    assert where.stdout.startswith(code)


NUMPY_SIDE = """
import sys
import numpy as np
import atlas_kernels
from atlas_kernels.numpy import splat
assert atlas_kernels.__file__.startswith(sys.argv[1]), atlas_kernels.__file__
grid = atlas_kernels.Grid((9, 9, 9), np.diag([2.0, 2, 2, 1]))
volumes = splat(np.full((1, 3), 8.0), [0, 1], grid, [6.0, 12.0])
assert volumes.shape == (1, 2, 9, 9, 9) and (volumes[:, :, 4, 4, 4] == 1).all()
assert sys.modules.get("torch") is None  # absent, or kept from being imported
"""
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
"""
# The operators forward and backward, each against its reference.
TORCH_SIDE = """
import importlib.util
assert importlib.util.find_spec("atlas") is None
import torch
from atlas_kernels import Grid, group_norm_film, splat


def gradients(function, *inputs):
    results = []
    for backend in ("cpu", "reference"):
        leaves = [value.clone().requires_grad_() for value in inputs]
        out = function(*leaves, backend=backend)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, reference in zip(*results):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
        assert ours.abs().max() > 0


def draw(peaks, weights, backend):
    return splat(peaks, torch.tensor([0, 2, 3]), grid, 6.0, weights, backend=backend)


def layer(x, gamma, backend):
    return group_norm_film(x, groups=2, gamma=gamma, activation="silu", backend=backend)


grid = Grid((9, 9, 9), [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
gradients(draw, 5 + 8 * torch.rand(3, 3), torch.rand(3))
gradients(layer, torch.randn(2, 4, 5, 3, 2), torch.randn(2, 4))
"""


def test_kernels_only_wheel(built: Built, tmp_path: Path, subtests: pytest.Subtests) -> None:
    wheel = built.kernels_only
    assert wheel.name.startswith("atlas_kernels-")
    assert top_level(wheel) == {"atlas_kernels"}
    assert not [name for name in names_in(wheel) if name.endswith("entry_points.txt")]
    lines = metadata(wheel).splitlines()
    assert "Name: atlas-kernels" in lines
    required = [line for line in lines if line.startswith("Requires-Dist") and "extra" not in line]
    assert required == ["Requires-Dist: numpy>=1.26"]
    target = install(wheel, tmp_path / "installed")
    # -S leaves out the .pth file of an editable install, which would bring atlas; the other
    # packages of this environment are on the path.
    path = os.pathsep.join([str(target), str(Path(torch.__file__).parents[1])])
    for environment, program in (
        ("without torch", WITHOUT_TORCH + NUMPY_SIDE),
        ("with torch, without atlas", NUMPY_SIDE + TORCH_SIDE),
    ):
        with subtests.test(environment):
            result = run("-S", "-c", program, target, cwd=tmp_path, PYTHONPATH=path)
            assert result.returncode == 0, result.stdout


def test_without_a_compiler_the_rest_is_installed(tree: Path, tmp_path: Path) -> None:
    wheel, said = build_wheel(tree, CXX="/nonexistent")
    (sentence,) = [line for line in said.splitlines() if "WITHOUT the C++ extension" in line]
    assert "install a C++17 compiler" in sentence
    assert modules_in(wheel) == []
    target = install(wheel, tmp_path / "installed")
    # -S: an editable install of this tree would lend its own extension.
    result = run("-S", "-m", "atlas_kernels", cwd=tmp_path, PYTHONPATH=str(target))
    assert result.returncode == 0 and "extension: none" in result.stdout, result.stdout


def test_a_required_extension_must_build(tree: Path) -> None:
    environment = {"CXX": "/nonexistent", "ATLAS_REQUIRE_EXTENSION": "1"}
    result = run("setup.py", "build_ext", cwd=tree, **environment)
    assert result.returncode != 0 and "the C++ extension was not built" in result.stdout


def test_sdist(tree: Path, files: list[Path], tmp_path: Path) -> None:
    result = run("setup.py", "sdist", "--dist-dir", tmp_path, cwd=tree)
    assert result.returncode == 0, result.stdout
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {name.as_posix() for name in files if name.parts[0] == "csrc"}
    assert native and native | {"CMakeLists.txt", "setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith("web/frontend") or name.endswith(".so")]


def test_installed_library(built: Built, tmp_path: Path) -> None:
    """What `cmake --install` exports, as examples/cpp finds it."""
    prefix = tmp_path / "prefix"
    cmake("--install", built.cmake, "--prefix", prefix, "--component", "cpp")
    headers = {path.name for path in prefix.rglob("*.h")}
    assert {"splat.h", "ma_maps.h", "half.h"} <= headers
    private = {name for name in headers if name.endswith("_cpu.h") or name == "splat_scene.h"}
    assert not private
    (targets,) = prefix.rglob("atlas_kernelsTargets.cmake")
    assert "add_library(atlas_kernels::cpu " in targets.read_text()
    has_cuda = "_NVCC:FILEPATH=/" in (built.cmake / "CMakeCache.txt").read_text()
    assert has_cuda == ("add_library(atlas_kernels::cuda " in targets.read_text())
    (version,) = prefix.rglob("atlas_kernelsConfigVersion.cmake")
    assert f'set(PACKAGE_VERSION "{atlas_kernels.__version__}")' in version.read_text()
    program = build(tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    check_images(draw(tmp_path, program))
