"""examples/cpp, built on the installed library and on the source tree, and on other machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import atlas_kernels
from tests.kernels.cases import MNI_2MM
from tests.support import ROOT, require_tool

EXAMPLE = ROOT / "examples" / "cpp"
PEAKS = """\
# two studies, in any order
study\tx\ty\tz

first study\t-42.5\t22\t28.25
second\t0\t18\t48
first study\t44\t24\t30
second\t-6\t-70.5\t1e1
"""
MM = torch.tensor([[-42.5, 22, 28.25], [44, 24, 30], [0, 18, 48], [-6, -70.5, 10]]).double()
# 8 mm voxels that fill the box of the 2 mm grid: the reference takes its time.
GRID = atlas_kernels.Grid(
    (23, 28, 23), [[8, 0, 0, -87], [0, 8, 0, -123], [0, 0, 8, -69], [0, 0, 0, 1]]
)
OPTIONS = {
    "--fwhm 18": {"mode": "max", "fwhm": 18.0},
    "--fwhm 18 --mode sum": {"mode": "sum", "fwhm": 18.0},
    "--fwhm 18 --mode union": {"mode": "union", "fwhm": 18.0},
    "--radius 20": {"mode": "sphere", "radius": 20.0},
}
soak = pytest.mark.skipif(os.environ.get("ATLAS_SOAK") != "1", reason="other compilers: make soak")


def cmake(*arguments: object) -> str:
    beside = Path(sys.executable).with_name("cmake")  # the environment may not be activated
    command = [beside if beside.exists() else require_tool("cmake"), *map(str, arguments)]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(folder: Path, *settings: str) -> Path:
    cmake("-S", EXAMPLE, "-B", folder, *settings)
    cmake("--build", folder, "-j2")
    return folder / "splat_peaks"


def splat_peaks(*command: object, **options: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )


def draw(folder: Path, *program: object) -> dict[str, bytes]:
    """Run the program with each of OPTIONS and on its default grid; the files it wrote."""
    (folder / "peaks.tsv").write_text(PEAKS)
    images = {}
    for options in ("", *(f"--voxel 8 {options}" for options in OPTIONS)):
        done = splat_peaks(
            *program, folder / "peaks.tsv", folder / "maps.nii", *options.split(), cwd=folder
        )
        assert done.returncode == 0, done.stderr
        images[options.removeprefix("--voxel 8 ")] = (folder / "maps.nii").read_bytes()
    return images


def check_images(images: dict[str, bytes]) -> None:
    for options, arguments in OPTIONS.items():
        image = nibabel.Nifti1Image.from_bytes(images[options])
        expected = atlas_kernels.splat(
            MM, torch.tensor([0, 2, 4]), GRID, **arguments, dtype=torch.float64, backend="reference"
        )
        volumes = np.moveaxis(np.asarray(image.dataobj), 3, 0)
        np.testing.assert_allclose(volumes, expected[:, 0].numpy(), atol=1e-6)
        assert np.array_equal(image.affine, GRID.affine)
        assert image.header.get_xyzt_units()[0] == "mm"
    default = nibabel.Nifti1Image.from_bytes(images[""])
    assert default.shape == (91, 109, 91, 2)
    assert np.array_equal(default.affine, MNI_2MM.affine)
    assert default.dataobj[45, 72, 60, 1] == 1  # a peak on a voxel's centre


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example on the source tree, not optimised: it compiles faster and gives the same bits."""
    require_tool("c++")
    settings = (f"-DATLAS_KERNELS_SOURCE={ROOT}", "-DCMAKE_BUILD_TYPE=Debug")
    return build(tmp_path_factory.mktemp("cpp") / "build", *settings)


@pytest.mark.slow
def test_draws_what_the_reference_draws(program: Path, tmp_path: Path) -> None:
    check_images(draw(tmp_path, program))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "a\t1\t2\t3\n\na\t1\tx\t3\n",
            'peaks.tsv, row 3: y must be a finite number of mm, got "x"',
        ),
        ("a 1 2 nan\n", 'peaks.tsv, row 1: z must be a finite number of mm, got "nan"'),
        ("a 1 2 3\nb 1 2\n", "peaks.tsv, row 2: expected 4 columns (study, x, y, z), got 3"),
        (
            "study x y z\nstudy x y z\n",
            'peaks.tsv, row 2: x must be a finite number of mm, got "x"',
        ),
        ("# nothing\n", "peaks.tsv: holds no peaks"),
    ],
)
def test_bad_rows_are_named(program: Path, tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "peaks.tsv").write_text(text)
    (tmp_path / "maps.nii").write_text("kept")
    done = splat_peaks(program, "peaks.tsv", "maps.nii", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {complaint}\n")
    assert (tmp_path / "maps.nii").read_text() == "kept"


@pytest.mark.slow
def test_bad_options_and_files(program: Path, tmp_path: Path) -> None:
    (tmp_path / "peaks.tsv").write_text(PEAKS)
    for arguments, code, complaint in (
        ("", 2, "two files are wanted"),
        ("peaks.tsv maps.nii --fwhm -1", 2, '--fwhm must be 0.1 to 100 mm, got "-1"'),
        ("peaks.tsv maps.nii --mode", 2, "--mode needs a value"),
        ("peaks.tsv maps.nii --mode mean", 2, 'sum, max or union, got "mean"'),
        ("peaks.tsv maps.nii --sigma 3", 2, "no option is called --sigma"),
        ("absent.tsv maps.nii", 1, "absent.tsv: cannot be read: No such file"),
        ("peaks.tsv absent/maps.nii", 1, "absent/maps.nii: cannot be written: No such file"),
    ):
        done = splat_peaks(program, *arguments.split(), cwd=tmp_path)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert (done.returncode, complaint in line) == (code, True), line
    assert [path.name for path in tmp_path.iterdir()] == ["peaks.tsv"]


@soak
@pytest.mark.parametrize("target", ["clang", "aarch64"])
def test_other_compilers_give_the_same_bits(program: Path, tmp_path: Path, target: str) -> None:
    runner: list[str] = []
    settings = [f"-DATLAS_KERNELS_SOURCE={ROOT}"]
    if target == "clang":
        settings += [f"-DCMAKE_CXX_COMPILER={require_tool('clang++')}"]
    else:
        compiler = require_tool("aarch64-linux-gnu-g++")
        settings += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
        settings += [f"-DCMAKE_CXX_COMPILER={compiler}"]
        runner = [require_tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu"]
    other = build(tmp_path / "build", *settings)
    assert draw(tmp_path, *runner, other) == draw(tmp_path, program)
