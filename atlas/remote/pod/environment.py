"""Unpacks the code and finds, or makes, the Python environment that the job runs in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

from . import files

PYTHON = "python"  # file that names the interpreter
CODE, BUNDLE, DIFF, WHEEL = "code", "code.bundle", "code.diff", "code.whl"
LOCK, REQUIRED = "lock.txt", "requirements.txt"
IMAGE_PYTHON = "/opt/atlas/bin/python"  # in an image made for atlas
_MISSING = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
out = [] if sys.version_info >= (3, 11) else ["Python 3.11"]
for name, wanted in json.load(sys.stdin).items():
    try:
        found = version(name).partition("+")[0]
    except PackageNotFoundError:
        found = None
    if found is None or (wanted and found != wanted):
        out.append(name + (" " + wanted if wanted else ""))
print(json.dumps(out))
"""


def install(root: str) -> str:
    """Make code/ and the environment ready; return a line that says what was used."""
    unpack(root)
    given = files.job(root).get("python")
    python, how = _given(root, given) if given else _found_or_made(root)
    files.write(root, PYTHON, python)
    return f"{how}, {_extension(os.path.join(root, CODE), python)}"


def unpack(root: str) -> None:
    """Clone the bundle and apply the changes to tracked files, or unzip the wheel."""
    code, work = os.path.join(root, CODE), os.path.join(root, CODE + ".part")
    if os.path.isdir(code):
        return
    shutil.rmtree(work, ignore_errors=True)
    if os.path.exists(os.path.join(root, WHEEL)):
        zipfile.ZipFile(os.path.join(root, WHEEL)).extractall(work)
        os.rename(work, code)
        return
    _call("git clone", ["git", "clone", "-q", os.path.join(root, BUNDLE), work], root)
    commit = files.job(root)["commit"]
    _call("git checkout", ["git", "-C", work, "checkout", "-q", "--detach", commit], root)
    diff = os.path.join(root, DIFF)
    if os.path.exists(diff) and os.path.getsize(diff):
        apply = ["git", "-C", work, "apply", "--whitespace=nowarn", os.path.abspath(diff)]
        _call("git apply", apply, root)
    for name in ("cli", "web"):  # installed as atlas.cli and atlas.web
        link = os.path.join(work, "atlas", name)
        if os.path.isdir(os.path.join(work, name)) and not os.path.lexists(link):
            os.symlink(os.path.join("..", name), link)
    os.rename(work, code)


def _given(root: str, python: str) -> tuple[str, str]:
    missing = [name.split()[0] for name in _missing(root, python, exact=False)]
    if missing:
        raise SystemExit("{}: lacks {}".format(python, ", ".join(missing)))
    return python, f"uses {python}"


def _found_or_made(root: str) -> tuple[str, str]:
    """Reuse what the image brings if it is what the lock says, else install into a venv."""
    for python in (IMAGE_PYTHON, shutil.which("python3.11"), shutil.which("python3")):
        if python and os.path.exists(python) and not _missing(root, python, exact=True):
            return python, f"reuses {python}"
    key = hashlib.sha256((files.read(root, LOCK) + files.read(root, REQUIRED)).encode())
    place = os.path.join(_cache(), "env-" + key.hexdigest()[:16])
    python = os.path.join(place, "bin", "python")
    if os.path.exists(os.path.join(place, ".ready")):
        return python, f"reuses {place}"
    base = shutil.which("python3.11") or sys.executable
    _call("python -m venv", [base, "-m", "venv", "--system-site-packages", place], root)
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _call("pip install", [*pip, "-r", REQUIRED, "-c", LOCK], root)
    with open(os.path.join(place, ".ready"), "w"):
        pass
    return python, "installed from the lock"


def _missing(root: str, python: str, exact: bool) -> list[str]:
    """Ask an interpreter which of the required packages it lacks."""
    locked = {}
    for line in files.read(root, LOCK).splitlines():
        name, equals, version = line.split("#")[0].partition("==")
        if equals:
            locked[_plain(name)] = version.split(";")[0].strip().partition("+")[0]
    wanted = {}
    for line in files.read(root, REQUIRED).splitlines():
        words = "".join(c if c.isalnum() or c in "-_." else " " for c in line).split()
        if words:
            wanted[words[0]] = locked.get(_plain(words[0]), "") if exact else ""
    command = [python, "-c", _MISSING]
    done = subprocess.run(command, input=json.dumps(wanted).encode(), stdout=subprocess.PIPE)
    missing: list[str] = json.loads(done.stdout) if done.returncode == 0 else ["3.11"]
    return missing


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _extension(code: str, python: str) -> str:
    """Bring the C++ kernels: built here for these sources before, or built now."""
    if not os.path.isdir(os.path.join(code, "csrc")):
        return "kernels as in the wheel"
    kept = os.path.join(_cache(), "kernels-" + native_key(code, python))
    target = os.path.join(code, "atlas_kernels")
    if not os.path.isdir(kept):
        subprocess.call(
            [python, "setup.py", "-q", "build_ext", "--inplace"], cwd=code, stdout=sys.stderr
        )
        built = [n for n in os.listdir(target) if n.startswith("_kernels") and n.endswith(".so")]
        if not built:
            return "no C++ kernels (no compiler?): the slower PyTorch ones"
        work = f"{kept}.part{os.getpid()}"
        os.makedirs(work)
        for name in built:
            shutil.copy2(os.path.join(target, name), work)
        os.rename(work, kept)
        return "kernels built"
    for name in os.listdir(kept):
        shutil.copy2(os.path.join(kept, name), target)
    return "kernels built before"


def native_key(code: str, python: str) -> str:
    """Name what the binary depends on: its sources and the interpreter's ABI."""
    ask = "import sysconfig; print(sysconfig.get_config_var('SOABI'))"
    digest = hashlib.sha256(subprocess.check_output([python, "-c", ask]))
    listed = [os.path.join(code, name) for name in ("CMakeLists.txt", "setup.py")]
    for place, folders, names in os.walk(os.path.join(code, "csrc")):
        folders.sort()
        listed += [os.path.join(place, name) for name in sorted(names)]
    for path in listed:
        digest.update(os.path.relpath(path, code).encode())
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _cache() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = os.path.join(home, "atlas")
    os.makedirs(path, exist_ok=True)
    return path


def _call(what: str, argv: list[str], root: str) -> None:
    """Run a command; the line with its first error, or its last line, is the error."""
    done = subprocess.run(
        argv, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines() or ["no word"]
        errors = [line for line in said if line.startswith(("ERROR: ", "error: ", "fatal: "))]
        raise SystemExit(f"{what}: {(errors or said[-1:])[0]}")
