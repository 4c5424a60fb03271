"""What tests ask of the cluster and tell it, through the API as any client would."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from k8s.layout import Layout
from k8s.processes import wait_until

Object = dict[str, Any]


class Access:
    """The administrator's access."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def environ(self, user: str = "admin") -> dict[str, str]:
        """Returns the environment in which kubectl and corebound find the cluster, as a user of control_plane.USERS."""
        return {**os.environ, "KUBECONFIG": str(self.layout.run / f"{user}.kubeconfig")}

    def kubectl(
        self, *words: str, stdin: str = "", timeout_s: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Returns what a kubectl command came to."""
        command = [str(self.layout.package_file("usr/bin/kubectl")), *words]
        done = subprocess.run(
            command, input=stdin, env=self.environ(), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check:
            assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done

    def apply(self, documents: Sequence[Object]) -> None:
        """Sends objects to the cluster, as `kubectl apply --server-side` does."""
        text = "\n---\n".join(json.dumps(document) for document in documents)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def get(self, *words: str) -> Object:
        """Returns what `kubectl get` gives as JSON."""
        found: Object = json.loads(self.kubectl("get", *words, "--output", "json").stdout)
        return found

    def events(self, namespace: str) -> list[str]:
        """Returns what was reported in a namespace: of which object, the reason and the message."""
        listed = self.get("events", "--namespace", namespace)["items"]
        return [f"{event['involvedObject']['name']}: {event['reason']}: {event['message']}" for event in listed]

    def num_ready_nodes(self) -> int:
        """Returns how many nodes say that they are ready."""
        return sum(is_true(node, "Ready") for node in self.get("nodes")["items"])

    def has_service_account(self, namespace: str = "default") -> bool:
        """Returns whether pods can be made in a namespace; the API server refuses them before."""
        accounts = self.get("serviceaccounts", "--namespace", namespace)["items"]
        return any(account["metadata"]["name"] == "default" and account.get("secrets") for account in accounts)

    def define(self, definition: Object) -> None:
        """Defines a kind of object and returns when it can be used."""
        self.apply([definition])
        name = definition["metadata"]["name"]
        wait_until(
            lambda: is_true(self.get("customresourcedefinition", name), "Established"), f"{name} is established", 60
        )


def is_true(found: Object, condition: str) -> bool:
    """Returns whether an object has a condition that is true."""
    conditions = found.get("status", {}).get("conditions") or []
    return any(entry["type"] == condition and entry["status"] == "True" for entry in conditions)
