"""The fields of the manifests under test that their own readers check, as models that refuse any other key.

RayCluster and RayJob after KubeRay's API reference (ray-operator/apis/ray/v1), pods after Kubernetes' core/v1, node
settings of AWS after EC2's RunInstances: of each, the part that the files here may use.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """No unknown keys and no conversion: `cpu: 4` is no quantity, and `value: 1` no text."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _quantity(text: str) -> str:
    assert re.fullmatch(r"\d+(\.\d+)?([EPTGMk]i?|m)?", text), f"{text!r} is no quantity"
    return text


Quantity = Annotated[str, AfterValidator(_quantity)]


class Named(Strict):
    name: str


class Metadata(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=50)]


class Env(Strict):
    name: str
    value: str


class Port(Strict):
    containerPort: Annotated[int, Field(ge=1, le=65535)]
    name: Annotated[str, Field(max_length=15)]


class Amounts(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class Mount(Strict):
    name: str
    mountPath: Annotated[str, Field(pattern="^/")]


class Claim(Strict):
    claimName: str


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim | None = None
    configMap: Named | None = None


class Container(Strict):
    name: str
    image: str
    env: list[Env]
    ports: list[Port] = []
    resources: Amounts
    volumeMounts: list[Mount] = []


class PodSecurity(Strict):
    fsGroup: Annotated[int, Field(ge=1)]


class PodSpec(Strict):
    securityContext: PodSecurity | None = None
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []
    nodeSelector: dict[str, str] = {}


class Pod(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: Pod


class WorkerGroup(HeadGroup):
    groupName: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=0)]


class Auth(Strict):
    mode: Literal["disabled", "token"]


class Autoscaler(Strict):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: int


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: bool
    autoscalerOptions: Autoscaler
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class JobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: Annotated[int, Field(ge=0)]
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    rayClusterSpec: ClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteOnce", "ReadWriteMany"]]
    resources: dict[Literal["requests"], dict[Literal["storage"], Quantity]]


class VolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class Disk(Strict):
    VolumeSize: Annotated[int, Field(ge=1)]
    VolumeType: Literal["gp2", "gp3", "io1", "io2"]


class BlockDevice(Strict):
    DeviceName: str
    Ebs: Disk


class Market(Strict):
    MarketType: Literal["spot", "capacity-block"]


class Ec2Node(Strict):
    InstanceType: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")]
    BlockDeviceMappings: list[BlockDevice]
    InstanceMarketOptions: Market | None = None
