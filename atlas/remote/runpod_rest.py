"""RunPod's REST API v2, as much of it as a job needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from atlas.errors import AtlasError

from .errors import KeyRefused, NoBalance, OutOfStock, ProviderDown
from .keys import Key
from .provider import Account, Endpoint, Offer, Pod, PodSpec, PodStatus

URL = "https://api.runpod.io"
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
VOLUME = "/workspace"
_NO_KEEPING = httpx.Limits(max_keepalive_connections=0)  # calls are minutes apart
_RECONNECTS = 3

Level = Literal["NONE", "LOW", "MEDIUM", "HIGH"]
_STATUS: dict[str, PodStatus] = {
    "PROVISIONING": "starting",
    "STARTING": "starting",
    "RUNNING": "running",
    "EXITED": "stopped",
    "ERROR": "stopped",
    "TERMINATED": "gone",
}
_STOCK: dict[Level, Literal["high", "medium", "low", "none"]] = {
    "NONE": "none",
    "LOW": "low",
    "MEDIUM": "medium",
    "HIGH": "high",
}


class _Prices(BaseModel):
    secure: float


class _Place(BaseModel):
    id: str
    availability: Level = "NONE"


class _Gpu(BaseModel):
    id: str
    name: str
    memory: float
    secure: bool
    price: _Prices
    availability: Level = "NONE"
    dataCenters: list[_Place] = []


class _Gpus(BaseModel):
    gpus: list[_Gpu]


class _SshEndpoint(BaseModel):
    host: str
    port: int
    username: str


class _Ssh(BaseModel):
    direct: _SshEndpoint | None = None


class _PodGpu(BaseModel):
    id: str
    count: int = 1


class _Pod(BaseModel):
    id: str
    name: str
    status: Literal["PROVISIONING", "STARTING", "RUNNING", "EXITED", "ERROR", "TERMINATED"]
    cost: float
    createdAt: datetime
    gpu: _PodGpu | None = None
    ssh: _Ssh = _Ssh()

    def record(self) -> Pod:
        direct = self.ssh.direct
        return Pod(
            id=self.id,
            name=self.name,
            status=_STATUS[self.status],
            price=self.cost,
            gpu=self.gpu.id if self.gpu else "",
            gpus=self.gpu.count if self.gpu else 0,
            created=self.createdAt,
            endpoint=Endpoint(direct.host, direct.port, direct.username) if direct else None,
        )


class _Pods(BaseModel):
    pods: list[_Pod]


class _Bill(BaseModel):
    podId: str
    totalAmount: float


class _Bills(BaseModel):
    records: list[_Bill]


M = TypeVar("M", bound=BaseModel)


class Rest:
    """One attempt a call. The key is in the Authorization header and nowhere else."""

    tells_host_keys = True

    def __init__(self, key: Key, url: str = "", http: httpx.Client | None = None):
        self._key = key
        self._http = http or httpx.Client(timeout=TIMEOUT, limits=_NO_KEEPING)
        self._url = safe_url(url or URL)

    def account(self) -> Account:
        """Authenticate. This API tells neither the user nor the balance."""
        self._get("account/ssh-keys", BaseModel)
        return Account(user="RunPod")

    def offers(self, gpus: int) -> list[Offer]:
        """List the secure cloud's catalogue."""
        params = {"include": "AVAILABILITY", "product": "POD", "count": gpus, "cloud": "SECURE"}
        return [
            Offer(
                gpu=gpu.name,
                gpu_id=gpu.id,
                memory=gpu.memory,
                price=gpu.price.secure,
                stock=_STOCK[gpu.availability],
                regions=tuple(d.id for d in gpu.dataCenters if d.availability != "NONE"),
            )
            for gpu in self._get("catalog/gpus", _Gpus, params).gpus
            if gpu.secure
        ]

    def create(self, spec: PodSpec, regions: tuple[str, ...]) -> Pod:
        """Ask for one pod."""
        body: dict[str, Any] = {
            "name": spec.name,
            "image": spec.image,
            "gpu": {"id": spec.offer.gpu_id, "count": spec.gpus},
            "cloud": "SECURE",
            "disk": spec.disk,
            "ports": ["22/tcp"],
            "env": {**spec.env, "PUBLIC_KEY": spec.public_key},
            "startSsh": True,
        }
        if regions:
            body["dataCenterIds"] = list(regions)
        if spec.args:
            body["args"] = spec.args
        if spec.volume:
            body["mounts"] = {"network": [{"volumeId": spec.volume, "path": VOLUME}]}
        reply = self._send("POST", "pods", body=body)
        if reply.status_code in (400, 403):  # what 403 means here: not from this pool
            raise OutOfStock(f"{spec.offer.gpu}: {self._detail(reply)}")
        return self._parse(self._checked(reply), _Pod).record()

    def pods(self) -> list[Pod]:
        """List the account's pods."""
        return [pod.record() for pod in self._get("pods", _Pods).pods]

    def pod(self, pod_id: str) -> Pod | None:
        """Read one pod."""
        reply = self._send("GET", f"pods/{quote(pod_id, safe='')}")
        if reply.status_code == 404:
            return None
        return self._parse(self._checked(reply), _Pod).record()

    def delete(self, pod_id: str) -> None:
        """Ask to end one pod."""
        reply = self._send("DELETE", f"pods/{quote(pod_id, safe='')}")
        if reply.status_code != 404:
            self._checked(reply)

    def billed(self, pod: Pod) -> float | None:
        """Sum the hourly records of one pod; None before the first."""
        params: dict[str, Any] = {"podId": pod.id, "bucketSize": "hour"}
        if pod.created is not None:
            params["startTime"] = pod.created.strftime("%Y-%m-%dT%H:%M:%SZ")
        records = self._get("billing/pods", _Bills, params).records
        mine = [record.totalAmount for record in records if record.podId == pod.id]
        return sum(mine) if mine else None

    def log(self, pod_id: str) -> Iterator[str]:
        """Lines that there are by now; a stream that is cut goes on behind the last line seen."""
        last: str | None = None
        for _ in range(_RECONNECTS + 1):
            try:
                for seen, line in self._events(pod_id, last):
                    last = seen
                    yield line
                return
            except httpx.ReadTimeout:
                return  # nothing new: the stream stays open while the pod lives
            except httpx.ConnectError:
                raise ProviderDown(f"{self._host}: no connection") from None
            except httpx.HTTPError:
                continue
        raise ProviderDown(f"{self._host}: the log of pod {pod_id} is cut again and again")

    def _events(self, pod_id: str, last: str | None) -> Iterator[tuple[str | None, str]]:
        headers = self._headers() | ({} if last is None else {"Last-Event-ID": last})
        path = f"{self._url}/v2/pods/{quote(pod_id, safe='')}/logs"
        params: dict[str, Any] = {"source": "container", "tail": 5000}
        with self._http.stream("GET", path, params=params, headers=headers, timeout=5) as reply:
            if reply.status_code != 200:
                reply.read()
                if reply.status_code == 404:
                    return
                self._checked(reply)
            seen: str | None = last
            for row in reply.iter_lines():
                field, _, value = row.partition(":")
                if field == "id":
                    seen = value.strip()
                elif field == "data" and (line := _line(value)) is not None:
                    yield seen, line

    @property
    def _host(self) -> str:
        return urlsplit(self._url).netloc

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key.secret.reveal()}"}

    def _get(self, path: str, model: type[M], params: Mapping[str, Any] | None = None) -> M:
        return self._parse(self._checked(self._send("GET", path, params=params)), model)

    def _send(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        url = f"{self._url}/v2/{path}"
        try:
            return self._http.request(
                method, url, json=body, params=params, headers=self._headers()
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            raise ProviderDown(f"{self._host}: no connection") from None
        except httpx.TimeoutException:
            raise ProviderDown(f"{self._host}: no answer in time", sent=True) from None
        except httpx.HTTPError:
            raise ProviderDown(f"{self._host}: the connection was cut", sent=True) from None

    def _checked(self, reply: httpx.Response) -> httpx.Response:
        """Return a good answer; turn any other into the error that it is."""
        status = reply.status_code
        if reply.is_success:
            return reply
        if status == 401:
            raise KeyRefused(f"RunPod does not accept {self._key.source}")
        detail = self._detail(reply)
        if status == 402:
            raise NoBalance(f"RunPod: {detail}")
        if status == 403:
            raise KeyRefused(f"RunPod: {self._key.source} may not do this: {detail}")
        if status == 429 or status >= 500:
            wait = reply.headers.get("Retry-After", "")
            raise ProviderDown(
                f"RunPod: {detail}",
                retry_after=float(wait) if wait.isdigit() else None,
                sent=status >= 500,
            )
        raise AtlasError(f"RunPod refuses the request: {detail}")

    def _detail(self, reply: httpx.Response) -> str:
        """One line of a problem+json answer, without the key should it be quoted back."""
        try:
            problem = reply.json()
            said = "; ".join([str(problem["detail"]), *map(str, problem.get("errors") or [])])
        except (ValueError, KeyError, TypeError, AttributeError):
            said = f"HTTP {reply.status_code}"
        return self._key.secret.hide(" ".join(said.split()))[:300]

    def _parse(self, reply: httpx.Response, model: type[M]) -> M:
        try:
            return TypeAdapter(model).validate_json(reply.content)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            at = ".".join(map(str, first["loc"])) or "the answer"
            message = f"RunPod: an answer that is not as documented ({at}: {first['type']})"
            raise ProviderDown(message, sent=True) from None


def safe_url(url: str) -> str:
    """Return a base URL without its last slash; a key goes over TLS, or not off this machine."""
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not parts.netloc or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise AtlasError(f"ATLAS_RUNPOD_URL: {url}: expected https://...")
    return url.rstrip("/")


def _line(data: str) -> str | None:
    try:
        return str(json.loads(data)["line"])
    except (ValueError, KeyError, TypeError):
        return None
