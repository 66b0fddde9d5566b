"""RunPod through its own SDK, which speaks the GraphQL API; only where it is asked for.

What the SDK does to strings (pasted into the query as they are), to answers that are no JSON
(a bare KeyError or JSONDecodeError) and to its errors (they carry the whole query) stays here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from atlas.errors import AtlasError, require

from .errors import KeyRefused, NoBalance, OutOfStock, ProviderDown
from .keys import Key
from .provider import Account, Endpoint, Offer, Pod, PodSpec, PodStatus
from .runpod_rest import URL, VOLUME, safe_url

_OFFERS = """query {
  gpuTypes {
    id displayName memoryInGb secureCloud securePrice
    lowestPrice(input: {gpuCount: %d, secureCloud: true}) { stockStatus uninterruptablePrice }
  }
}"""
_ACCOUNT = "query { myself { id clientBalance } }"
_NO_STOCK = re.compile(
    r"no longer any instances|not have the resources|no instances|free GPUs", re.I
)
_NO_MONEY = re.compile(r"balance|funds|payment", re.I)
_STATUS: dict[str, PodStatus] = {"RUNNING": "running", "EXITED": "stopped", "TERMINATED": "gone"}


class Sdk:
    """One attempt a call, as runpod_rest.Rest. The GraphQL API has no logs, so no host keys."""

    tells_host_keys = False

    def __init__(self, key: Key, url: str = ""):
        self._key = key
        self._url = safe_url(url or URL)
        self._sdk: Any = require("runpod", "runpod-sdk")

    def account(self) -> Account:
        """Read the user and the balance."""
        user = self._query(_ACCOUNT)["myself"]
        return Account(user=str(user["id"]), balance=user.get("clientBalance"))

    def offers(self, gpus: int) -> list[Offer]:
        """List the secure cloud's catalogue in one query."""
        rows = self._query(_OFFERS % gpus)["gpuTypes"]
        return self._read(lambda: [_offer(row) for row in rows if row.get("securePrice")])

    def create(self, spec: PodSpec, regions: tuple[str, ...]) -> Pod:
        """Ask for one pod in one data centre: the GraphQL API takes no list of them."""
        reply = self._call(
            self._sdk.create_pod,
            name=spec.name,
            image_name=spec.image,
            gpu_type_id=spec.offer.gpu_id,
            gpu_count=spec.gpus,
            cloud_type="SECURE",
            data_center_id=regions[0] if regions else None,
            container_disk_in_gb=spec.disk,
            ports="22/tcp",
            volume_mount_path=VOLUME,
            network_volume_id=spec.volume,
            docker_args=spec.args,
            env={**spec.env, "PUBLIC_KEY": spec.public_key},
        )
        if reply is None:
            raise OutOfStock(f"{spec.offer.gpu}: no machine is free")
        pod_id = self._read(lambda: str(reply["id"]))
        return Pod(pod_id, spec.name, "starting", price=0.0, gpu=spec.offer.gpu, gpus=spec.gpus)

    def pods(self) -> list[Pod]:
        """List the account's pods."""
        rows = self._call(self._sdk.get_pods)
        return self._read(lambda: [_pod(row) for row in rows])

    def pod(self, pod_id: str) -> Pod | None:
        """Read one pod."""
        row = self._call(self._sdk.get_pod, _plain(pod_id))
        return None if row is None else self._read(lambda: _pod(row))

    def delete(self, pod_id: str) -> None:
        """Ask to end one pod; whether it is gone is seen by reading it."""
        if self.pod(pod_id) is not None:
            self._call(self._sdk.terminate_pod, _plain(pod_id))

    def billed(self, pod: Pod) -> float | None:
        """Return None: the SDK knows no bills."""
        return None

    def log(self, pod_id: str) -> Iterator[str]:
        """Yield nothing: the SDK knows no logs."""
        yield from ()

    def _query(self, query: str) -> Any:
        reply = self._call(self._sdk.api.graphql.run_graphql_query, query)
        return self._read(lambda: dict(reply["data"]))

    def _call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Call into the SDK; what it raises becomes one of ours, without the query or the key."""
        import requests

        error_types = self._sdk.error
        try:
            with self._lent():
                return function(*arguments, **keywords)
        except error_types.AuthenticationError:
            raise KeyRefused(f"RunPod does not accept {self._key.source}") from None
        except error_types.QueryError as error:
            raise self._refusal(str(error)) from None
        except requests.exceptions.ConnectTimeout:
            raise ProviderDown("RunPod: no connection") from None
        except requests.exceptions.ConnectionError as error:
            sent = "NewConnectionError" not in repr(error) and "refused" not in repr(error)
            raise ProviderDown("RunPod: the connection was cut", sent=sent) from None
        except (requests.exceptions.RequestException, json.JSONDecodeError):
            raise ProviderDown("RunPod: no answer, or one that is no JSON", sent=True) from None
        except ValueError:
            raise OutOfStock("RunPod does not know this GPU") from None
        except (KeyError, TypeError):  # an error's JSON, or the one of a 429
            raise ProviderDown("RunPod: an answer without data", sent=True) from None

    def _refusal(self, said: str) -> AtlasError:
        line = self._key.secret.hide(" ".join(said.split()))[:200]
        if _NO_STOCK.search(line):
            return OutOfStock(f"RunPod: {line}")
        if _NO_MONEY.search(line):
            return NoBalance(f"RunPod: {line}")
        if "internal" in line.lower():
            return ProviderDown(f"RunPod: {line}", sent=True)
        return AtlasError(f"RunPod refuses the request: {line}")

    def _read(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ProviderDown("RunPod: an answer that is not as documented", sent=True) from None

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Set the SDK's global key and URL for one call, and no longer."""
        before, url = self._sdk.api_key, os.environ.get("RUNPOD_API_BASE_URL")
        self._sdk.api_key = self._key.secret.reveal()
        os.environ["RUNPOD_API_BASE_URL"] = self._url
        try:
            yield
        finally:
            self._sdk.api_key = before
            if url is None:
                del os.environ["RUNPOD_API_BASE_URL"]
            else:
                os.environ["RUNPOD_API_BASE_URL"] = url


def _offer(row: dict[str, Any]) -> Offer:
    stock: Literal["high", "medium", "low", "none"] = "none"
    said = str((row.get("lowestPrice") or {}).get("stockStatus") or "none").lower()
    if said in ("high", "medium", "low"):
        stock = said  # type: ignore[assignment]
    return Offer(
        gpu=str(row["displayName"]),
        gpu_id=str(row["id"]),
        memory=float(row["memoryInGb"]),
        price=float(row["securePrice"]),
        stock=stock,
    )


def _pod(row: dict[str, Any]) -> Pod:
    ports = (row.get("runtime") or {}).get("ports") or []
    ssh = next((p for p in ports if p["privatePort"] == 22 and p["isIpPublic"]), None)
    status = _STATUS.get(str(row["desiredStatus"]), "starting")
    if status == "running" and not row.get("runtime"):
        status = "starting"  # what is desired is not there yet
    return Pod(
        id=str(row["id"]),
        name=str(row["name"]),
        status=status,
        price=float(row.get("costPerHr") or 0.0),
        gpu=str((row.get("machine") or {}).get("gpuDisplayName") or ""),
        gpus=int(row.get("gpuCount") or 1),
        endpoint=ssh and Endpoint(str(ssh["ip"]), int(ssh["publicPort"]), "root"),
    )


def _plain(pod_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", pod_id):
        raise AtlasError(f"{pod_id!r}: no pod's id")
    return pod_id
