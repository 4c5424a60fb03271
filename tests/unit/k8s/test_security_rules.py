from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from corebound.k8s.documents import read_documents
from corebound.k8s.findings import join, mapping
from corebound.k8s.pods import pods_of
from corebound.k8s.rules import security
from corebound.k8s.rules.security import security_rules

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def data():
    documents = read_documents(ROOT / "k8s/mpijob-bloom.yaml")
    job = next(document for document in documents if document.kind == "MPIJob")
    return yaml.safe_load(yaml.safe_dump(job.data))


def template(data):
    return data["spec"]["mpiReplicaSpecs"]["Worker"]["template"]


def put(data, keys, value):
    *above, last = keys
    for key in above:
        data = data[key] if isinstance(key, int) else data.setdefault(key, {})
    if value is None:
        del data[last]
    elif isinstance(data, list):
        data.insert(last, value)
    else:
        data[last] = value


POD = ("spec", "securityContext")
BOX = ("spec", "containers", 0)
BOX_SECURITY = (*BOX, "securityContext")
VOLUME = ("spec", "volumes", 0)
ANNOTATION = "container.apparmor.security.beta.kubernetes.io/worker"

# One manifest for each line of the standard: where the worker of ours is changed, to what (None: taken away), and at
# which field the rule must see it.
BROKEN = [
    ("host-process", (*POD, "windowsOptions"), {"hostProcess": True}, "hostProcess"),
    ("host-namespaces", ("spec", "hostNetwork"), True, ""),
    ("host-namespaces", ("spec", "hostPID"), True, ""),
    ("host-namespaces", ("spec", "hostIPC"), True, ""),
    ("privileged", (*BOX_SECURITY, "privileged"), True, ""),
    ("capabilities", (*BOX_SECURITY, "capabilities", "add"), ["SYS_NICE"], ""),
    ("host-path", VOLUME, {"name": "more", "hostPath": {"path": "/srv"}}, "hostPath"),
    ("host-ports", (*BOX, "ports", 0, "hostPort"), 2222, ""),
    ("host-probes", (*BOX, "livenessProbe"), {"tcpSocket": {"port": 1, "host": "h"}}, "tcpSocket.host"),
    ("host-probes", (*BOX, "lifecycle"), {"preStop": {"httpGet": {"port": 1, "host": "h"}}}, "preStop.httpGet.host"),
    ("apparmor", (*POD, "appArmorProfile"), {"type": "Unconfined"}, "type"),
    ("apparmor", ("metadata", "annotations"), {ANNOTATION: "unconfined"}, f"['{ANNOTATION}']"),
    ("selinux", (*POD, "seLinuxOptions"), {"type": "spc_t"}, "type"),
    ("selinux", (*BOX_SECURITY, "seLinuxOptions"), {"user": "u"}, "user"),
    ("selinux", (*BOX_SECURITY, "seLinuxOptions"), {"role": "r"}, "role"),
    ("proc-mount", (*BOX_SECURITY, "procMount"), "Unmasked", ""),
    ("seccomp", (*BOX_SECURITY, "seccompProfile"), {"type": "Unconfined"}, "type"),
    ("sysctls", (*POD, "sysctls"), [{"name": "kernel.msgmax", "value": "1"}], "[0].name"),
    ("volume-types", VOLUME, {"name": "more", "nfs": {"server": "s", "path": "/"}}, "nfs"),
    ("privilege-escalation", (*BOX_SECURITY, "allowPrivilegeEscalation"), True, ""),
    ("privilege-escalation", (*BOX_SECURITY, "allowPrivilegeEscalation"), None, ""),
    ("run-as-non-root", (*POD, "runAsNonRoot"), None, ""),
    ("run-as-non-root", (*BOX_SECURITY, "runAsNonRoot"), False, ""),
    ("run-as-user", (*POD, "runAsUser"), 0, ""),
    ("run-as-user", (*BOX_SECURITY, "runAsUser"), 0, ""),
    ("seccomp-set", (*POD, "seccompProfile"), None, "seccompProfile.type"),
    ("capabilities-dropped", (*BOX_SECURITY, "capabilities", "drop"), ["NET_RAW"], ""),
    ("capabilities-dropped", (*BOX_SECURITY, "capabilities"), None, "capabilities.drop"),
    ("capabilities-dropped", (*BOX_SECURITY, "capabilities", "add"), ["CHOWN"], ""),
]


def findings(data, level):
    return [finding for pod in pods_of(data) for finding in security_rules(pod, level)]


def test_our_manifest_meets_the_level_restricted(data):
    assert findings(data, "restricted") == []


@pytest.mark.parametrize(("rule", "keys", "value", "below"), BROKEN, ids=[f"{row[0]}-{row[1][-1]}" for row in BROKEN])
def test_a_pod_that_breaks_one_line_of_the_standard_breaks_exactly_that_rule(data, rule, keys, value, below):
    put(template(data), keys, value)
    found = findings(data, "restricted")
    assert [finding.rule for finding in found] == [f"pod-security/{rule}"]
    path = join("spec.mpiReplicaSpecs.Worker.template", *keys)
    assert found[0].path.startswith(path) or rule == "seccomp-set"
    assert found[0].path.endswith(below)
    is_baseline = rule in {name.__name__.replace("_", "-") for name in security.BASELINE}
    assert bool(findings(data, "baseline")) == is_baseline
    assert findings(data, "privileged") == []


def test_every_rule_has_a_manifest_that_breaks_it():
    rules = {rule.__name__.replace("_", "-") for rule in (*security.BASELINE, *security.RESTRICTED)}
    assert rules == {row[0] for row in BROKEN}


def test_each_container_may_promise_for_itself_what_the_pod_does_not(data):
    context = template(data)["spec"]["securityContext"]
    own = {"runAsNonRoot": context.pop("runAsNonRoot"), "seccompProfile": context.pop("seccompProfile")}
    template(data)["spec"]["containers"][0]["securityContext"].update(own)
    assert findings(data, "restricted") == []
    assert mapping(template(data), "spec", "securityContext")


def test_init_containers_are_held_to_the_same_rules(data):
    template(data)["spec"]["initContainers"] = [{"name": "first", "image": "a@sha256:0"}]
    paths = {finding.path.rpartition(".securityContext")[0] for finding in findings(data, "restricted")}
    assert paths == {"spec.mpiReplicaSpecs.Worker.template.spec.initContainers[0]"}
