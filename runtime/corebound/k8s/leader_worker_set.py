"""The schema of a LeaderWorkerSet, as far as this project uses one. Source: its API leaderworkerset.x-k8s.io/v1."""

from __future__ import annotations

from typing import Any

API_VERSION = "leaderworkerset.x-k8s.io/v1"
KIND = "LeaderWorkerSet"

_COUNT = {"type": "integer", "minimum": 0}
_COUNT_OR_PERCENT = {"type": ["integer", "string"]}
# Pod templates are checked by the schemas of Kubernetes.
_TEMPLATE = {"type": "object"}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "additionalProperties": False, "properties": properties}


_SPEC = _object(
    required=("leaderWorkerTemplate",),
    replicas=_COUNT,
    startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
    leaderWorkerTemplate=_object(
        required=("workerTemplate",),
        size={"type": "integer", "minimum": 1},
        leaderTemplate=_TEMPLATE,
        workerTemplate=_TEMPLATE,
        restartPolicy={"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None", "Default"]},
        subGroupPolicy=_object(subGroupPolicyType={"enum": ["LeaderWorker", "LeaderExcluded"]}, subGroupSize=_COUNT),
        volumeClaimTemplates={"type": "array", "items": {"type": "object"}},
        persistentVolumeClaimRetentionPolicy={"type": "object"},
    ),
    rolloutStrategy=_object(
        required=("type",),
        type={"enum": ["RollingUpdate"]},
        rollingUpdateConfiguration=_object(
            maxUnavailable=_COUNT_OR_PERCENT, maxSurge=_COUNT_OR_PERCENT, partition=_COUNT
        ),
    ),
    networkConfig=_object(required=("subdomainPolicy",), subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}),
)
SCHEMA = _object(
    required=("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"enum": [API_VERSION]},
    kind={"enum": [KIND]},
    metadata={"type": "object"},
    spec=_SPEC,
    status={"type": "object"},
)
