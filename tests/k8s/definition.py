"""The definition of an MPIJob for the API server: the operator's own, or a compact one of this project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from k8s.layout import ClusterError

# The operator's manifest, or its CustomResourceDefinition.
MANIFEST = "MPI_OPERATOR_MANIFEST"
COMPACT = Path(__file__).with_name("mpijob_definition.yaml")
NAME = "mpijobs.kubeflow.org"


def is_upstream() -> bool:
    """Returns whether the operator's own definition is given."""
    return bool(os.environ.get(MANIFEST))


def mpijob_definition() -> dict[str, Any]:
    """Returns the CustomResourceDefinition to use."""
    path = Path(os.environ.get(MANIFEST) or COMPACT)
    with path.open(encoding="utf-8") as file:
        for document in yaml.load_all(file, Loader=yaml.CSafeLoader):
            if document and document["kind"] == "CustomResourceDefinition" and document["metadata"]["name"] == NAME:
                found: dict[str, Any] = document
                return found
    raise ClusterError(f"{path}: no CustomResourceDefinition {NAME}", hint=f"{MANIFEST} names the operator's manifest")
