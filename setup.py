"""Builds the C++ extension with CMake and says what the wheels hold; the rest is pyproject.toml.

pip install .                            atlas, atlas_kernels and the extension where a compiler is
ATLAS_KERNELS_ONLY=1 pip install .       the distribution atlas-kernels: atlas_kernels alone
ATLAS_REQUIRE_EXTENSION=1 pip install .  fail where the extension cannot be built (else: go on)
CMAKE_ARGS, CMAKE_BUILD_PARALLEL_LEVEL or MAX_JOBS are passed to CMake.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

KERNELS_ONLY = os.environ.get("ATLAS_KERNELS_ONLY") == "1"
REQUIRE_EXTENSION = os.environ.get("ATLAS_REQUIRE_EXTENSION") == "1"


def find_tool(name):
    """Look on PATH, then beside this interpreter: its environment may not be activated."""
    beside = Path(sys.executable).parent
    return shutil.which(name) or shutil.which(name, path=str(beside))


def missing_tools():
    """What pip must add to the build environment: asked for by running the command egg_info.

    While building, setuptools would fetch them itself, and fail the build where it cannot.
    """
    asked = "egg_info" in sys.argv
    return [tool for tool in ("cmake", "ninja") if asked and not find_tool(tool)]


class BuildWithCMake(build_ext):
    """Configure, build and install the component `python` of CMakeLists.txt."""

    def build_extension(self, ext):
        try:
            self.run_cmake(Path(self.get_ext_fullpath(ext.name)).absolute().parent)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            if REQUIRE_EXTENSION:
                raise SystemExit(
                    f"atlas_kernels: the C++ extension was not built: {error}"
                ) from error
            print(
                "atlas_kernels: installing WITHOUT the C++ extension, so kernels run on the slower "
                f"PyTorch reference; install a C++17 compiler and build again ({error}).",
                file=sys.stderr,
            )

    def run_cmake(self, destination):
        import pybind11

        cmake, build = find_tool("cmake") or "cmake", Path(self.build_temp).absolute()
        settings = {
            "ATLAS_PYTHON": "ON",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            # Given every time: a cached path may lie in a build environment that is gone.
            "CMAKE_MAKE_PROGRAM": find_tool("ninja") or "ninja",
        }
        arguments = [f"-D{key}={value}" for key, value in settings.items()]
        arguments += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run([cmake, "-G", "Ninja", "-S", ".", "-B", build, *arguments], check=True)
        subprocess.run([cmake, "--build", build, *(["-j", jobs] if jobs else [])], check=True)
        install = ["--install", build, "--component", "python", "--prefix", destination]
        subprocess.run([cmake, *install], check=True)


class KernelsOnly(Distribution):
    """The same tree published as atlas-kernels: what pyproject.toml says of atlas is replaced."""

    def parse_config_files(self, *args, **kwargs):
        super().parse_config_files(*args, **kwargs)
        self.metadata.name = "atlas-kernels"
        self.metadata.description = "Differentiable kernels for coordinate-based brain maps"
        extras = {"torch": ["torch>=2.11"], "nimare": ["nimare>=0.22,<0.23"]}
        for holder in (self, self.metadata):  # setuptools has copied the one to the other by now
            holder.install_requires = ["numpy>=1.26"]
            holder.extras_require = extras
        self.metadata.provides_extras = dict.fromkeys(extras)
        self.entry_points = {}


def packages():
    kernels = find_packages(include=["atlas_kernels", "atlas_kernels.*"])
    if KERNELS_ONLY:
        return {"packages": kernels, "package_dir": {}, "distclass": KernelsOnly}
    # cli/ and web/ lie beside atlas/ but are installed inside it (docs/decisions).
    return {
        "packages": [
            *kernels,
            *find_packages(include=["atlas", "atlas.*"]),
            "atlas.cli",
            "atlas.web",
        ],
        "package_dir": {"atlas.cli": "cli", "atlas.web": "web"},
    }


setup(
    **packages(),
    include_package_data=False,
    package_data={
        "": [
            "py.typed",
            "*.pyi",
            "configs/*.yaml",
            "resources/*",
            "resources/*/*",
            "static/*",
            "static/**/*",
        ],
    },
    ext_modules=[Extension("atlas_kernels._kernels", sources=[], optional=not REQUIRE_EXTENSION)],
    cmdclass={"build_ext": BuildWithCMake},
    setup_requires=missing_tools(),
)
