"""The objects that the MPI operator makes of an MPIJob, as far as the stand-in makes them: pure functions.

Source: the controller of Kubeflow's mpi-operator v0.8.2, API v2beta1.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

API_VERSION = "kubeflow.org/v2beta1"
LABELS = "training.kubeflow.org"
DEFAULT_SSH_PATH = "/root/.ssh"
Object = dict[str, Any]
# What each MPI is told through the launcher's environment.
ENVIRONMENT = {
    "OpenMPI": {
        "OMPI_MCA_orte_keep_fqdn_hostnames": "true",
        "OMPI_MCA_orte_default_hostfile": "/etc/mpi/hostfile",
        "OMPI_MCA_plm_rsh_args": "-o ConnectionAttempts=10",
    },
    "Intel": {
        "I_MPI_HYDRA_HOST_FILE": "/etc/mpi/hostfile",
        "I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS": "-o ConnectionAttempts=10",
    },
    "MPICH": {"HYDRA_HOST_FILE": "/etc/mpi/hostfile", "HYDRA_LAUNCH_EXTRA_ARGS": "-o ConnectionAttempts=10"},
}
SLOTS_VARIABLE = {"OpenMPI": "OMPI_MCA_orte_set_default_slots", "Intel": "I_MPI_PERHOST"}


def with_defaults(job: Object) -> Object:
    """Returns a copy of an MPIJob with what the operator assumes where nothing is said."""
    job = copy.deepcopy(job)
    spec = job["spec"]
    for name, value in (
        ("slotsPerWorker", 1),
        ("sshAuthMountPath", DEFAULT_SSH_PATH),
        ("mpiImplementation", "OpenMPI"),
        ("launcherCreationPolicy", "AtStartup"),
        ("runLauncherAsWorker", False),
    ):
        spec.setdefault(name, value)
    spec.setdefault("runPolicy", {}).setdefault("cleanPodPolicy", "None")
    for role, restart, replicas in (("Launcher", "OnFailure", 1), ("Worker", "Never", 0)):
        if role in spec["mpiReplicaSpecs"]:
            spec["mpiReplicaSpecs"][role].setdefault("restartPolicy", restart)
            spec["mpiReplicaSpecs"][role].setdefault("replicas", replicas)
    return job


def problems(job: Object) -> Iterator[str]:
    """Yields what the operator refuses; it then reports an event and does nothing else."""
    spec, roles = job["spec"], job["spec"]["mpiReplicaSpecs"]
    name = job["metadata"]["name"]
    num_workers = num_workers_of(job)
    longest = f"{name}-worker-{num_workers - 1}" if num_workers else f"{name}-launcher"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", longest) or len(longest) > 63:
        yield f"metadata.name: will not able to create pod and service with invalid DNS label {longest!r}"
    if spec["runPolicy"]["cleanPodPolicy"] not in ("None", "Running", "All"):
        yield f"spec.runPolicy.cleanPodPolicy: {spec['runPolicy']['cleanPodPolicy']!r}"
    if spec["launcherCreationPolicy"] not in ("AtStartup", "WaitForWorkersReady"):
        yield f"spec.launcherCreationPolicy: {spec['launcherCreationPolicy']!r}"
    if "Launcher" not in roles:
        yield "spec.mpiReplicaSpecs: must have Launcher replica spec"
    elif roles["Launcher"]["replicas"] != 1:
        yield "spec.mpiReplicaSpecs[Launcher].replicas: must be 1"
    if "Worker" in roles and roles["Worker"]["replicas"] < 1:
        yield "spec.mpiReplicaSpecs[Worker].replicas: must be greater than or equal to 1"
    for role, replica in roles.items():
        if replica["restartPolicy"] not in ("Never", "OnFailure"):
            yield f"spec.mpiReplicaSpecs[{role}].restartPolicy: {replica['restartPolicy']!r}"
        if not replica.get("template", {}).get("spec", {}).get("containers"):
            yield f"spec.mpiReplicaSpecs[{role}].template.spec.containers: must define at least one container"


def num_workers_of(job: Object) -> int:
    """Returns how many workers an MPIJob has."""
    return int(job["spec"]["mpiReplicaSpecs"].get("Worker", {}).get("replicas", 0))


def labels(job: Object, role: str = "", index: int | None = None) -> dict[str, str]:
    """Returns the labels of the job's pods: of all, of a role, of one worker."""
    found = {f"{LABELS}/operator-name": "mpi-operator", f"{LABELS}/job-name": job["metadata"]["name"]}
    if role:
        found[f"{LABELS}/job-role"] = role
    if index is not None:
        found[f"{LABELS}/replica-index"] = str(index)
    return found


def metadata(job: Object, name: str, **more: Any) -> Object:
    """Returns the metadata of an object that goes when the job goes."""
    owner = {"apiVersion": API_VERSION, "kind": "MPIJob", "controller": True, "blockOwnerDeletion": True}
    owner |= {"name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    return {"name": name, "namespace": job["metadata"]["namespace"], "ownerReferences": [owner], **more}


def service(job: Object) -> Object:
    """Returns the headless service that gives pods their names."""
    name = job["metadata"]["name"]
    spec: Object = {"clusterIP": "None", "selector": labels(job)}
    spec["publishNotReadyAddresses"] = bool(job["spec"]["runLauncherAsWorker"])
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, name, labels={"app": name}),
        "spec": spec,
    }


def hostfile(job: Object) -> str:
    """Returns the hostfile, in the form of the job's MPI."""
    name, namespace, spec = job["metadata"]["name"], job["metadata"]["namespace"], job["spec"]
    hosts = [f"{name}-launcher"] if spec["runLauncherAsWorker"] else []
    hosts += [f"{name}-worker-{index}" for index in range(num_workers_of(job))]
    separator = " slots=" if spec["mpiImplementation"] == "OpenMPI" else ":"
    return "".join(f"{host}.{name}.{namespace}.svc{separator}{spec['slotsPerWorker']}\n" for host in hosts)


def config_map(job: Object) -> Object:
    """Returns the files of /etc/mpi: the hostfile, and a script for elastic jobs, which here names nobody."""
    name = job["metadata"]["name"]
    data = {"hostfile": hostfile(job), "discover_hosts.sh": "#!/bin/sh\n"}
    meta = metadata(job, f"{name}-config", labels={"app": name})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def secret(job: Object) -> Object:
    """Returns a new key pair for the job's ssh."""
    key = ec.generate_private_key(ec.SECP521R1())
    form, no_password = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, form, no_password)
    encoding, public_form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    public = key.public_key().public_bytes(encoding, public_form) + b"\n"
    data = {"ssh-privatekey": base64.b64encode(private).decode(), "ssh-publickey": base64.b64encode(public).decode()}
    name = job["metadata"]["name"]
    meta = metadata(job, f"{name}-ssh", labels={"app": name})
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "kubernetes.io/ssh-auth", "data": data}


def pod_template(job: Object, role: str, pod_name: str) -> Object:
    """Returns a role's template with what both roles get; only the first container gets mounts and variables."""
    replica = job["spec"]["mpiReplicaSpecs"][role]
    template: Object = copy.deepcopy(replica["template"])
    spec = template["spec"]
    spec |= {"hostname": pod_name, "subdomain": job["metadata"]["name"], "restartPolicy": replica["restartPolicy"]}
    first = spec["containers"][0]
    first.setdefault("env", []).append({"name": "K_MPI_JOB_ROLE", "value": role.lower()})
    path = job["spec"]["sshAuthMountPath"]
    pairs = (("ssh-privatekey", "id_rsa"), ("ssh-publickey", "id_rsa.pub"), ("ssh-publickey", "authorized_keys"))
    keys: Object = {"secretName": f"{job['metadata']['name']}-ssh"}
    keys["items"] = [{"key": key, "path": file} for key, file in pairs]
    if path == DEFAULT_SSH_PATH:
        keys["defaultMode"] = 0o600
    spec.setdefault("volumes", []).append({"name": "ssh-auth", "secret": keys})
    first.setdefault("volumeMounts", []).append({"name": "ssh-auth", "mountPath": path})
    return template


def worker(job: Object, index: int) -> Object:
    """Returns one worker pod."""
    name = job["metadata"]["name"]
    pod_name = f"{name}-worker-{index}"
    template = pod_template(job, "Worker", pod_name)
    spec, meta = template["spec"], template.get("metadata") or {}
    search = f"{name}.{job['metadata']['namespace']}.svc.cluster.local"
    spec.setdefault("dnsConfig", {}).setdefault("searches", []).append(search)
    first = spec["containers"][0]
    if not first.get("command") and not first.get("args"):
        first["command"] = ["/usr/sbin/sshd", "-De"]
    own = (meta.get("labels") or {}) | labels(job, "worker", index)
    pod_metadata = metadata(job, pod_name, labels=own, annotations=meta.get("annotations") or {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": pod_metadata, "spec": spec}


def launcher(job: Object) -> Object:
    """Returns the launcher, a Job that starts its pod anew as often as the run policy says."""
    name, spec = job["metadata"]["name"], job["spec"]
    template = pod_template(job, "Launcher", f"{name}-launcher")
    first = template["spec"]["containers"][0]
    implementation = spec["mpiImplementation"]
    variables = dict(ENVIRONMENT[implementation])
    if implementation in SLOTS_VARIABLE:
        variables[SLOTS_VARIABLE[implementation]] = str(spec["slotsPerWorker"])
    first["env"] += [{"name": key, "value": value} for key, value in variables.items()]
    files = [
        {"key": "hostfile", "path": "hostfile", "mode": 0o444},
        {"key": "discover_hosts.sh", "path": "discover_hosts.sh", "mode": 0o555},
    ]
    volume = {"name": "mpi-job-config", "configMap": {"name": f"{name}-config", "items": files}}
    template["spec"]["volumes"].append(volume)
    first["volumeMounts"].append({"name": "mpi-job-config", "mountPath": "/etc/mpi"})
    meta = template.get("metadata") or {}
    template["metadata"] = {**meta, "labels": (meta.get("labels") or {}) | labels(job, "launcher")}
    policy = ("ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit")
    limits = {key: spec["runPolicy"][key] for key in policy if key in spec["runPolicy"]}
    job_metadata = metadata(job, f"{name}-launcher", labels={"app": name})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": job_metadata,
        "spec": {**limits, "template": template},
    }
