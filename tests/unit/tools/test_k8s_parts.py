"""Parts of the Kubernetes test cluster that need no cluster."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from pathlib import Path

import pytest
import yaml

from k8s import build, certificates, machine, mpijob_objects
from k8s.layout import POD_NETWORK, SERVICE_ADDRESS, SERVICE_NETWORK, SUBNET, Layout, nodes
from lab.layout import SUBNET as LAB_SUBNET

MANIFESTS = Path(__file__).resolve().parents[2] / "k8s/manifests"


def job(**spec):
    roles = {role: {"template": {"spec": {"containers": [{"name": "c"}]}}} for role in ("Launcher", "Worker")}
    roles["Worker"]["replicas"] = 2
    found = {"metadata": {"name": "bloom", "namespace": "ns", "uid": "u"}, "spec": {"mpiReplicaSpecs": roles, **spec}}
    return mpijob_objects.with_defaults(found)


@pytest.mark.parametrize(
    ("implementation", "line"),
    [
        ("Intel", "bloom-worker-1.bloom.ns.svc:2"),
        ("MPICH", "bloom-worker-1.bloom.ns.svc:2"),
        ("OpenMPI", "bloom-worker-1.bloom.ns.svc slots=2"),
    ],
)
def test_the_stand_in_writes_the_hostfile_in_the_form_of_the_mpi(implementation, line):
    text = mpijob_objects.hostfile(job(mpiImplementation=implementation, slotsPerWorker=2))
    assert text.splitlines()[1] == line
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize("name", ["two-launchers", "restart-always", "unknown-clean-pod-policy", "name-too-long"])
def test_the_stand_in_refuses_what_the_operator_refuses(name):
    found = yaml.safe_load((MANIFESTS / f"bad/{name}.yaml").read_text(encoding="utf-8"))
    assert list(mpijob_objects.problems(mpijob_objects.with_defaults(found)))


def test_the_stand_in_refuses_nothing_of_a_good_manifest():
    found = yaml.safe_load((MANIFESTS / "good.yaml").read_text(encoding="utf-8"))
    assert list(mpijob_objects.problems(mpijob_objects.with_defaults(found))) == []


def test_only_the_launcher_gets_the_hostfile_and_both_get_keys_that_root_may_use():
    worker, launcher = (
        mpijob_objects.worker(job(), 0)["spec"],
        mpijob_objects.launcher(job())["spec"]["template"]["spec"],
    )
    assert [volume["name"] for volume in worker["volumes"]] == ["ssh-auth"]
    assert [volume["name"] for volume in launcher["volumes"]] == ["ssh-auth", "mpi-job-config"]
    assert worker["volumes"][0]["secret"]["defaultMode"] == 0o600
    elsewhere = mpijob_objects.worker(job(sshAuthMountPath="/home/corebound/.ssh"), 0)["spec"]
    assert "defaultMode" not in elsewhere["volumes"][0]["secret"]


def test_templates_are_copied_and_not_changed():
    found = job()
    mpijob_objects.worker(found, 0)
    mpijob_objects.launcher(found)
    assert found == job()


def test_the_clusters_addresses_overlap_neither_each_other_nor_a_lab():
    lab = ipaddress.ip_network(LAB_SUBNET)
    labs = [ipaddress.ip_network((int(lab.network_address) + 256 * number, 24)) for number in range(16)]
    networks = [ipaddress.ip_network(text) for text in (SUBNET, POD_NETWORK, SERVICE_NETWORK)] + labs[:1]
    for index, network in enumerate(networks):
        assert not any(network.overlaps(other) for other in networks[index + 1 :])
    assert all(not network.overlaps(other) for network in networks[:3] for other in labs)
    assert ipaddress.ip_address(SERVICE_ADDRESS) in networks[2]
    assert all(ipaddress.ip_network(node.pods).subnet_of(networks[1]) for node in nodes(Layout(Path("/nowhere"))))


def shake_hands(place, host):
    """Returns whom a server with the certificate `server` sees, and raises what a client sees that asks for a host."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        context.load_cert_chain(place.keys / "server.crt", place.keys / "server.key")
        context.load_verify_locations(place.keys / "authority.crt")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    server.verify_mode = ssl.CERT_REQUIRED
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=host), server.wrap_bio(there, back, server_side=True)]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    subject = dict(entry[0] for entry in ends[1].getpeercert()["subject"])
    return subject["commonName"]


def test_certificates_are_signed_by_the_clusters_own_authority_and_keys_are_private(tmp_path):
    place = Layout(tmp_path)
    authority = certificates.Authority(place.keys)
    authority.issue("server", "somebody", "some group", hosts=["localhost"], addresses=["127.0.0.1"])
    assert shake_hands(place, "localhost") == "somebody"
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'elsewhere'"):
        shake_hands(place, "elsewhere")
    assert (place.keys / "server.key").stat().st_mode & 0o777 == 0o600
    text = certificates.kubeconfig(place, "server").read_text(encoding="utf-8")
    assert "insecure" not in text
    assert "certificate-authority-data" in text


def test_a_program_of_another_version_is_another_file(tmp_path):
    assert build.program(Layout(tmp_path), "kubelet").name == f"kubelet-{build.VERSION}"


def test_a_user_without_privileges_is_told_why_there_is_no_cluster(monkeypatch):
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    assert "lacks a root user" in machine.why_not()
