"""etcd, API server, controller manager and scheduler, each with a certificate of its own."""

from __future__ import annotations

import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from k8s.build import program
from k8s.certificates import Authority, kubeconfig
from k8s.layout import (
    API_PORT,
    CONTROLLER_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    GATEWAY,
    SCHEDULER_PORT,
    SERVICE_ADDRESS,
    SERVICE_NETWORK,
    ClusterError,
    Layout,
    nodes,
)
from k8s.processes import log_end, start, wait_until

LOCAL = "127.0.0.1"
# A job's objects go away some time after it has finished; behind a gate in this release.
GATES = "--feature-gates=TTLAfterFinished=true"
READY_TIMEOUT_S = 180.0
# Of whom each certificate is: file -> user and group, as Kubernetes' own roles name them.
USERS = {
    "admin": ("corebound-k8s-admin", "system:masters"),
    "apiserver-to-kubelet": ("kube-apiserver", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    # Somebody without rights but those that a test gives.
    "submitter": ("submitter", ""),
    "name-server": ("system:serviceaccount:kube-system:kube-dns", ""),
}


def write_certificates(layout: Layout) -> None:
    """Issues what every process needs, and writes who reaches the API server how."""
    authority = Authority(layout.keys)
    authority.issue("etcd", "etcd", addresses=[LOCAL])
    hosts = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    authority.issue("apiserver", "kube-apiserver", hosts=hosts, addresses=[GATEWAY, LOCAL, SERVICE_ADDRESS])
    authority.signing_pair("service-accounts")
    for name, (user, group) in USERS.items():
        authority.issue(name, user, group)
        kubeconfig(layout, name)
    for node in nodes(layout):
        user = f"system:node:{node.name}"
        authority.issue(node.name, user, "system:nodes", hosts=[node.name], addresses=[node.address])
        kubeconfig(layout, node.name)


def start_etcd(layout: Layout) -> None:
    """Starts the database, which only the API server may read; nothing of it has to survive the cluster."""
    keys = layout.keys
    address, peer = f"https://{LOCAL}:{ETCD_PORT}", f"http://{LOCAL}:{ETCD_PEER_PORT}"
    words: list[str | Path] = [
        "--data-dir",
        layout.run / "etcd",
        "--listen-client-urls",
        address,
        "--advertise-client-urls",
        address,
    ]
    words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    words += ["--initial-cluster", f"default={peer}", "--unsafe-no-fsync", "--client-cert-auth"]
    words += ["--trusted-ca-file", keys / "authority.crt", "--cert-file", keys / "etcd.crt"]
    words += ["--key-file", keys / "etcd.key"]
    start(layout, "etcd", layout.package_file("usr/bin/etcd"), *words)


def start_api_server(layout: Layout) -> None:
    """Starts the API server and returns when it is ready."""
    keys = layout.keys
    authority = keys / "authority.crt"
    words = [
        f"--etcd-servers=https://{LOCAL}:{ETCD_PORT}",
        f"--etcd-cafile={authority}",
        f"--etcd-certfile={keys / 'etcd.crt'}",
        f"--etcd-keyfile={keys / 'etcd.key'}",
        f"--secure-port={API_PORT}",
        f"--bind-address={GATEWAY}",
        f"--advertise-address={GATEWAY}",
        f"--tls-cert-file={keys / 'apiserver.crt'}",
        f"--tls-private-key-file={keys / 'apiserver.key'}",
        f"--client-ca-file={authority}",
        "--anonymous-auth=false",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--kubelet-certificate-authority={authority}",
        f"--kubelet-client-certificate={keys / 'apiserver-to-kubelet.crt'}",
        f"--kubelet-client-key={keys / 'apiserver-to-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--service-account-key-file={keys / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={keys / 'service-accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--cert-dir={keys}",
        GATES,
    ]
    process = start(layout, "kube-apiserver", program(layout, "kube-apiserver"), *words)
    hint = f"its log: {layout.logs / 'kube-apiserver.log'}"
    wait_until(lambda: ready(layout, process), "the API server is ready", READY_TIMEOUT_S, hint=hint)


def ready(layout: Layout, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Returns whether the API server answers as ready; raises when it has ended."""
    if process is not None and process.poll() is not None:
        raise_ended(layout, "kube-apiserver")
    keys = layout.keys
    if not (keys / "admin.key").exists():
        return False
    context = ssl.create_default_context(cafile=str(keys / "authority.crt"))
    context.load_cert_chain(str(keys / "admin.crt"), str(keys / "admin.key"))
    try:
        with urllib.request.urlopen(f"https://{GATEWAY}:{API_PORT}/readyz", context=context, timeout=5) as answer:
            return bool(answer.read() == b"ok")
    except (urllib.error.URLError, OSError):
        return False


def raise_ended(layout: Layout, name: str) -> None:
    """Raises with the last words of a process that should run."""
    raise ClusterError(f"{name} has ended; the end of {layout.logs / name}.log:\n{log_end(layout, name)}")


def start_controllers(layout: Layout) -> None:
    """Starts controller manager and scheduler."""
    keys = layout.keys
    common = ["--leader-elect=false", "--port=0", f"--bind-address={LOCAL}"]

    def identity(name: str) -> list[str]:
        path = layout.run / f"{name}.kubeconfig"
        options = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
        return [*(f"--{option}={path}" for option in options), f"--cert-dir={keys / name}"]

    start(
        layout,
        "kube-controller-manager",
        program(layout, "kube-controller-manager"),
        *common,
        *identity("controller-manager"),
        f"--secure-port={CONTROLLER_PORT}",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={keys / 'service-accounts.key'}",
        f"--root-ca-file={keys / 'authority.crt'}",
        f"--flex-volume-plugin-dir={layout.run / 'plugins'}",
        GATES,
    )
    start(
        layout,
        "kube-scheduler",
        program(layout, "kube-scheduler"),
        *common,
        *identity("scheduler"),
        f"--secure-port={SCHEDULER_PORT}",
    )
