"""GraphQL as the SDK speaks it, over the same state as REST; graphql-core checks every query."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from graphql import GraphQLError, build_schema, graphql_sync, parse

from .cloud import Cloud, DoublePod, Refused
from .faults import Fault
from .rest import Reply, spoilt

SCHEMA = build_schema("""
scalar Void
type Query { myself: User  pod(input: PodFilter): Pod  gpuTypes(input: GpuTypeFilter): [GpuType] }
type Mutation {
  podFindAndDeployOnDemand(input: PodFindAndDeployOnDemandInput): Pod
  podTerminate(input: PodTerminateInput!): Void
}
input PodFilter { podId: String }
input GpuTypeFilter { id: String }
input PodTerminateInput { podId: String! }
input EnvironmentVariableInput { key: String!  value: String! }
enum CloudTypeEnum { ALL SECURE COMMUNITY }
input GpuLowestPriceInput { gpuCount: Int  secureCloud: Boolean }
input PodFindAndDeployOnDemandInput {
  name: String  imageName: String  cloudType: CloudTypeEnum  startSsh: Boolean  gpuTypeId: String
  supportPublicIp: Boolean  gpuCount: Int  volumeInGb: Int  minVcpuCount: Int  minMemoryInGb: Int
  dataCenterId: String  dockerArgs: String  containerDiskInGb: Int  ports: String
  volumeMountPath: String  env: [EnvironmentVariableInput]  networkVolumeId: String
}
type User { id: ID  clientBalance: Float  pods: [Pod]  networkVolumes: [NetworkVolume] }
type NetworkVolume { id: String  name: String  size: Int  dataCenterId: String }
type LowestPrice { stockStatus: String  uninterruptablePrice: Float  minimumBidPrice: Float }
type GpuType {
  id: String  displayName: String  memoryInGb: Int  maxGpuCount: Int  manufacturer: String
  cudaCores: Int  secureCloud: Boolean  communityCloud: Boolean  securePrice: Float
  communityPrice: Float  oneMonthPrice: Float  threeMonthPrice: Float  oneWeekPrice: Float
  communitySpotPrice: Float  secureSpotPrice: Float
  lowestPrice(input: GpuLowestPriceInput): LowestPrice
}
type Port { ip: String  isIpPublic: Boolean  privatePort: Int  publicPort: Int  type: String }
type Runtime { ports: [Port] }
type Machine { gpuDisplayName: String  podHostId: String }
type Pod {
  id: String  name: String  containerDiskInGb: Int  costPerHr: Float  desiredStatus: String
  dockerArgs: String  dockerId: String  env: [String]  gpuCount: Int  imageName: String
  lastStatusChange: String  machineId: String  memoryInGb: Int  podType: String  port: Int
  ports: String  uptimeSeconds: Int  vcpuCount: Int  volumeInGb: Int  volumeMountPath: String
  runtime: Runtime  machine: Machine
}
""")
NO_STOCK = "There are no longer any instances available with the requested specifications."
NO_MONEY = "Your balance is too low to deploy this pod."


def handle(cloud: Cloud, headers: Mapping[str, str], body: bytes) -> Reply:
    """Answer one request."""
    query = str(json.loads(body)["query"])
    with cloud.lock:
        cloud.tick()
        operation = _operation(query)
        fault = cloud.faults.reply(operation)
        if fault is not None and (early := _refusal(fault, operation)):
            return early
        try:
            cloud.allow(headers.get("authorization", "").removeprefix("Bearer "))
        except Refused:
            return Reply(401, b'{"error": "Unauthorized"}')
        result = graphql_sync(SCHEMA, query, root_value=Root(cloud))
        reply = Reply(200, json.dumps(result.formatted).encode())
        return reply if fault is None else spoilt(reply, fault)


def _operation(query: str) -> str:
    """Name the call as REST would; a query that cannot be parsed is answered by graphql-core."""
    try:
        (root,) = parse(query).definitions[0].selection_set.selections  # type: ignore[attr-defined]
    except (GraphQLError, ValueError):
        return "get"
    inner = {f.name.value for f in (root.selection_set.selections if root.selection_set else ())}
    if root.name.value == "myself":
        return "list" if "pods" in inner else "account"
    names = {"gpuTypes": "gpus", "pod": "get", "podTerminate": "delete"}
    return names.get(root.name.value, "create")


def _refusal(fault: Fault, operation: str) -> Reply | None:
    match fault.kind:
        case "unauthorized":
            return Reply(401, b'{"error": "Unauthorized"}')
        case "rate_limited":
            wait = {"Retry-After": str(int(fault.seconds))}
            return Reply(429, b'{"error": "Too many requests"}', headers=wait)
        case "no_balance" if operation == "create":
            return Reply(200, json.dumps({"errors": [{"message": NO_MONEY}]}).encode())
        case "error" | "no_balance":
            return Reply(500, b'{"errors": [{"message": "Internal server error"}]}')
        case "bad_gateway":
            return Reply(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html")
    return None


class Root:
    """Resolvers: graphql-core calls what it finds under a field's name with (info, **arguments)."""

    def __init__(self, cloud: Cloud):
        self._cloud = cloud

    def myself(self, _info: Any) -> dict[str, Any]:
        pods = [_pod(self._cloud, pod) for pod in self._cloud.listed()]
        left = self._cloud.balance - self._cloud.total()
        return {"id": "user_double", "clientBalance": left, "pods": pods, "networkVolumes": []}

    def pod(self, _info: Any, input: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return _pod(self._cloud, self._cloud.get(input["podId"]))
        except Refused:
            return None

    def gpuTypes(self, _info: Any, input: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        wanted = (input or {}).get("id")
        return [_gpu(gpu) for gpu in self._cloud.gpus if wanted in (None, gpu.id)]

    def podFindAndDeployOnDemand(self, _info: Any, input: dict[str, Any]) -> dict[str, Any]:
        body = {
            "name": input["name"],
            "image": input["imageName"],
            "disk": input.get("containerDiskInGb", 10),
            "env": {e["key"]: e["value"] for e in input.get("env") or []},
            "ports": (input.get("ports") or "").split(","),
            "args": input.get("dockerArgs", ""),
            "dataCenterIds": [r for r in [input.get("dataCenterId")] if r],
        }
        try:
            pod = self._cloud.create(body, input["gpuTypeId"], input.get("gpuCount", 1))
        except Refused as refused:
            raise GraphQLError(NO_MONEY if refused.status == 402 else NO_STOCK) from None
        return _pod(self._cloud, pod)

    def podTerminate(self, _info: Any, input: dict[str, Any]) -> None:
        try:
            self._cloud.end(self._cloud.get(input["podId"]))
        except Refused as refused:
            raise GraphQLError(refused.detail) from None


def _gpu(gpu: Any) -> dict[str, Any]:
    def lowest(_info: Any, input: dict[str, Any]) -> dict[str, Any]:
        stocked = gpu.level != "NONE" and input.get("gpuCount", 1) <= gpu.max_count
        return {
            "stockStatus": gpu.level.title() if stocked else None,
            "uninterruptablePrice": gpu.price if stocked else None,
        }

    return {
        "id": gpu.id,
        "displayName": gpu.name,
        "memoryInGb": gpu.memory,
        "maxGpuCount": gpu.max_count,
        "manufacturer": "Nvidia",
        "secureCloud": True,
        "communityCloud": False,
        "securePrice": gpu.price,
        "lowestPrice": lowest,
    }


def _pod(cloud: Cloud, pod: DoublePod) -> dict[str, Any]:
    status, direct = cloud.status(pod), cloud.direct(pod)
    ports = direct and [
        {
            "ip": direct.host,
            "isIpPublic": True,
            "privatePort": 22,
            "publicPort": direct.port,
            "type": "tcp",
        }
    ]
    return {
        "id": pod.id,
        "name": pod.name,
        "containerDiskInGb": pod.body.get("disk"),
        "costPerHr": pod.price,
        "desiredStatus": "EXITED" if status == "EXITED" else "RUNNING",
        "dockerArgs": pod.body.get("args"),
        "env": [f"{k}={v}" for k, v in pod.body.get("env", {}).items()],
        "gpuCount": pod.count,
        "imageName": pod.body.get("image"),
        "podType": "RESERVED",
        "ports": ",".join(pod.body.get("ports", [])),
        "uptimeSeconds": 1 if status == "RUNNING" else 0,
        "runtime": {"ports": ports} if status == "RUNNING" else None,
        "machine": {"gpuDisplayName": pod.gpu.name, "podHostId": f"{pod.id}-host"},
    }
