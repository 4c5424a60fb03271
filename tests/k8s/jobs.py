"""MPIJobs of the tests: k8s/mpijob-bloom.yaml with one thing changed, sent to the cluster and watched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from k8s.access import Access, Object
from k8s.layout import ROOT
from k8s.processes import wait_until

MANIFEST = ROOT / "k8s/mpijob-bloom.yaml"
NAME = "bloom"
# From apply to the launcher's start: pods are scheduled, mounted and ready, on a machine that also does other work.
START_TIMEOUT_S = 180.0
JOB_TIMEOUT_S = 300.0


@dataclass(repr=False)
class Manifest:
    """The documents of a manifest, to be changed by a test before they are sent."""

    documents: list[Object]

    @classmethod
    def read(cls, image: str, path: Path = MANIFEST) -> Manifest:
        """Returns a manifest of the project for this image."""
        found = cls(list(yaml.safe_load_all(path.read_text(encoding="utf-8"))))
        # An alias in YAML is one object in memory; what a test changes must not change elsewhere.
        found.documents = json.loads(json.dumps(found.documents))
        for role in ("Launcher", "Worker"):
            for container in found.pod(role).get("initContainers", []) + found.pod(role)["containers"]:
                container["image"] = image
        return found

    @property
    def job(self) -> Object:
        """The MPIJob."""
        return next(document for document in self.documents if document["kind"] == "MPIJob")

    @property
    def policy(self) -> Object:
        """The MPIJob's run policy."""
        policy: Object = self.job["spec"]["runPolicy"]
        return policy

    def pod(self, role: str) -> Object:
        """Returns the specification of a role's pods."""
        spec: Object = self.job["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]
        return spec

    def container(self, role: str) -> Object:
        """Returns a role's container."""
        first: Object = self.pod(role)["containers"][0]
        return first

    def argue(self, **values: object) -> None:
        """Sets arguments of the launcher; None takes one away, True gives a flag without a value."""
        arguments: list[str] = self.container("Launcher")["args"]
        for key, value in values.items():
            names = {f"--{key}", f"--{key.replace('_', '-')}"}
            kept = [word for word in arguments if word.split("=")[0] not in names]
            spelled = next((word.split("=")[0] for word in arguments if word.split("=")[0] in names), "")
            flag = spelled or f"--{key.replace('_', '-')}"
            if value is not None:
                kept.append(flag if value is True else f"{flag}={value}")
            arguments[:] = kept

    def write(self, folder: Path) -> Path:
        """Returns a file with the manifest."""
        path = folder / "job.yaml"
        path.write_text(yaml.safe_dump_all(self.documents), encoding="utf-8")
        return path


@dataclass
class Run:
    """A job in a namespace of its own."""

    access: Access
    namespace: str
    folder: Path
    # Whose rights `corebound` has.
    user: str = "admin"

    def apply(self, manifest: Manifest) -> None:
        """Sends a manifest, as the comment at its head says."""
        path = manifest.write(self.folder)
        self.access.kubectl("apply", "--server-side", "--namespace", self.namespace, "-f", str(path))

    def corebound(self, *words: str, timeout_s: float = JOB_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Returns what a command `corebound k8s ...` came to."""
        return self.corebound_offline(*words, "--namespace", self.namespace, timeout_s=timeout_s)

    def corebound_offline(self, *words: str, timeout_s: float = JOB_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Returns what a command `corebound k8s ...` that needs no cluster came to."""
        command = [sys.executable, "-m", "corebound", "k8s", *words]
        return subprocess.run(
            command, env=self.access.environ(self.user), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def get(self, kind: str, name: str) -> Object:
        """Returns an object of the namespace."""
        return self.access.get(kind, name, "--namespace", self.namespace)

    def pods(self, role: str) -> list[Object]:
        """Returns the pods of a role, the oldest first."""
        selector = f"training.kubeflow.org/job-role={role}"
        found = self.access.get("pods", "--namespace", self.namespace, "--selector", selector)["items"]
        return sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def state(self) -> tuple[str, str]:
        """Returns the last condition of the job that is true, and its message."""
        conditions = self.get("mpijob", NAME).get("status", {}).get("conditions") or []
        true = [condition for condition in conditions if condition["status"] == "True"]
        return (true[-1]["type"], true[-1]["message"]) if true else ("", "")

    def wait(self, so: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Returns when something is so; fails with what the cluster says when it is not in time."""
        try:
            wait_until(so, what, timeout_s, pause_s=0.5)
        except Exception as error:
            raise AssertionError(f"{error}\n{self.report()}") from error

    def outcome(self, timeout_s: float = JOB_TIMEOUT_S) -> str:
        """Returns what the job came to: Succeeded or Failed."""
        self.wait(lambda: self.state()[0] in ("Succeeded", "Failed"), "the job is over", timeout_s)
        return self.state()[0]

    def wait_for_log(self, text: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when a launcher has written something."""
        self.wait(lambda: text in self.log(), f"{text!r} in the launcher's log", timeout_s)

    def wait_for_event(self, *texts: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """Returns the first event that holds all of these words."""

        def found() -> list[str]:
            events = self.access.events(self.namespace)
            return [event for event in events if all(text in event for text in texts)]

        self.wait(lambda: bool(found()), f"an event with {' and '.join(texts)}", timeout_s)
        return found()[0]

    def log(self, role: str = "launcher", container: str = "") -> str:
        """Returns the logs of a role's pods, the oldest first."""
        words = ["--container", container] if container else []
        logs = []
        for pod in self.pods(role):
            name = pod["metadata"]["name"]
            logs.append(self.access.kubectl("logs", "--namespace", self.namespace, name, *words, check=False).stdout)
        return "\n".join(logs)

    def result(self) -> dict[str, Any]:
        """Returns the JSON of the launcher that came to its end."""
        lines = [line for line in self.log().splitlines() if line.startswith('{"outputs"')]
        assert len(lines) == 1, self.report()
        found: dict[str, Any] = json.loads(lines[0])
        return found

    def tokens(self) -> list[int]:
        """Returns the generated tokens."""
        tokens: list[int] = self.result()["outputs"][0]["token_ids"]
        return tokens

    def report(self) -> str:
        """Returns what the cluster says, for a failed test."""
        pods = self.access.kubectl("get", "pods", "--namespace", self.namespace, "-o", "wide", check=False).stdout
        events = "\n".join(self.access.events(self.namespace)[-20:])
        return f"{self.state()}\n{pods}\n{events}\n{self.log()[-4000:]}"


def local_tokens(num_tokens: int, *flags: str) -> list[int]:
    """Returns the tokens that one rank on this machine generates for the manifest's prompt."""
    tokens: list[int] = local_output(num_tokens, *flags)["token_ids"]
    return tokens


def local_output(num_tokens: int, *flags: str) -> Object:
    """Returns what one rank on this machine generates for the manifest's prompt."""
    words = Manifest.read("").container("Launcher")["args"]
    prompt = next(word.split("=", 1)[1] for word in words if word.startswith("--prompt="))
    command = [sys.executable, "-m", "corebound", "generate", "--model=demo", f"--prompt={prompt}", "--json"]
    command += [f"--max-new-tokens={num_tokens}", "--num-accelerators=1", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=JOB_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    output: Object = json.loads(done.stdout)["outputs"][0]
    return output
