from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import yaml

from corebound.errors import ConfigError
from corebound.k8s.definition import read_definition
from corebound.k8s.documents import Document, read_documents
from corebound.k8s.schema import KubernetesSchemas
from corebound.k8s.validate import Validator, model_of

ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = ROOT / "tests/k8s/manifests"
EXPECTED = yaml.safe_load((MANIFESTS / "expected.yml").read_text())
WORKER = "spec.mpiReplicaSpecs.Worker.template.spec"
OPERATOR = os.environ.get("MPI_OPERATOR_MANIFEST")

needs_operator = pytest.mark.skipif(
    not OPERATOR, reason="this machine lacks the operator's definition (MPI_OPERATOR_MANIFEST)"
)


@pytest.fixture(scope="module")
def validator():
    return Validator(read_definition(None), KubernetesSchemas())


@pytest.fixture(scope="module")
def strictest():
    return Validator(read_definition(Path(str(OPERATOR))), KubernetesSchemas())


@pytest.fixture
def good():
    (document,) = read_documents(MANIFESTS / "good.yaml")
    # Aliases in the file are one object here; a change for one role must not reach the other.
    return yaml.safe_load(yaml.safe_dump(copy.deepcopy(document.data), default_flow_style=False))


def found(validator, data):
    return [(finding.path, finding.rule) for finding in validator.findings([Document("file", 1, data)])]


def worker(data):
    return data["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]


def test_a_good_manifest_has_no_finding_at_all(validator, good):
    assert found(validator, good) == []


@pytest.mark.parametrize("version", ["1.28", "1.31", "1.34", "1.37"])
def test_the_committed_manifest_fits_the_schemas_of_kubernetes_releases(version):
    documents = read_documents(ROOT / "k8s/mpijob-bloom.yaml")
    findings = Validator(read_definition(None), KubernetesSchemas(version)).findings(documents)
    assert {finding.rule for finding in findings} == {"plan/image-digest"}


@needs_operator
def test_the_committed_manifest_fits_the_operator_s_definition(strictest):
    findings = strictest.findings(read_documents(ROOT / "k8s/mpijob-bloom.yaml"))
    assert {finding.rule for finding in findings} == {"plan/image-digest"}


def defects(validator, name):
    findings = validator.findings(read_documents(MANIFESTS / f"bad/{name}.yaml"))
    return [(finding.path, finding.reason) for finding in findings if finding.severity == "error"]


def test_every_malformed_manifest_has_its_expected_defect():
    assert {path.stem for path in (MANIFESTS / "bad").iterdir()} == set(EXPECTED)
    assert len(EXPECTED) >= 10


@pytest.mark.parametrize("name", EXPECTED)
def test_a_malformed_manifest_is_refused_with_field_and_reason(validator, name):
    assert (EXPECTED[name]["path"], EXPECTED[name]["reason"]) in defects(validator, name)


@needs_operator
@pytest.mark.parametrize("name", EXPECTED)
def test_the_operator_s_own_definition_gives_the_same_verdict(strictest, name):
    assert (EXPECTED[name]["path"], EXPECTED[name]["reason"]) in defects(strictest, name)


def test_a_file_without_the_definition_is_no_definition():
    with pytest.raises(ConfigError, match=r"expected the CustomResourceDefinition mpijobs\.kubeflow\.org"):
        read_definition(MANIFESTS / "good.yaml")


def test_a_release_without_schemas_is_an_error_that_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"no schemas of Kubernetes 1\.3\n") as caught:
        KubernetesSchemas("1.3")
    assert caught.value.hint is not None and caught.value.hint.count("1.37") == 1


def test_a_kind_that_kubernetes_does_not_have_is_an_error(validator):
    data = {"apiVersion": "policy/v1", "kind": "PodSecurityPolicy", "metadata": {"name": "a"}}
    assert found(validator, data) == [("kind", "schema")]


def set_resource(key, value):
    def change(data):
        worker(data)["containers"][0]["resources"] = {"limits": {"cpu": "2", "memory": "2Gi"}} | {key: value}

    return change


def set_limits(**limits):
    return set_resource("limits", {"cpu": "2", "memory": "2Gi"} | limits)


@pytest.mark.parametrize(
    ("change", "path", "rule"),
    [
        (set_limits(cpu=2), "resources.limits.cpu", "resources/quoted"),
        (set_limits(cpu="1500m"), "resources.limits.cpu", "resources/whole-cpus"),
        (set_limits(cpu="500m"), "resources.limits.cpu", "resources/whole-cpus"),
        (set_resource("requests", {"cpu": "1"}), "resources.requests.cpu", "resources/guaranteed"),
        (set_resource("limits", {"cpu": "2"}), "resources.limits.memory", "resources/guaranteed"),
    ],
)
def test_a_worker_that_would_not_be_pinned_is_refused(validator, good, change, path, rule):
    change(good)
    errors = [row for row in found(validator, good) if not row[1].startswith("plan/")]
    assert (f"{WORKER}.containers[0].{path}", rule) in errors
    assert {row[1] for row in errors} == {rule}


def test_equal_requests_and_limits_in_other_units_are_guaranteed(validator, good):
    set_resource("requests", {"cpu": "2000m", "memory": "2048Mi"})(good)
    assert found(validator, good) == []


def test_a_container_beside_the_worker_must_be_guaranteed_too(validator, good):
    worker(good)["initContainers"] = [{**worker(good)["containers"][0], "name": "first", "resources": {}}]
    assert {rule for _, rule in found(validator, good)} == {"resources/guaranteed"}


def test_the_launcher_may_have_part_of_a_cpu(validator, good):
    launcher = good["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]
    launcher["resources"] = {"requests": {"cpu": "250m"}, "limits": {"cpu": "1"}}
    assert found(validator, good) == []


def no_deadline(data):
    del data["spec"]["runPolicy"]["activeDeadlineSeconds"]


def other_launcher(data):
    data["spec"]["mpiImplementation"] = "OpenMPI"


def no_wait(data):
    data["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]["args"].pop()


def other_path(data):
    data["spec"]["sshAuthMountPath"] = "/root/.ssh"


def three_slots(data):
    data["spec"]["slotsPerWorker"] = 3
    set_limits(cpu="2", memory="8Gi")(data)


def uneven_slots(data):
    data["spec"]["slotsPerWorker"] = 2
    set_limits(cpu="3", memory="8Gi")(data)


def shm_size(size):
    def change(data):
        worker(data)["volumes"][0]["emptyDir"]["sizeLimit"] = size

    return change


def shm_on_disk(data):
    worker(data)["volumes"][0]["emptyDir"] = {}


def no_shm(data):
    worker(data)["containers"][0]["volumeMounts"] = []


def little_memory(data):
    set_limits(memory="900Mi")(data)


def tag(data):
    worker(data)["containers"][0]["image"] = "corebound:1"


@pytest.mark.parametrize(
    ("change", "path", "rule"),
    [
        (no_deadline, "spec.runPolicy.activeDeadlineSeconds", "plan/deadline"),
        (other_launcher, "spec.mpiImplementation", "plan/launcher"),
        (no_wait, "spec.mpiReplicaSpecs.Launcher.template.spec.containers[0].args", "plan/wait-for-hosts"),
        (other_path, "spec.sshAuthMountPath", "plan/ssh-path"),
        (three_slots, "spec.slotsPerWorker", "plan/slots"),
        (uneven_slots, "spec.slotsPerWorker", "plan/slots"),
        (shm_size("64Mi"), f"{WORKER}.volumes[0].emptyDir.sizeLimit", "plan/shm"),
        (shm_size("3Gi"), f"{WORKER}.volumes[0].emptyDir.sizeLimit", "plan/shm"),
        (shm_on_disk, f"{WORKER}.volumes[0].emptyDir.medium", "plan/shm"),
        (no_shm, f"{WORKER}.containers[0].volumeMounts", "plan/shm"),
        (tag, f"{WORKER}.containers[0].image", "plan/image-digest"),
    ],
)
def test_a_request_that_its_launch_does_not_fit_is_told(validator, good, change, path, rule):
    change(good)
    assert found(validator, good) == [(path, rule)]


def test_memory_is_compared_with_the_model_s_size_where_that_is_known(validator, good):
    little_memory(good)
    assert found(validator, good) == []
    sized = Validator(validator.definition, validator.schemas, model_bytes=4 << 20)
    assert found(sized, good) == [(f"{WORKER}.containers[0].resources.limits.memory", "plan/memory")]
    assert model_of([Document("file", 1, good)]) == "demo"


def test_objects_beside_a_job_are_checked_by_the_schemas_of_kubernetes(validator):
    policy = read_documents(ROOT / "k8s/mpijob-bloom.yaml")[0].data
    policy["spec"]["podSelektor"] = policy["spec"].pop("podSelector")
    assert ("spec.podSelektor", "schema") in found(validator, policy)
