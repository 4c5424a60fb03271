from __future__ import annotations

import pytest

from corebound.errors import HostError, LaunchError
from corebound.k8s.follow import Follower, failure
from corebound.k8s.job import job_reference, job_status, read_status
from corebound.k8s.logs import read_logs
from unit.k8s.fake_cluster import RUNNING, Clock, FakeCluster, condition, ended, pod

REFERENCE = job_reference("bloom", "default")
CREATED = [condition("Created")]
WORKER = pod("bloom-worker-0", "worker", state=RUNNING)
LAUNCHER = pod("bloom-launcher-abcde", "launcher", state=RUNNING)


class Told:
    def __init__(self, cluster, **options):
        self.lines, self.notes, self.clock = [], [], Clock()
        self.follower = Follower(
            cluster,
            REFERENCE,
            self.lines.append,
            self.notes.append,
            clock=self.clock,
            sleep=self.clock.sleep,
            **options,
        )

    def texts(self):
        return [(line.origin, line.text) for line in self.lines]


@pytest.fixture
def cluster():
    return FakeCluster()


def test_a_job_is_followed_to_its_end_with_every_line_and_its_origin(cluster):
    cluster.logs = {"bloom-worker-0": ["listening"], "bloom-launcher-abcde": ["one", "two"]}
    cluster.moments = [
        (CREATED, [WORKER]),
        ([*CREATED, condition("Running")], [WORKER, LAUNCHER]),
        ([*CREATED, condition("Succeeded")], [WORKER, pod("bloom-launcher-abcde", "launcher", state=ended(0))]),
    ]
    told = Told(cluster)
    assert told.follower.run().state == "Succeeded"
    assert sorted(told.texts()) == [("launcher-abcde", "one"), ("launcher-abcde", "two"), ("worker-0", "listening")]
    assert "bloom-worker-0: Running on node1" in told.notes
    assert told.notes[-1] == "MPIJob default/bloom: Succeeded"


def test_each_attempt_of_a_launcher_has_a_log_of_its_own_and_only_asked_roles_are_followed(cluster):
    second = pod("bloom-launcher-fghij", "launcher", state=RUNNING)
    first = pod("bloom-launcher-abcde", "launcher", state=ended(5), phase="Failed")
    cluster.logs = {"bloom-worker-0": ["-"], "bloom-launcher-abcde": ["lost"], "bloom-launcher-fghij": ["found"]}
    cluster.moments = [
        ([*CREATED, condition("Running")], [WORKER, LAUNCHER]),
        ([*CREATED, condition("Running")], [WORKER, first, second]),
        ([*CREATED, condition("Succeeded")], [WORKER, first, second]),
    ]
    told = Told(cluster, roles=("launcher",))
    told.follower.run()
    assert set(told.texts()) == {("launcher-abcde", "lost"), ("launcher-fghij", "found")}


def test_a_log_that_is_read_on_repeats_no_line(cluster):
    cluster.logs = {"bloom-launcher-abcde": ["the answer"]}
    running = ([*CREATED, condition("Running")], [LAUNCHER])
    cluster.moments = [running, running, running, ([condition("Succeeded")], [LAUNCHER])]
    told = Told(cluster)
    told.follower.run()
    assert told.texts() == [("launcher-abcde", "the answer")]


def test_a_container_that_was_restarted_has_its_log_followed_anew(cluster):
    cluster.logs = {"bloom-worker-0": ["start"]}
    again = pod("bloom-worker-0", "worker", state=ended(1), restarts=1)
    cluster.moments = [(CREATED, [pod("bloom-worker-0", "worker", state=ended(1))]), ([condition("Failed")], [again])]
    told = Told(cluster)
    told.follower.run()
    assert told.texts() == [("worker-0", "start")] * 2


def test_a_failed_job_names_reason_pod_and_exit_code(cluster):
    dead = pod("bloom-launcher-abcde", "launcher", state=ended(4), phase="Failed")
    cluster.objects[REFERENCE] = {
        "metadata": {"name": "bloom", "namespace": "default"},
        "status": {"conditions": [*CREATED, condition("Failed", "limit reached", "BackoffLimitExceeded")]},
    }
    cluster.pods = [dead]
    error = failure(read_status(cluster, REFERENCE))
    assert error.exit_code == 4
    assert error.message == (
        "MPIJob default/bloom failed: BackoffLimitExceeded: limit reached\n"
        "  bloom-launcher-abcde: container launcher ended with exit code 4: Error"
    )


def test_a_job_that_no_operator_takes_up_is_given_up_with_what_the_operator_said(cluster):
    cluster.objects[REFERENCE] = {"metadata": {"name": "bloom", "namespace": "default", "uid": "1"}}
    about = {"kind": "MPIJob", "name": "bloom"}
    cluster.events = [
        {"involvedObject": {**about, "uid": "1"}, "reason": "ValidationError", "message": "two launchers"},
        {"involvedObject": {**about, "uid": "0"}, "reason": "ValidationError", "message": "of an older job"},
        {"involvedObject": {"kind": "Pod", "name": "other"}, "reason": "Failed", "message": "not ours"},
    ]
    with pytest.raises(LaunchError, match="no MPI operator has taken it up within 60 s") as caught:
        Told(cluster).follower.run()
    assert caught.value.message.endswith("\n  MPIJob bloom: ValidationError: two launchers")


def test_a_wait_ends_at_its_deadline_and_names_what_pods_wait_for(cluster):
    stuck = pod(
        "bloom-worker-0",
        "worker",
        phase="Pending",
        state={"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "none:1"'}},
    )
    cluster.moments = [(CREATED, [stuck])]
    with pytest.raises(LaunchError, match="not done within 20 s, but Created") as caught:
        Told(cluster, timeout_s=20).follower.run()
    assert 'container worker: ImagePullBackOff: Back-off pulling image "none:1"' in caught.value.message


def test_a_job_that_is_not_there_and_one_that_is_deleted_meanwhile_are_different_errors(cluster):
    with pytest.raises(LaunchError, match="MPIJob default/bloom is not there"):
        Told(cluster).follower.run()
    cluster.moments = [(CREATED, [])]
    told = Told(cluster)
    told.follower.sleep = lambda _: cluster.objects.clear()
    with pytest.raises(LaunchError, match="was deleted before it was done"):
        told.follower.run()


def test_a_cluster_that_is_silent_for_a_while_is_asked_again_and_one_that_stays_silent_is_an_error(cluster):
    silent = HostError("no answer")
    cluster.moments = [(CREATED, []), silent, silent, ([condition("Succeeded")], [])]
    told = Told(cluster)
    assert told.follower.run().state == "Succeeded"
    assert told.notes.count("the cluster does not answer, trying again: no answer") == 1
    cluster.moments = [(CREATED, []), *[silent] * 20]
    with pytest.raises(HostError, match="no answer"):
        Told(cluster).follower.run()


def test_a_log_that_cannot_be_read_is_a_note_and_the_others_go_on(cluster):
    cluster.logs = {"bloom-worker-0": ["a"]}
    status = job_status({"metadata": {"name": "bloom"}}, [WORKER, LAUNCHER])
    lines = [(line.origin, line.text, line.is_note) for line in read_logs(cluster, status)]
    assert lines == [
        ("launcher-abcde", "log not readable: log of /bloom-launcher-abcde: gone", True),
        ("worker-0", "a", False),
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            pod("p", "worker", phase="Failed", reason="TopologyAffinityError", message="Resources\ncannot be aligned"),
            "TopologyAffinityError: Resources cannot be aligned",
        ),
        (
            pod(
                "p",
                "worker",
                phase="Pending",
                conditions=[
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "2 nodes full",
                    }
                ],
            ),
            "Unschedulable: 2 nodes full",
        ),
        (
            pod("p", "worker", state=ended(137, "OOMKilled")),
            "container worker ended with exit code 137: OOMKilled",
        ),
        (
            pod("p", "worker", initContainerStatuses=[{"name": "model", "state": ended(6, message="SHA-256")}]),
            "container model ended with exit code 6: Error: SHA-256",
        ),
        (pod("p", "worker", phase="Pending", state={"waiting": {"reason": "ContainerCreating"}}), ""),
        (pod("p", "launcher", phase="Succeeded", state=ended(0, "Completed")), ""),
    ],
)
def test_what_is_wrong_with_a_pod_is_said_in_the_cluster_s_words(data, problem):
    (found,) = job_status({}, [data]).pods
    assert found.problem == problem


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "Submitted"),
        ([condition("Created")], "Created"),
        ([condition("Created"), condition("Running")], "Running"),
        ([condition("Created"), {**condition("Running"), "status": "False"}, condition("Suspended")], "Suspended"),
        ([condition("Created"), condition("Running"), condition("Succeeded")], "Succeeded"),
    ],
)
def test_the_state_is_the_condition_that_decides(conditions, state):
    assert job_status({"status": {"conditions": conditions}}, []).state == state
