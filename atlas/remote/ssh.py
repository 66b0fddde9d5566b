"""Provider `ssh`: any machine that one has; a job is a folder there, ~/.atlas/jobs/NAME.

The user's own keys, agent and ssh_config apply. A host key that is known is checked; that of the
first contact is kept in ATLAS_HOME/remote/known_hosts and checked from then on.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from atlas.errors import AtlasError, OptionError

from .errors import CommandFailed, ProviderDown, ShellLost
from .ledger import home, is_ours
from .provider import Account, Clock, Endpoint, Offer, Pod, PodSpec
from .shell import SshShell

JOBS, _ABOUT = ".atlas/jobs", "pod.json"
_HOST = re.compile(
    r"(?:(?P<user>[^@\s-][^@\s]*)@)?(?P<host>[\w.][\w.-]*|\[[0-9a-fA-F:]+\])(?::(?P<port>\d+))?"
)
_LIST = f"for f in {JOBS}/atlas-*/{_ABOUT}; do [ ! -f $f ] || {{ cat $f; echo; }}; done"
_GPU = "nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits 2>/dev/null || true"
_ROW = re.compile(r"([^,]+), *(\d+|\[N/A\])")  # what it says without a driver is none
# Out of sight at once, then file by file: what still ends in the folder may write a last file. Also
# what a client that was killed here had left.
_END = f"""cd {JOBS} 2>/dev/null || exit 0
if [ -d {{name}} ]; then
  (cd {{name}}
   [ ! -s watchdog.pid ] || kill $(cat watchdog.pid) 2>/dev/null
   [ ! -d pod ] || python3 -m pod.runner stop)
  mv {{name}} .going-{{name}}-$$ || [ ! -d {{name}} ] || exit 1
fi
rm -rf .going-* 2>/dev/null || true"""


class Ssh:
    """Pods are folders on one machine; an id is MACHINE/NAME."""

    name = "ssh"
    bills = False

    def __init__(self, clock: Clock, host: str, options: tuple[str, ...] = ()) -> None:
        self._clock, self.host, self._options = clock, host, options
        self._endpoint = endpoint(host)

    def _open(self, root: str) -> SshShell:
        known = home() / "remote" / "known_hosts"
        known.parent.mkdir(parents=True, exist_ok=True)
        hosts = (str(known), str(Path.home() / ".ssh" / "known_hosts"))
        settings = [f"UserKnownHostsFile={' '.join(hosts)}", "StrictHostKeyChecking=accept-new"]
        return SshShell(self._endpoint, root, [*self._options, *settings])

    def _ask(self, line: str) -> str:
        """Run a line of sh in the folder that a login begins in, which JOBS is relative to."""
        try:
            with self._open(".") as shell:
                return shell.run(["sh", "-c", line]).decode()
        except ShellLost as error:
            raise ProviderDown(str(error)) from None

    def account(self) -> Account:
        """Log in."""
        try:
            said = self._ask("id -un").split()
        except ProviderDown as error:
            raise AtlasError(f"--host {self.host}: {error}") from None
        if len(said) != 1:
            raise AtlasError(
                f"--host {self.host}: its shell says more than it is asked "
                f"({' '.join(said)[:60]!r}); let ~/.bashrc there print nothing without a terminal"
            )
        return Account(said[0])

    def offers(self, gpus: int = 1) -> list[Offer]:
        """Offer the machine's GPUs, or its CPU."""
        rows = [row for line in self._ask(_GPU).splitlines() if (row := _ROW.fullmatch(line))]
        if not rows:
            return [Offer("CPU", "cpu", 0.0, 0.0, "high")]
        name, memory = rows[0][1].strip(), rows[0][2]
        stock: Any = "high" if len(rows) >= gpus else "none"
        short = name.removeprefix("NVIDIA ").removeprefix("GeForce ")
        return [Offer(short, name, float(memory) / 1024 if memory.isdigit() else 0.0, 0.0, stock)]

    def create(self, spec: PodSpec) -> Pod:
        """Make the job's folder there."""
        about = {"name": spec.name, "gpu": spec.offer.gpu, "created": self._clock.now().isoformat()}
        try:
            with self._open(f"{JOBS}/{spec.name}") as shell:
                if not shell.read(_ABOUT):
                    shell.run(["sh", "-c", f"cat > {_ABOUT}"], stdin=json.dumps(about).encode())
        except ShellLost as error:
            raise ProviderDown(str(error)) from None
        return self.pod(self._id(spec.name))

    def _id(self, name: str) -> str:
        return f"{self.host}/{name}"

    def pods(self) -> list[Pod]:
        """Every job's folder on the machine."""
        found = []
        for line in self._ask(_LIST).splitlines():
            with suppress(ValueError):  # a folder that was never finished
                found.append(self._pod(json.loads(line)))
        return found

    def _pod(self, about: dict[str, Any]) -> Pod:
        created = datetime.fromisoformat(about["created"])
        return Pod(self._id(about["name"]), about["name"], "running", 0.0, about["gpu"],
                   created=created, endpoint=self._endpoint)  # fmt: skip

    def pod(self, pod_id: str) -> Pod:
        """One job's folder."""
        name = pod_id.rpartition("/")[2]
        if is_ours(name):
            text = self._ask(f"cat {JOBS}/{name}/{_ABOUT} 2>/dev/null || true").strip()
            with suppress(ValueError):
                return self._pod(json.loads(text))
        return Pod(pod_id, name, "gone", 0.0)

    def terminate(self, pod_id: str) -> None:
        """End the job there and take its folder away."""
        name = pod_id.rpartition("/")[2]
        if not is_ours(name):
            return
        try:
            self._ask(_END.format(name=name))
        except CommandFailed as error:
            raise ProviderDown(f"{pod_id}: not taken away: {error}") from None

    def cost(self, pod: Pod) -> float | None:
        """Nothing."""
        return 0.0

    def shell(self, pod: Pod, key: Path, known_hosts: Path) -> SshShell:
        """Open the job's folder there, with the user's own key."""
        return self._open(f"{JOBS}/{pod.name}")


def endpoint(host: str) -> Endpoint:
    """Read [USER@]HOST[:PORT]; without a user or a port ssh_config decides."""
    found = _HOST.fullmatch(host)
    if found is None:
        raise OptionError(f"--host {host!r}: expected [USER@]HOST[:PORT]")
    name = found["host"].strip("[]")
    return Endpoint(name, int(found["port"] or 0), found["user"] or "")


def connect(*, clock: Clock, host: str | None = None, **_: Any) -> Ssh:
    """Return the provider; nothing is sent yet."""
    if not host:
        raise OptionError("--host: --remote ssh needs the machine's name")
    return Ssh(clock, host)
