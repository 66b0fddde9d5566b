"""Provider `local`: a folder and a process of this machine; the same steps without a bill."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from atlas.files import write_text

from .ledger import home, is_ours
from .pod import files, watchdog
from .provider import Account, Clock, Offer, Pod, PodSpec
from .shell import LocalShell

_ABOUT = "pod.json"
_GOING = ".going-"  # a pod's folder that is being removed; no pod any more


class Local:
    """Pods are folders below ATLAS_HOME/remote/local; their names are their ids."""

    name = "local"
    bills = False

    def __init__(self, clock: Clock, folder: Path | None = None) -> None:
        self._clock = clock
        self._folder = folder or home() / "remote" / "local"

    def account(self) -> Account:
        """Nobody is asked."""
        return Account(os.environ.get("USER", "local"))

    def offers(self, gpus: int = 1) -> list[Offer]:
        """Offer this machine."""
        return [Offer("this machine", "local", 0.0, 0.0, "high")]

    def create(self, spec: PodSpec) -> Pod:
        """Make the folder."""
        root = self._folder / spec.name
        if not (root / _ABOUT).exists():
            root.mkdir(parents=True, exist_ok=True)
            about = {"gpu": spec.offer.gpu, "created": self._clock.now().isoformat()}
            write_text(root / _ABOUT, json.dumps(about))
        return self.pod(spec.name)

    def pods(self) -> list[Pod]:
        """Every folder."""
        found = sorted(self._folder.glob(f"atlas-*/{_ABOUT}"))
        return [self.pod(path.parent.name) for path in found if is_ours(path.parent.name)]

    def pod(self, pod_id: str) -> Pod:
        """One folder."""
        try:
            about = json.loads((self._folder / pod_id / _ABOUT).read_text())
        except (OSError, ValueError):
            return Pod(pod_id, pod_id, "gone", 0.0)
        created = datetime.fromisoformat(about["created"])
        return Pod(pod_id, pod_id, "running", 0.0, about["gpu"], created=created)

    def terminate(self, pod_id: str) -> None:
        """End its job and take the folder away: out of sight at once, then file by file."""
        root = self._folder / pod_id
        if is_ours(pod_id) and root.is_dir():
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(files.read(str(root), files.WATCHDOG_PID)), signal.SIGTERM)
            watchdog.stop(str(root))
            with suppress(FileNotFoundError):  # another client was faster
                root.rename(self._folder / f"{_GOING}{pod_id}-{secrets.token_hex(4)}")
        for left in self._folder.glob(f"{_GOING}*"):  # also of a client that was killed here
            shutil.rmtree(left, ignore_errors=True)

    def cost(self, pod: Pod) -> float | None:
        """Nothing."""
        return 0.0

    def shell(self, pod: Pod, key: Path, known_hosts: Path) -> LocalShell:
        """Its folder."""
        return LocalShell(self._folder / pod.id)


def connect(*, clock: Clock, **_: Any) -> Local:
    """Return the provider."""
    return Local(clock)
