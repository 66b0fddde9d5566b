"""Builds a CUDA source as C++ over cuda_on_cpu.h; where nvcc is; the module's machine code."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atlas_kernels import _extension
from tests.support import ROOT, require_tool, skip

CSRC = ROOT / "csrc"
LAUNCH = re.compile(r"([\w<>, ]+?)<<<(.+?), (\w+), 0, queue>>>\((.*?)\);", re.DOTALL)


def emulated_library(source: str, functions: str, *, launches: int, folder: Path) -> ctypes.CDLL:
    """Compile a source with that many launches, and extern "C" functions that call it."""
    for header in ("bf16", "fp16", "runtime"):
        (folder / f"cuda_{header}.h").touch()
    text, found = LAUNCH.subn(r"run_on_cpu(\2, \3, [&] { \1(\4); });", source)
    assert found == launches
    (folder / "emulated.cpp").write_text(f'#include "cuda_on_cpu.h"\n{text}\n{functions}')
    library = folder / "emulated.so"
    options = [
        "-std=c++20",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-pthread",
        f"-I{CSRC}",
        f"-I{folder}",
    ]
    command = [require_tool("g++"), *options, f"-I{Path(__file__).parent}", "emulated.cpp"]
    done = subprocess.run(
        [*command, "-o", library], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def require_nvcc() -> str:
    nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc")
    found = subprocess.run(["which", "nvcc"], capture_output=True, text=True, check=False).stdout
    if not found and not nvcc.exists():
        pytest.skip("nvcc is not installed")
    return found.strip() or str(nvcc)


def require_triton() -> Any:
    try:
        import triton
    except ImportError:
        skip("triton is not installed")
    return triton


def module_says(options: str) -> str:
    """Return what cuobjdump, which comes with Triton, says of the module's machine code."""
    if _extension.why_no_cuda():
        pytest.skip(str(_extension.why_no_cuda()))
    require_triton()
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, *options.split(), _extension.kernels().__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
