"""Pod Security Standards: one rule for each line of the levels baseline and restricted.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/ (as of Kubernetes 1.34).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from corebound.k8s.findings import Finding, error, items, join, mapping, words
from corebound.k8s.pods import Pod

Level = Literal["privileged", "baseline", "restricted"]
LEVELS: tuple[Level, ...] = ("privileged", "baseline", "restricted")
_BASELINE_CAPABILITIES = frozenset({
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
})  # fmt: skip
_SYSCTLS = frozenset({
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem",
})  # fmt: skip
_SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_VOLUMES = frozenset({
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
})  # fmt: skip
_PROFILES = ("RuntimeDefault", "Localhost")
_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"

Place = tuple[str, Mapping[str, Any]]


def security_rules(pod: Pod, level: Level) -> Iterator[Finding]:
    """Yield what a level of the Pod Security Standards does not allow in a pod."""
    if level != "privileged":
        for rule in BASELINE:
            yield from rule(pod)
    if level == "restricted":
        for rule in RESTRICTED:
            yield from rule(pod)


def _contexts(pod: Pod) -> list[Place]:
    """Return the security contexts of the pod and of its containers, the pod's first."""
    whole = (join(pod.spec_path, "securityContext"), mapping(pod.spec, "securityContext"))
    return [whole, *_container_contexts(pod)]


def _container_contexts(pod: Pod) -> list[Place]:
    return [(join(box.path, "securityContext"), mapping(box.data, "securityContext")) for box in pod.containers]


def host_process(pod: Pod) -> Iterator[Finding]:
    """Windows HostProcess containers."""
    for path, context in _contexts(pod):
        if mapping(context, "windowsOptions").get("hostProcess"):
            yield error(join(path, "windowsOptions", "hostProcess"), "must not be true", "pod-security/host-process")


def host_namespaces(pod: Pod) -> Iterator[Finding]:
    """Namespaces of the host: network, processes, IPC."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield error(join(pod.spec_path, name), "must not be true", "pod-security/host-namespaces")


def privileged(pod: Pod) -> Iterator[Finding]:
    """Privileged containers."""
    for path, context in _container_contexts(pod):
        if context.get("privileged"):
            yield error(join(path, "privileged"), "must not be true", "pod-security/privileged")


def _added(context: Mapping[str, Any]) -> set[str]:
    listed = mapping(context, "capabilities").get("add")
    return set(map(str, listed)) if isinstance(listed, list) else set()


def capabilities(pod: Pod) -> Iterator[Finding]:
    """Capabilities beyond those that container runtimes give by default."""
    for path, context in _container_contexts(pod):
        foreign = sorted(_added(context) - _BASELINE_CAPABILITIES)
        if foreign:
            yield error(
                join(path, "capabilities", "add"), f"must not add {words(foreign)}", "pod-security/capabilities"
            )


def host_path(pod: Pod) -> Iterator[Finding]:
    """Folders of the host as volumes."""
    for index, volume in items(pod.spec, "volumes"):
        if "hostPath" in volume:
            path = join(pod.spec_path, "volumes", index, "hostPath")
            yield error(path, "volumes must not be of type hostPath", "pod-security/host-path")


def host_ports(pod: Pod) -> Iterator[Finding]:
    """Ports of the host."""
    for box in pod.containers:
        for index, port in items(box.data, "ports"):
            if port.get("hostPort"):
                yield error(join(box.path, "ports", index, "hostPort"), "must be unset", "pod-security/host-ports")


def host_probes(pod: Pod) -> Iterator[Finding]:
    """Probes and hooks that name another host."""
    for box in pod.containers:
        places = [(name,) for name in ("livenessProbe", "readinessProbe", "startupProbe")]
        for keys in (*places, ("lifecycle", "postStart"), ("lifecycle", "preStop")):
            for action in ("httpGet", "tcpSocket"):
                if mapping(box.data, *keys, action).get("host"):
                    path = join(box.path, *keys, action, "host")
                    yield error(path, "must be unset", "pod-security/host-probes")


def apparmor(pod: Pod) -> Iterator[Finding]:
    """AppArmor switched off."""
    for path, context in _contexts(pod):
        kind = mapping(context, "appArmorProfile").get("type", "RuntimeDefault")
        if kind not in _PROFILES:
            where = join(path, "appArmorProfile", "type")
            yield error(where, f"expected {words(_PROFILES)}, found {kind}", "pod-security/apparmor")
    for name, value in mapping(pod.metadata, "annotations").items():
        profile = str(value)
        allowed = profile in ("", "runtime/default") or profile.startswith("localhost/")
        if str(name).startswith(_APPARMOR_ANNOTATION) and not allowed:
            where = join(join(pod.path, "metadata") if pod.path else "metadata", "annotations", str(name))
            yield error(where, f"expected runtime/default or localhost/*, found {value}", "pod-security/apparmor")


def selinux(pod: Pod) -> Iterator[Finding]:
    """SELinux types beyond those of containers; users and roles of one's own."""
    for path, context in _contexts(pod):
        options = mapping(context, "seLinuxOptions")
        where = join(path, "seLinuxOptions")
        if options.get("type", "") not in _SELINUX_TYPES:
            found = options["type"]
            yield error(
                join(where, "type"), f"expected {words(_SELINUX_TYPES[1:])}, found {found}", "pod-security/selinux"
            )
        for name in ("user", "role"):
            if options.get(name):
                yield error(join(where, name), "must be unset", "pod-security/selinux")


def proc_mount(pod: Pod) -> Iterator[Finding]:
    """A /proc without masks."""
    for path, context in _container_contexts(pod):
        if context.get("procMount", "Default") != "Default":
            yield error(join(path, "procMount"), "expected Default", "pod-security/proc-mount")


def seccomp(pod: Pod) -> Iterator[Finding]:
    """Seccomp switched off."""
    for path, context in _contexts(pod):
        if mapping(context, "seccompProfile").get("type") == "Unconfined":
            where = join(path, "seccompProfile", "type")
            yield error(where, f"expected {words(_PROFILES)}, found Unconfined", "pod-security/seccomp")


def sysctls(pod: Pod) -> Iterator[Finding]:
    """Kernel parameters that reach beyond the pod."""
    for index, entry in items(pod.spec, "securityContext", "sysctls"):
        if entry.get("name") not in _SYSCTLS:
            path = join(pod.spec_path, "securityContext", "sysctls", index, "name")
            yield error(path, f"{entry.get('name')} is not one of the safe ones", "pod-security/sysctls")


def volume_types(pod: Pod) -> Iterator[Finding]:
    """Volumes of other types than the listed ones; hostPath has a rule of its own."""
    for index, volume in items(pod.spec, "volumes"):
        for kind in sorted(set(volume) - _VOLUMES - {"name", "hostPath"}):
            path = join(pod.spec_path, "volumes", index, kind)
            yield error(path, f"expected {words(sorted(_VOLUMES))}, found {kind}", "pod-security/volume-types")


def privilege_escalation(pod: Pod) -> Iterator[Finding]:
    """Programs that gain rights when they start."""
    for path, context in _container_contexts(pod):
        if context.get("allowPrivilegeEscalation") is not False:
            yield error(join(path, "allowPrivilegeEscalation"), "expected false", "pod-security/privilege-escalation")


def run_as_non_root(pod: Pod) -> Iterator[Finding]:
    """A promise that the user is not root, by the pod or by each container."""
    (whole_path, whole), *others = _contexts(pod)
    promised = whole.get("runAsNonRoot") is True
    for path, context in others:
        own = context.get("runAsNonRoot")
        if own is False or (own is None and not promised):
            where = path if own is False or "runAsNonRoot" in whole else whole_path
            yield error(join(where, "runAsNonRoot"), "expected true", "pod-security/run-as-non-root")


def run_as_user(pod: Pod) -> Iterator[Finding]:
    """Root by number."""
    for path, context in _contexts(pod):
        if context.get("runAsUser") == 0:
            yield error(join(path, "runAsUser"), "must not be 0", "pod-security/run-as-user")


def seccomp_set(pod: Pod) -> Iterator[Finding]:
    """A seccomp profile, by the pod or by each container."""
    (_, whole), *others = _contexts(pod)
    kind = mapping(whole, "seccompProfile").get("type")
    for path, context in others:
        if kind is None and mapping(context, "seccompProfile").get("type") is None:
            where = join(path, "seccompProfile", "type")
            yield error(where, f"expected {words(_PROFILES)}, not found", "pod-security/seccomp-set")


def capabilities_dropped(pod: Pod) -> Iterator[Finding]:
    """All capabilities dropped; NET_BIND_SERVICE may come back."""
    for path, context in _container_contexts(pod):
        dropped = mapping(context, "capabilities").get("drop")
        if not isinstance(dropped, list) or "ALL" not in dropped:
            yield error(join(path, "capabilities", "drop"), 'expected ["ALL"]', "pod-security/capabilities-dropped")
        more = sorted((_added(context) & _BASELINE_CAPABILITIES) - {"NET_BIND_SERVICE"})
        if more:
            where = join(path, "capabilities", "add")
            yield error(where, f"must not add {words(more)}", "pod-security/capabilities-dropped")


Rule = Callable[[Pod], Iterator[Finding]]
BASELINE: tuple[Rule, ...] = (
    host_process, host_namespaces, privileged, capabilities, host_path, host_ports, host_probes, apparmor, selinux,
    proc_mount, seccomp, sysctls,
)  # fmt: skip
RESTRICTED: tuple[Rule, ...] = (
    volume_types, privilege_escalation, run_as_non_root, run_as_user, seccomp_set, capabilities_dropped,
)  # fmt: skip
