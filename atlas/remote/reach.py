"""The way to a job's pod: opened, opened anew when it drops, given up when the pod is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeVar

from atlas.errors import AtlasError

from .errors import ProviderDown, ShellLost
from .provider import Pod, Shell
from .shell import pin
from .state import KEY, Job

T = TypeVar("T")
RUNNER = ("python3", "-m", "pod.runner")
LOST_AFTER = timedelta(minutes=15)  # of a pod that is said to run and does not answer
PAUSES = (1.0, 2.0, 5.0, 10.0)


class PodLost(AtlasError):
    """The pod is gone, or will not be reached again."""


class Ceiling(AtlasError):
    """The job's ceiling in money or time is reached."""


class Way:
    """Calls on the pod at work; a dropped connection costs time and nothing else."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stack = ExitStack()
        self._shell: Shell | None = None

    def __enter__(self) -> Way:
        """Nothing is opened before it is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._drop()

    def _drop(self) -> None:
        self._stack.close()
        self._shell = None

    def _open(self) -> Shell:
        if self._shell is None:
            pod = self.pod()
            if pod.endpoint is not None:
                pin(self.job.known_hosts(), pod.endpoint)
            way = self.job.provider.shell(pod, self.job.folder / KEY, self.job.known_hosts())
            self._shell = self._stack.enter_context(way)
        return self._shell

    def pod(self) -> Pod:
        """Return the pod as the provider sees it now."""
        machine = self.job.state.machine
        pod = self.job.provider.pod(machine.id or "")
        if pod.status in ("gone", "stopped"):
            raise PodLost(f"pod {machine.id} is {pod.status}")
        return pod

    def there(self, action: Callable[[Shell], T]) -> T:
        """Do something there that may be repeated, until it is done.

        Raises
        ------
        PodLost
            The provider says that it is gone, or it was not reached for a quarter of an hour.
        Ceiling
            The job's time is up.
        """
        since, tries = None, 0
        while True:
            try:
                found = action(self._open())
            except (ShellLost, ProviderDown) as error:
                since = since or self.job.clock.now()
                self._again(error, since, tries)
                tries += 1
                continue
            if since is not None and tries > 1:
                self.job.say("reach", "connected again")
            return found

    def _again(self, error: AtlasError, since: Any, tries: int) -> None:
        """Wait before another attempt, or say why there will be none."""
        self._drop()
        job, now = self.job, self.job.clock.now()
        end = job.state.end_of(job.state.machine)
        if end is not None and now >= end:
            raise Ceiling("the ceiling is reached")
        if isinstance(error, ShellLost):
            self._check()
            if now - since > LOST_AFTER:
                raise PodLost(f"pod {job.state.machine.id}: not reached for 15 minutes ({error})")
        elif job.state.step in ("wait", "create") and now - since > LOST_AFTER:
            raise error
        if tries == 1:  # not for a single hiccup
            job.say("reach", f"connection lost ({error}); what runs there goes on")
        job.clock.sleep(PAUSES[min(tries, len(PAUSES) - 1)])

    def _check(self) -> None:
        try:
            self.pod()
        except ProviderDown:  # this machine has no network, most likely
            return

    def ask(self, verb: str, timeout: float = 120) -> dict[str, Any]:
        """Call a verb of the runner that answers in JSON."""
        said = self.call(verb, timeout=timeout)
        try:
            answer: dict[str, Any] = json.loads(said)
        except ValueError:
            start = said[:80].decode(errors="replace").strip()
            raise AtlasError(f"{verb}: the pod answered {start!r}, which is no JSON") from None
        return answer

    def call(self, verb: str, timeout: float = 120, stdin: bytes | None = None) -> bytes:
        """Call a verb of the runner."""
        return self.there(lambda shell: shell.run([*RUNNER, verb], stdin=stdin, timeout=timeout))
