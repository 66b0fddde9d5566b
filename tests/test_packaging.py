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

import pytest

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


@pytest.fixture
def tree(files: list[Path], tmp_path: Path) -> Path:
    """A copy to build in, one a test."""
    for name in files:
        target = tmp_path / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return tmp_path / "tree"


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


def build_wheel(tree: Path, **environment: str) -> tuple[Path, str]:
    """Build one wheel and return it with what the build printed."""
    out = tree.parent / "wheels"
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


def test_wheel(tree: Path, files: list[Path], subtests: pytest.Subtests) -> None:
    wheel, _ = build_wheel(tree, ATLAS_REQUIRE_EXTENSION="1")
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


KERNELS_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
import numpy as np
import atlas_kernels
from atlas_kernels.numpy import splat
assert atlas_kernels.__file__.startswith(sys.argv[1]), atlas_kernels.__file__
grid = atlas_kernels.Grid((9, 9, 9), np.diag([2.0, 2, 2, 1]))
volumes = splat(np.full((1, 3), 8.0), [0, 1], grid, [6.0, 12.0])
assert volumes.shape == (1, 2, 9, 9, 9) and (volumes[:, :, 4, 4, 4] == 1).all()
"""


def test_kernels_only_wheel(tree: Path, tmp_path: Path) -> None:
    wheel, _ = build_wheel(tree, ATLAS_KERNELS_ONLY="1", ATLAS_REQUIRE_EXTENSION="1")
    assert wheel.name.startswith("atlas_kernels-")
    assert top_level(wheel) == {"atlas_kernels"}
    assert not [name for name in names_in(wheel) if name.endswith("entry_points.txt")]
    lines = metadata(wheel).splitlines()
    assert "Name: atlas-kernels" in lines
    required = [line for line in lines if line.startswith("Requires-Dist") and "extra" not in line]
    assert required == ["Requires-Dist: numpy>=1.26"]
    target = install(wheel, tmp_path / "installed")
    result = run("-c", KERNELS_WITHOUT_TORCH, target, cwd=tmp_path, PYTHONPATH=str(target))
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


CPP_PROGRAM = """
#include <splat/splat.h>
#include <cstdio>
int main() {
  const double peak[3] = {4, 4, 4}, fwhm[1] = {6};
  const int64_t offsets[2] = {0, 1};
  atlas_kernels::SplatProblem problem;
  problem.peaks = peak;
  problem.offsets = offsets;
  problem.widths = fwhm;
  problem.n_studies = 1;
  for (int axis = 0; axis < 3; ++axis) {
    problem.shape[axis] = 5;
    problem.spacing[axis] = 2;
  }
  float out[125];
  atlas_kernels::splat_cpu(problem, out, 2);
  std::printf("%g", out[62]);
}
"""
CPP_PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(program LANGUAGES CXX)
find_package(atlas_kernels 0.1 REQUIRED)
add_executable(program program.cpp)
target_link_libraries(program PRIVATE atlas_kernels::cpu)
"""


@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not on PATH")
def test_a_cpp_program_links_a_kernel(tree: Path, tmp_path: Path) -> None:
    program, prefix = tmp_path / "program", tmp_path / "prefix"
    program.mkdir()
    (program / "program.cpp").write_text(CPP_PROGRAM)
    (program / "CMakeLists.txt").write_text(CPP_PROJECT)

    def cmake(*arguments: object) -> None:
        subprocess.run(["cmake", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)

    cmake("-S", tree, "-B", tree / "cpp")
    cmake("--build", tree / "cpp", "-j2")
    cmake("--install", tree / "cpp", "--prefix", prefix, "--component", "cpp")
    cmake("-S", program, "-B", program / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    cmake("--build", program / "build")
    result = subprocess.run([program / "build/program"], capture_output=True, text=True, check=True)
    assert result.stdout == "1"
