"""REST v2 as the provider documents it: problem+json, rate limits, logs as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .cloud import Cloud, DoublePod, Refused
from .faults import Fault

QUOTA = 600  # requests a minute


@dataclass
class Reply:
    status: int
    body: bytes = b""
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # the connection ends where the body does, not where it should
    delay: float = 0.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Gpu(_Strict):
    id: str
    count: int = Field(1, ge=1)
    allowedCudaVersions: list[str] = []
    minCudaVersion: str | None = None


class _Network(_Strict):
    volumeId: str
    path: str


class _Mounts(_Strict):
    network: list[_Network] = Field([], max_length=1)


class _Create(_Strict):
    name: str = Field(min_length=1)
    image: str
    gpu: _Gpu
    cloud: str = Field("SECURE", pattern="^(SECURE|COMMUNITY)$")
    dataCenterIds: list[str] = []
    disk: int = Field(20, ge=1)
    env: dict[str, str] = Field({}, max_length=50)
    args: str = ""
    ports: list[str] = []
    mounts: _Mounts = _Mounts()
    startSsh: bool = False
    globalNetworking: bool = False


def handle(
    cloud: Cloud,
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body: bytes,
) -> Reply:
    """Answer one request."""
    parts = path.strip("/").split("/")
    operation = _operation(method, parts)
    if operation is None:
        return problem(404, "no such path")
    with cloud.lock:
        cloud.tick()
        fault = cloud.faults.reply(operation)
        if fault is not None and (early := _refusal(fault, operation)):
            return early
        try:
            token = headers.get("authorization", "").removeprefix("Bearer ")
            cloud.allow(token, parts[2] if len(parts) > 2 and parts[1] == "pods" else None)
            reply = _answer(cloud, operation, parts, query, headers, body)
        except Refused as refused:
            reply = problem(refused.status, refused.detail, errors=refused.errors)
        reply.headers |= _limits(cloud)
        return reply if fault is None else spoilt(reply, fault)


def _refusal(fault: Fault, operation: str) -> Reply | None:
    """Return the answer of a call that is not carried out."""
    match fault.kind:
        case "unauthorized":
            return problem(401, "the bearer token is missing or invalid")
        case "rate_limited":
            wait = {"Retry-After": str(int(fault.seconds))}
            return problem(429, "too many requests in this minute", wait)
        case "no_balance" if operation == "create":
            return problem(402, "insufficient balance")
        case "error" | "no_balance":
            return problem(500, "an internal error")
        case "bad_gateway":
            return Reply(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html")
    return None


def spoilt(reply: Reply, fault: Fault) -> Reply:
    """Spoil the answer of a call that was carried out."""
    if fault.kind == "malformed":
        reply.body = reply.body[: len(reply.body) // 2] or b"{"
        reply.status = 200 if reply.status == 204 else reply.status
    elif fault.kind == "lost_reply":
        reply.cut, reply.body = True, b""
    elif fault.kind == "slow":
        reply.delay = fault.seconds
    return reply


def problem(
    status: int,
    detail: str,
    headers: dict[str, str] | None = None,
    errors: tuple[str, ...] = (),
) -> Reply:
    titles = {400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden"}
    titles |= {404: "Not Found", 422: "Unprocessable Entity", 429: "Too Many Requests"}
    content: dict[str, Any] = {"status": status, "detail": detail}
    content["title"] = titles.get(status, "Internal Server Error")
    if errors:
        content["errors"] = list(errors)
    return Reply(status, json.dumps(content).encode(), "application/problem+json", headers or {})


def _operation(method: str, parts: list[str]) -> str | None:
    match method, parts:
        case "GET", ["v2", "account", "ssh-keys"]:
            return "account"
        case "GET", ["v2", "catalog", "gpus"]:
            return "gpus"
        case "GET", ["v2", "billing", "pods"]:
            return "billing"
        case "GET", ["v2", "pods"]:
            return "list"
        case "POST", ["v2", "pods"]:
            return "create"
        case "GET", ["v2", "pods", _]:
            return "get"
        case "DELETE", ["v2", "pods", _]:
            return "delete"
        case "GET", ["v2", "pods", _, "logs"]:
            return "logs"
        case "POST", ["v2", "pods", _, "action"]:
            return "stop"
    return None


def _answer(
    cloud: Cloud,
    operation: str,
    parts: list[str],
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body: bytes,
) -> Reply:
    if operation == "account":
        return _json({"keys": []})
    if operation == "gpus":
        return _json({"gpus": _catalogue(cloud, query)})
    if operation == "billing":
        return _json(_billing(cloud, query))
    if operation == "list":
        return _json({"pods": [_pod(cloud, p) for p in cloud.listed()]})
    if operation == "create":
        return _create(cloud, body)
    pod = cloud.get(parts[2])
    if operation == "get":
        return _json(_pod(cloud, pod))
    if operation == "logs":
        return _logs(cloud, pod, query, headers)
    if operation == "stop":
        return _action(cloud, pod, body)
    cloud.end(pod)
    return Reply(204)


def _create(cloud: Cloud, body: bytes) -> Reply:
    try:
        wish = _Create.model_validate_json(body)
    except ValidationError as error:
        said = tuple(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise Refused(422, "the body does not match the contract", said) from None
    pod = cloud.create(wish.model_dump(), wish.gpu.id, wish.gpu.count)
    return _json(_pod(cloud, pod), 201)


def _action(cloud: Cloud, pod: DoublePod, body: bytes) -> Reply:
    action = json.loads(body or b"{}").get("action")
    if action == "terminate":
        cloud.end(pod)
        return Reply(204)
    if action != "stop":
        raise Refused(409, f"{action}: not valid now")
    pod.stopped = True
    return _json(_pod(cloud, pod))


def _catalogue(cloud: Cloud, query: Mapping[str, str]) -> list[dict[str, Any]]:
    stocked = query.get("include") == "AVAILABILITY"
    if stocked != ("product" in query):
        raise Refused(400, "include=AVAILABILITY and product go together")
    count = int(query.get("count", "1"))
    found = []
    for gpu in cloud.gpus:
        row: dict[str, Any] = {
            "id": gpu.id,
            "name": gpu.name,
            "pool": None,
            "manufacturer": "NVIDIA",
            "memory": gpu.memory,
            "secure": True,
            "community": False,
            "price": {"secure": gpu.price, "community": 0.0},
            "maxCount": {"secure": gpu.max_count, "community": 0},
        }
        if stocked:
            level = gpu.level if count <= gpu.max_count else "NONE"
            row["availability"] = level
            if level != "NONE":
                row["dataCenters"] = [
                    {"id": r, "name": r, "availability": level} for r in gpu.regions
                ]
        found.append(row)
    return found


def _pod(cloud: Cloud, pod: DoublePod) -> dict[str, Any]:
    status, body = cloud.status(pod), pod.body
    actions = ["stop", "terminate"] if status != "EXITED" else ["start", "terminate"]
    direct = cloud.direct(pod) if "22/tcp" in body.get("ports", []) else None
    endpoint = direct and {
        "host": direct.host,
        "port": direct.port,
        "username": direct.user,
        "command": f"ssh {direct.user}@{direct.host} -p {direct.port}",
    }
    return {
        "id": pod.id,
        "name": pod.name,
        "status": status,
        "actions": actions,
        "image": body.get("image", ""),
        "args": body.get("args", ""),
        "disk": body.get("disk", 20),
        "mounts": body.get("mounts", {}),
        "ports": body.get("ports", []),
        "env": body.get("env", {}),
        "registry": None,
        "gpu": {"id": pod.gpu.id, "count": pod.count},
        "cloud": "SECURE",
        "dataCenterId": pod.gpu.regions[0],
        "cudaVersion": "13.0",
        "ssh": {"proxy": None, "direct": endpoint},
        "template": None,
        "cost": 0.0 if status == "EXITED" else pod.price,
        "locked": False,
        "globalNetworking": {"enabled": False},
        "runtime": {"uptime": 1} if status == "RUNNING" else None,
        "createdAt": _time(pod.created),
        "startedAt": _time(pod.ready) if status == "RUNNING" else None,
    }


def _billing(cloud: Cloud, query: Mapping[str, str]) -> dict[str, Any]:
    wanted = query.get("podId")
    records = [
        {
            "podId": pod.id,
            "startTime": _time(pod.created),
            "endTime": _time(pod.ended or cloud.clock.now()),
            "totalAmount": cloud.bill(pod),
            "gpuAmount": cloud.bill(pod),
            "cpuAmount": 0.0,
            "diskAmount": 0.0,
        }
        for pod in cloud.everything.values()
        if wanted in (None, pod.id)
    ]
    total = sum(cloud.bill(p) for p in cloud.everything.values() if wanted in (None, p.id))
    totals = {"totalAmount": total, "gpuAmount": total, "cpuAmount": 0.0, "diskAmount": 0.0}
    now = _time(cloud.clock.now())
    window = {"startTime": query.get("startTime", now), "endTime": now, "bucketSize": "hour"}
    metadata = {"query": window, "recordCount": len(records), "uniquePodCount": len(records)}
    return {"records": records, "metadata": {**metadata, "totals": totals}}


def _logs(
    cloud: Cloud, pod: DoublePod, query: Mapping[str, str], headers: Mapping[str, str]
) -> Reply:
    tail, since = int(query.get("tail", "100")), headers.get("last-event-id")
    lines = pod.log[-tail:] if since is None else [e for e in pod.log if _time(e[0]) > since]
    events = [
        f"id: {_time(at)}\ndata: "
        + json.dumps({"source": "container", "line": line, "ts": _time(at)})
        + "\n\n"
        for at, line in lines
    ]
    reply = Reply(200, "".join(events).encode(), "text/event-stream")
    fault = cloud.faults.logs()
    if fault is not None and events:
        whole = "".join(events[: fault.call])
        reply.body, reply.cut = whole[: -len(events[0]) // 2].encode(), True
    return reply


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


def _limits(cloud: Cloud) -> dict[str, str]:
    second = cloud.clock.now().second
    left = max(QUOTA - cloud.faults.counts.total() % QUOTA, 1)
    return {
        "RateLimit": f'"minute";r={left};t={60 - second}',
        "RateLimit-Policy": f'"minute";q={QUOTA};w=60',
    }


def _time(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
