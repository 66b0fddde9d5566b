"""Provider `runpod`: pods by the second, over REST v2 or the runpod SDK.

The API has neither idempotency keys nor pods that end by themselves, so the care is taken here: a
create call whose answer is lost is looked for by name before it is tried again, a pod that costs
more than its offer is terminated, and terminate returns when the pod is confirmed gone.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from atlas.errors import AtlasError, require

from . import keys
from .backoff import STUBBORN, Backoff
from .errors import KeyRefused, OutOfStock, PriceRose, ProviderDown
from .ledger import is_ours
from .provider import Account, Clock, Offer, Pod, PodSpec, Shell
from .shell import SshShell, job_options

T = TypeVar("T")

ROOT = "/workspace/atlas"  # of the job on a pod; on the network volume where there is one
HOST_KEY = "atlas-host-key "  # the start script's line of the container's log, before sshd starts
HOST_KEY_WAIT = timedelta(seconds=60)  # an image that does not say it is trusted on first use then
# A new pod may be missing in the list for a while.
_LOOKS = Backoff(attempts=6, first=2.0, most=16.0)
_MARGIN, _DISK_MONTH = 1.05, 0.10 / 730  # of a price read back; USD an hour of one GB of disk


class Transport(Protocol):
    """The calls that RunPod needs, one attempt each; errors as in errors.py, and no others."""

    tells_host_keys: bool

    def account(self) -> Account:
        """Whose key it is."""
        ...

    def offers(self, gpus: int) -> list[Offer]:
        """Every kind of GPU."""
        ...

    def create(self, spec: PodSpec, regions: tuple[str, ...]) -> Pod:
        """ProviderDown with `sent` where the pod may exist nevertheless."""
        ...

    def pods(self) -> list[Pod]:
        """All pods of the account."""
        ...

    def pod(self, pod_id: str) -> Pod | None:
        """One pod; None where there is none."""
        ...

    def delete(self, pod_id: str) -> None:
        """No error where it is gone."""
        ...

    def billed(self, pod: Pod) -> float | None:
        """USD so far, where it is told."""
        ...

    def log(self, pod_id: str) -> Iterable[str]:
        """Lines of the container's log, as far as there are any now."""
        ...


class RunPod:
    """The provider over either transport."""

    name = "runpod"
    bills = True

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        rng: random.Random | None = None,
        open_shell: Callable[[Pod, Path, Path], AbstractContextManager[Shell]] | None = None,
    ):
        self._transport = transport
        self._clock = clock
        self._rng = rng or random.Random()
        self._open_shell = open_shell or _ssh
        self._host_keys: dict[str, str] = {}
        self._first_seen: dict[str, datetime] = {}
        self._doubtful: dict[str, str] = {}  # pods that may have a twin: an earlier create's, late

    def account(self) -> Account:
        """Authenticate."""
        return self._try(self._transport.account)

    def offers(self, gpus: int = 1) -> list[Offer]:
        """GPUs of the secure cloud, cheapest first."""
        found = self._try(lambda: self._transport.offers(gpus))
        return sorted(found, key=lambda offer: (offer.price, offer.gpu))

    def create(self, spec: PodSpec) -> Pod:
        """Create one pod, or return the one of this name that there is."""
        _check(spec)
        regions = _regions(spec)
        pod = self._named(spec.name) or self._make(spec, regions)
        if pod.price <= 0:
            seen = self._try(lambda: self._transport.pod(pod.id)) or pod
            pod = replace(pod, price=seen.price or spec.offer.price * spec.gpus)
        quoted = spec.offer.price * spec.gpus
        if pod.price > quoted * _MARGIN + spec.disk * _DISK_MONTH:
            self.terminate(pod.id)
            raise PriceRose(
                f"{spec.offer.gpu}: offered at ${quoted:.2f} an hour, came at ${pod.price:.2f};"
                " terminated again",
                pod=pod,
            )
        return replace(pod, gpu=spec.offer.gpu, gpus=spec.gpus)

    def pods(self) -> list[Pod]:
        """Every pod of ours that may cost something."""
        found = self._try(self._transport.pods)
        return [pod for pod in found if is_ours(pod.name) and pod.status != "gone"]

    def pod(self, pod_id: str) -> Pod:
        """One pod. Its endpoint appears together with its host key, where the image says one."""
        pod = self._try(lambda: self._transport.pod(pod_id))
        if pod is None:
            return Pod(id=pod_id, name="", status="gone", price=0.0)
        if pod.status == "running":
            self._drop_twins(pod.id)
        if pod.endpoint is None or not self._transport.tells_host_keys:
            return pod
        key = self._host_keys.get(pod_id) or self._try(lambda: self._published_key(pod_id))
        if key is not None:
            self._host_keys[pod_id] = key
            return replace(pod, endpoint=replace(pod.endpoint, host_key=key))
        now = self._clock.now()
        waited = now - self._first_seen.setdefault(pod_id, now)
        return pod if waited >= HOST_KEY_WAIT else replace(pod, endpoint=None)

    def terminate(self, pod_id: str) -> None:
        """End it, asking again until it is confirmed gone."""

        def once() -> None:
            try:
                self._transport.delete(pod_id)
                left = self._transport.pod(pod_id)
            except KeyRefused as error:  # a gateway's mood as often as a key taken back
                raise ProviderDown(str(error)) from None
            if left is not None and left.status != "gone":
                raise ProviderDown(f"pod {pod_id}: still there after the request to end it")

        try:
            STUBBORN.call(once, self._clock, self._rng)
        except ProviderDown as error:
            raise ProviderDown(
                f"pod {pod_id} may still be running and cost money: {error}. Go on trying with:"
                f" atlas remote stop {pod_id}"
            ) from None
        self._drop_twins(pod_id)

    def cost(self, pod: Pod) -> float | None:
        """USD that RunPod has billed; it may lag behind by minutes."""
        try:
            return self._try(lambda: self._transport.billed(pod))
        except ProviderDown:
            raise
        except AtlasError:  # a key that may make pods need not be one that may read bills
            return None

    def shell(self, pod: Pod, key: Path, known_hosts: Path) -> AbstractContextManager[Shell]:
        """SSH to the pod's own sshd (the provider's proxy carries no files)."""
        return self._open_shell(pod, key, known_hosts)

    def _try(self, action: Callable[[], T]) -> T:
        return Backoff().call(action, self._clock, self._rng)

    def _named(self, name: str) -> Pod | None:
        return next((p for p in self.pods() if p.name == name), None)

    def _make(self, spec: PodSpec, regions: tuple[str, ...]) -> Pod:
        unclear = False
        for pause in (*Backoff().pauses(self._rng), None):
            try:
                pod = self._transport.create(spec, regions)
            except ProviderDown as error:
                unclear = unclear or error.sent
                if unclear and (found := self._look(spec.name)):
                    return found
                if pause is None or (error.retry_after or 0) > Backoff.longest_wait:
                    raise ProviderDown(str(error), sent=unclear) from None
                self._clock.sleep(max(pause, error.retry_after or 0))
            except AtlasError as error:
                if not unclear:
                    raise
                if found := self._look(spec.name):
                    return found
                raise ProviderDown(
                    f"{error}; an earlier call may have made it", sent=True
                ) from None
            else:
                if unclear:
                    self._doubtful[pod.id] = pod.name
                    self._drop_twins(pod.id)
                return pod
        raise AssertionError("unreachable")

    def _look(self, name: str) -> Pod | None:
        """Look for a pod whose create call was not answered."""
        for pause in (*_LOOKS.pauses(self._rng), None):
            try:
                found = self._named(name)
            except ProviderDown as error:
                raise ProviderDown(str(error), sent=True) from None
            if found is not None:
                return found
            if pause is not None:
                self._clock.sleep(pause)
        return None

    def _drop_twins(self, pod_id: str) -> None:
        """End what an unanswered create call made after all, once it is listed."""
        name = self._doubtful.get(pod_id)
        for other in self.pods() if name else ():
            if other.name == name and other.id != pod_id:
                self.terminate(other.id)

    def _published_key(self, pod_id: str) -> str | None:
        for line in self._transport.log(pod_id):
            if line.startswith(HOST_KEY):
                found = re.match(r"([a-z0-9-]+) ([A-Za-z0-9+/=]+)", line[len(HOST_KEY) :])
                if found:
                    return f"{found[1]} {found[2]}"
        return None


def connect(
    *,
    clock: Clock,
    transport: str = "rest",
    env: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    **options: Any,
) -> RunPod:
    """Read the key and return the provider; nothing is sent yet."""
    key = keys.need("RUNPOD_API_KEY", env=env, folder=folder)
    chosen: Transport
    if transport == "rest":
        require("httpx", "remote")
        from .runpod_rest import Rest

        chosen = Rest(key, env.get("ATLAS_RUNPOD_URL", ""), options.get("http"))
    elif transport == "sdk":
        from .runpod_sdk import Sdk

        chosen = Sdk(key, env.get("ATLAS_RUNPOD_URL", ""))
    else:
        raise AtlasError(f"transport {transport}: expected rest or sdk")
    return RunPod(chosen, clock, options.get("rng"), options.get("open_shell"))


def _ssh(pod: Pod, key: Path, known_hosts: Path) -> AbstractContextManager[Shell]:
    if pod.endpoint is None:
        raise AtlasError(f"pod {pod.id}: has no address for SSH yet")
    return SshShell(pod.endpoint, f"{ROOT}/{pod.name}", job_options(key, known_hosts))


def _check(spec: PodSpec) -> None:
    """Refuse what could leave the place where it is pasted, in a shell or in GraphQL."""
    values = {"name": spec.name, "image": spec.image, "args": spec.args, "key": spec.public_key}
    values |= {"volume": spec.volume or "", "region": spec.region or ""}
    values |= {f"env {name}": value for name, value in spec.env.items()}
    for name, value in values.items():
        if not value.isprintable() or '"' in value or "\\" in value:
            raise AtlasError(f"{name} of the pod: no quotes, backslashes or line ends")
    if not is_ours(spec.name):
        raise AtlasError(f"{spec.name}: no name for a pod of ours; ledger.new_name gives one")


def _regions(spec: PodSpec) -> tuple[str, ...]:
    """Return the data centres that the wish names, `EU` or `EU-RO-1`; empty: any."""
    if spec.region is None:
        return ()
    if not spec.offer.regions:
        return (spec.region,)
    wish = spec.region.upper()
    found = tuple(r for r in spec.offer.regions if r.upper() == wish or r.startswith(f"{wish}-"))
    if not found:
        there = ", ".join(spec.offer.regions)
        raise OutOfStock(
            f"{spec.offer.gpu}: none in region {spec.region}; there are some in {there}"
        )
    return found
