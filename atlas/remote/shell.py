"""Commands and files on another machine: OpenSSH and rsync as subprocesses, or a local folder."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from atlas.errors import AtlasError

from .errors import CommandFailed, ShellLost
from .keys import keyless
from .provider import Endpoint

_SSH_FAILED = 255  # ssh's own exit code; a command's 255 is turned into 254 over there
_KEPT = 5  # last lines of stderr that an error quotes
TRANSFER_S = 6 * 3600.0  # the longest that one rsync may take; it stalls out much earlier


def require_tools() -> None:
    """Refuse a machine without ssh or rsync, before any money is spent."""
    for tool in ("ssh", "ssh-keygen", "rsync"):
        if shutil.which(tool) is None:
            package = "rsync" if tool == "rsync" else "openssh-client"
            raise AtlasError(f"{tool} is not on this machine: install {package}")


def make_key(path: Path) -> str:
    """Make an ed25519 key pair for one job, unless it is there; return the public half."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "atlas", "-f", str(path)]
        nothing = subprocess.DEVNULL
        subprocess.run(command, check=True, stdin=nothing, stdout=nothing, env=keyless())
    return path.with_suffix(".pub").read_text().strip()


def pin(known_hosts: Path, endpoint: Endpoint) -> None:
    """Write the host key that the provider gave; a pod that shows another one is refused."""
    if endpoint.host_key:
        kind, key = endpoint.host_key.split()[:2]
        name = endpoint.host if endpoint.port == 22 else f"[{endpoint.host}]:{endpoint.port}"
        line = f"{name} {kind} {key}\n"
        old = known_hosts.read_text() if known_hosts.exists() else ""
        if line not in old:
            with known_hosts.open("a") as file:
                file.write(line)


def _finish(
    command: Sequence[str], stdin: bytes | IO[bytes] | None, timeout: float, cwd: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a process in a session of its own, so that Ctrl-C here asks first and kills nothing."""
    given = stdin if isinstance(stdin, bytes) else None
    source = subprocess.PIPE if isinstance(stdin, bytes) else stdin or subprocess.DEVNULL
    with subprocess.Popen(
        command,
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=keyless(),
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(given, timeout)
        except BaseException:
            # Its pipes are not read to the end: the shared connection holds them open, too.
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _last_lines(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in lines[-_KEPT:] if line.strip())


class LocalShell:
    """A folder of this machine, through the same calls."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)

    def __enter__(self) -> LocalShell:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def _check(self) -> None:
        if not os.path.isdir(self.root):
            raise ShellLost(f"{self.root}: the folder is gone")

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Take what fails because the folder was removed under it for a lost way."""
        self._check()
        try:
            yield
        except (CommandFailed, OSError):
            self._check()
            raise

    def run(
        self, argv: Sequence[str], *, stdin: bytes | IO[bytes] | None = None, timeout: float = 60
    ) -> bytes:
        """Run to the end in the root folder and return stdout."""
        with self._there():
            try:
                done = _finish(list(argv), stdin, timeout, self.root)
            except subprocess.TimeoutExpired:
                raise ShellLost(f"{argv[0]}: no answer in {timeout:g} s") from None
            except FileNotFoundError:
                raise CommandFailed(argv, 127, f"{argv[0]}: not found") from None
            if done.returncode:
                raise CommandFailed(argv, done.returncode, _last_lines(done.stderr))
        return done.stdout

    def read(self, path: str, offset: int = 0) -> bytes:
        """Bytes of a file from an offset on."""
        self._check()
        try:
            with open(os.path.join(self.root, path), "rb") as file:
                file.seek(offset)
                return file.read()
        except FileNotFoundError:
            self._check()
            return b""

    def push(self, source: Path, target: str) -> None:
        """Copy a file or a folder's content."""
        there = Path(self.root, target)
        with self._there():
            there.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, there, dirs_exist_ok=True)
            else:
                _copy(source, there)

    def pull(self, source: str, target: Path, names: Sequence[str]) -> None:
        """Copy files of a folder here, each whole or not at all."""
        with self._there():
            for name in names:
                here = target / name
                here.parent.mkdir(parents=True, exist_ok=True)
                try:
                    _copy(Path(self.root, source, name), here)
                except FileNotFoundError:
                    raise CommandFailed(["copy"], 1, f"{source}/{name} is not there") from None


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(f".part{os.getpid()}.{target.name}")
    try:
        shutil.copy2(source, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


class SshShell:
    """A folder of another machine over ssh and rsync; one connection, opened anew when it drops.

    Parameters
    ----------
    endpoint : Endpoint
    root : str
        Folder on that machine, made if missing; relative to the user's home, or absolute.
    options : sequence of str
        ``-o`` settings of ssh, the key and the known hosts among them.
    """

    def __init__(self, endpoint: Endpoint, root: str, options: Sequence[str]) -> None:
        self.endpoint, self.root = endpoint, root
        self._control = tempfile.mkdtemp(prefix="atlas-ssh-")
        settings = [
            "BatchMode=yes",
            "ConnectTimeout=15",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=3",
            "ControlMaster=auto",
            "ControlPersist=60",
            f"ControlPath={self._control}/%C",
            "LogLevel=ERROR",
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            *options,
        ]
        port = ["-p", str(endpoint.port)] if endpoint.port else []
        self._login = ["ssh", *port, *(word for o in options for word in ("-o", o))]
        self._ssh = ["ssh", *port, "-T", *(word for o in settings for word in ("-o", o))]
        self._where = f"{endpoint.user}@{endpoint.host}" if endpoint.user else endpoint.host

    def __enter__(self) -> SshShell:
        """Connect, and make the root folder."""
        try:
            self._remote("mkdir -p " + shlex.quote(self.root), None, 60)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; what was started there goes on."""
        self.close()

    def login(self) -> list[str]:
        """Return the command line with which a person logs in there."""
        return [*self._login, self._where]

    def close(self) -> None:
        """End the shared connection."""
        self._hang_up()
        shutil.rmtree(self._control, ignore_errors=True)

    def _hang_up(self) -> None:
        command = [*self._ssh, "-O", "exit", self._where]
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=keyless()
        )
        for socket in Path(self._control).glob("*"):
            socket.unlink(missing_ok=True)

    def _remote(
        self,
        line: str,
        stdin: bytes | IO[bytes] | None,
        timeout: float,
        argv: Sequence[str] = ("sh",),
    ) -> bytes:
        """Run a line of sh there; `argv` is what an error calls it."""
        try:
            done = _finish([*self._ssh, self._where, line], stdin, timeout)
        except subprocess.TimeoutExpired:
            self._hang_up()
            raise ShellLost(f"{self._where}: no answer in {timeout:g} s") from None
        said = _last_lines(done.stderr)
        if done.returncode == _SSH_FAILED or done.returncode < 0:
            self._hang_up()
            raise self._lost(said)
        if done.returncode:
            raise CommandFailed(argv, done.returncode, said)
        return done.stdout

    def _in_root(
        self,
        line: str,
        stdin: bytes | IO[bytes] | None,
        timeout: float,
        argv: Sequence[str] = ("sh",),
    ) -> bytes:
        """Run a line in the root folder; where that is gone, afterwards too, the way is lost."""
        root = shlex.quote(self.root)
        there = f"[ -d {root} ] || {{ echo the folder is gone >&2; exit {_SSH_FAILED}; }}"
        own = f"[ $c != {_SSH_FAILED} ] || c={_SSH_FAILED - 1}"
        run = f"(cd {root} && {{ {line}; }}); c=$?"
        whole = f"{there}; {run}; [ $c = 0 ] || {there}; {own}; exit $c"
        return self._remote(whole, stdin, timeout, argv)

    def _lost(self, said: str) -> AtlasError:
        if "host key" in said.lower() or "REMOTE HOST IDENTIFICATION" in said:
            return AtlasError(
                f"{self._where}, port {self.endpoint.port}: shows another host key than the one "
                "known for it; nothing was sent"
            )
        if "Permission denied" in said:
            return ShellLost(f"{self._where}: refuses the key ({said})")
        return ShellLost(f"{self._where}: {said or 'the connection was cut'}")

    def run(
        self, argv: Sequence[str], *, stdin: bytes | IO[bytes] | None = None, timeout: float = 60
    ) -> bytes:
        """Run to the end in the root folder and return stdout."""
        return self._in_root(shlex.join(argv), stdin, timeout, argv)

    def read(self, path: str, offset: int = 0) -> bytes:
        """Bytes of a file from an offset on."""
        name = shlex.quote(path)
        return self._in_root(f"[ ! -f {name} ] || tail -c +{offset + 1} {name}", None, 600)

    def push(self, source: Path, target: str) -> None:
        """Copy a file or a folder's content; what is there already is not sent again."""
        there = f"{self.root}/{target}"
        parent = os.path.dirname(target.rstrip("/")) or "."
        self._in_root("mkdir -p " + shlex.quote(parent), None, 60)
        origin = f"{source}/" if source.is_dir() else str(source)
        self._rsync([origin, f"{self._where}:{shlex.quote(there)}"])

    def pull(self, source: str, target: Path, names: Sequence[str]) -> None:
        """Copy files of a folder here, each whole or not at all; a cut transfer is taken up."""
        if not names:
            return
        target.mkdir(parents=True, exist_ok=True)
        listed = "".join(f"{name}\0" for name in names).encode()
        origin = f"{self._where}:{shlex.quote(f'{self.root}/{source}/')}"
        self._rsync(["--from0", "--files-from=-", origin, f"{target}/"], listed)

    def _rsync(self, arguments: Sequence[str], stdin: bytes | None = None) -> None:
        command = [
            "rsync",
            "-rltp",
            "--old-args",
            "--timeout=60",
            "--partial-dir=.rsync-partial",
            "-e",
            shlex.join(self._ssh),
            *arguments,
        ]
        try:
            done = _finish(command, stdin, TRANSFER_S)
        except FileNotFoundError:
            raise AtlasError("rsync is not on this machine: install rsync") from None
        except subprocess.TimeoutExpired:
            raise ShellLost(f"{self._where}: rsync took over {TRANSFER_S / 3600:g} hours") from None
        if done.returncode == 0:
            return
        said = _last_lines(done.stderr)
        if "No space left" in said or "Disk quota" in said:
            raise CommandFailed(["rsync"], done.returncode, f"the disk is full ({said})")
        # 23, 24: some files vanished or cannot be read; 127: no rsync there; the rest: cut.
        # A folder that is not there is 23 for one rsync, 12 (a cut) for the next.
        broken = "command not found" in said or "change_dir" in said
        if done.returncode in (1, 2, 3, 4, 11, 23, 24) or broken:
            self._in_root("true", None, 60)
            raise CommandFailed(["rsync"], done.returncode, said)
        self._hang_up()
        raise self._lost(said)


def job_options(key: Path, known_hosts: Path) -> list[str]:
    """Return ssh settings for a pod: the job's key, its pinned host key or that of first use."""
    return [
        f"IdentityFile={key}",
        "IdentitiesOnly=yes",
        f"UserKnownHostsFile={known_hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=" + ("yes" if _holds_keys(known_hosts) else "accept-new"),
    ]


def _holds_keys(known_hosts: Path) -> bool:
    return known_hosts.is_file() and known_hosts.stat().st_size > 0
