from __future__ import annotations

from pathlib import Path

import pytest

from corebound.errors import ConfigError, HostError, LaunchError
from corebound.k8s.apply import (
    apply_documents,
    default_timeout_s,
    delete_references,
    job_of,
    jobs_of,
    references,
    wait_for_definition,
)
from corebound.k8s.documents import parse_documents, read_documents
from corebound.k8s.job import job_reference
from unit.k8s.fake_cluster import RUNNING, Clock, FakeCluster, condition, pod

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = ROOT / "k8s/mpijob-bloom.yaml"


@pytest.fixture
def documents():
    return read_documents(MANIFEST)


@pytest.fixture
def cluster():
    return FakeCluster()


def results(cluster, documents):
    applied = apply_documents(cluster, documents, references(documents, cluster))
    return [(one.reference.kind, one.result, one.respecified) for one in applied]


def test_objects_are_created_once_and_unchanged_after(cluster, documents):
    assert results(cluster, documents) == [("NetworkPolicy", "created", False), ("MPIJob", "created", False)]
    assert results(cluster, documents) == [("NetworkPolicy", "unchanged", False), ("MPIJob", "unchanged", False)]


def test_a_job_that_is_changed_while_it_runs_is_marked_because_its_pods_stay(cluster, documents):
    results(cluster, documents)
    documents[1].data["spec"]["slotsPerWorker"] = 2
    assert results(cluster, documents)[1] == ("MPIJob", "configured", True)


@pytest.mark.parametrize("state", ["Succeeded", "Failed"])
def test_a_finished_job_is_not_applied_over_because_it_would_not_run_again(cluster, documents, state):
    results(cluster, documents)
    cluster.moments = [([condition("Created"), condition(state)], [])]
    with pytest.raises(LaunchError, match=f"is there already, and {state}") as caught:
        results(cluster, documents)
    assert "--replace" in caught.value.hint


def test_an_object_without_a_name_and_one_of_another_namespace_are_refused(cluster):
    with pytest.raises(ConfigError, match=r"text, line 1: expected apiVersion, kind and metadata\.name"):
        references(parse_documents("kind: MPIJob\n", "text"), cluster)
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: other}\n"
    with pytest.raises(ConfigError, match="expected mine, as --namespace says, found other"):
        references(parse_documents(text, "text"), cluster, "mine")
    assert references(parse_documents(text, "text"), cluster)[0].namespace == "other"


def test_a_definition_that_comes_late_is_waited_for_and_one_that_never_comes_names_the_operator(cluster):
    clock = Clock()
    reference = job_reference("bloom", "default")
    cluster.kinds.remove("MPIJob")

    def sleep(seconds):
        clock.sleep(seconds)
        if clock.now > 5:
            cluster.kinds.add("MPIJob")

    wait_for_definition(cluster, reference, clock=clock, sleep=sleep)
    assert 5 < clock.now < 6
    cluster.kinds.remove("MPIJob")
    with pytest.raises(HostError, match=r"has no MPIJob of kubeflow\.org/v2beta1 \(waited 30 s\)") as caught:
        wait_for_definition(cluster, reference, clock=clock, sleep=clock.sleep)
    assert "mpi-operator.yaml" in caught.value.hint


def test_delete_removes_the_last_first_and_what_is_not_there_is_no_error(cluster, documents):
    results(cluster, documents)
    found = references(documents, cluster)
    assert delete_references(cluster, found, timeout_s=1) == list(reversed(found))
    assert delete_references(cluster, found, timeout_s=1) == []


def test_delete_without_the_operator_s_definition_removes_the_rest(cluster, documents):
    results(cluster, documents[:1])
    cluster.kinds.remove("MPIJob")
    found = references(documents, cluster)
    assert delete_references(cluster, found, timeout_s=1) == found[:1]


def test_delete_names_the_pods_that_do_not_end(cluster, documents):
    results(cluster, documents)
    cluster.pods = [pod("bloom-worker-0", "worker", state=RUNNING)]
    cluster.lingering = True
    clock = Clock()
    jobs = jobs_of(references(documents, cluster))
    with pytest.raises(HostError, match="still there after 9 s: MPIJob default/bloom, pod bloom-worker-0"):
        delete_references(cluster, jobs, timeout_s=9, clock=clock, sleep=clock.sleep)


def test_a_job_is_found_by_name_or_manifest_and_its_own_deadline_bounds_the_wait(cluster, documents):
    by_manifest = job_of("job.yaml", documents, cluster, None)
    assert by_manifest == job_of("bloom", None, cluster, None) == job_reference("bloom", "default")
    with pytest.raises(ConfigError, match=r"policy\.yaml: expected one MPIJob, found 0"):
        job_of("policy.yaml", documents[:1], cluster, None)
    assert default_timeout_s(documents[1].data) == 3600 + 600
    del documents[1].data["spec"]["runPolicy"]["activeDeadlineSeconds"]
    assert default_timeout_s(documents[1].data) is None
