"""The kubernetes client against canned answers of an API server: what goes over the wire, what errors become."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from corebound.errors import ConfigError, HostError
from corebound.k8s.cluster import Reference, connect
from corebound.k8s.job import job_reference

JOBS = "/apis/kubeflow.org/v2beta1/namespaces/team/mpijobs"
POD_LOG = "/api/v1/namespaces/team/pods/bloom-worker-0/log"
JOB = {"apiVersion": "kubeflow.org/v2beta1", "kind": "MPIJob", "metadata": {"name": "bloom"}, "spec": {"cpu": "1"}}
LOG = b"2026-01-01T00:00:00.000000001Z one\n2026-01-01T00:00:00.000000002Z \n2026-01-01T00:00:00.000000003Z two\n"


def resource(name, kind):
    return {"name": name, "kind": kind, "namespaced": True, "singularName": "", "verbs": ["get", "list", "patch"]}


def resource_list(group_version, *resources):
    return {"kind": "APIResourceList", "groupVersion": group_version, "resources": list(resources)}


VERSION = {"groupVersion": "kubeflow.org/v2beta1", "version": "v2beta1"}
DISCOVERY = {
    "/version": {"gitVersion": "v1.34.0"},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [{"name": "kubeflow.org", "versions": [VERSION], "preferredVersion": VERSION}],
    },
    "/api/v1": resource_list("v1", resource("pods", "Pod"), resource("events", "Event")),
    "/apis/kubeflow.org/v2beta1": resource_list("kubeflow.org/v2beta1", resource("mpijobs", "MPIJob")),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer()

    def do_PATCH(self):
        self.answer()

    def do_DELETE(self):
        self.answer()

    def answer(self):
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, url.path, parse_qs(url.query), self.headers.get("Content-Type"), body))
        status, content = self.server.answers.get((self.command, url.path), (404, {"message": "not here"}))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.asked = []
        served.answers = {("GET", path): (200, content) for path, content in DISCOVERY.items()}
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        entry = {"cluster": "c", "user": "u", "namespace": "team"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{served.server_port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": entry}, {"name": "y", "context": {**entry, "namespace": "other"}}],
        }
        path = tmp_path / "config"
        path.write_text(json.dumps(config))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def cluster(server):
    return connect()


@pytest.fixture
def reference(cluster):
    return job_reference("bloom", cluster.namespace)


def test_the_namespace_is_that_of_the_context_unless_one_is_given(server):
    assert [connect().namespace, connect("y").namespace, connect("y", "mine").namespace] == ["team", "other", "mine"]
    with pytest.raises(ConfigError, match="no cluster to talk to"):
        connect("z")


def test_discovery_leaves_no_file_where_others_could_put_their_own(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    connect()
    assert list((tmp_path / "tmp").glob("osrcp*")) == []


def test_apply_is_server_side_with_our_name_strict_and_takes_nothing_over_unasked(server, cluster, reference):
    server.answers["PATCH", f"{JOBS}/bloom"] = (200, {**JOB, "metadata": {"name": "bloom", "resourceVersion": "7"}})
    assert cluster.apply(reference, JOB, force=False)["metadata"]["resourceVersion"] == "7"
    _, _, query, content_type, body = server.asked[-1]
    assert content_type == "application/apply-patch+yaml"
    assert query == {"fieldManager": ["corebound"], "fieldValidation": ["Strict"]}
    assert json.loads(body) == JOB
    cluster.apply(reference, JOB, force=True)
    assert server.asked[-1][2]["force"][0].lower() == "true"


def test_what_is_not_there_is_none_and_deleting_it_is_no_error(server, cluster, reference):
    assert cluster.read(reference) is None
    assert cluster.delete(reference) is False
    server.answers["DELETE", f"{JOBS}/bloom"] = (200, {"kind": "Status", "status": "Success"})
    assert cluster.delete(reference) is True
    assert server.asked[-1][2] == {"propagationPolicy": ["Foreground"]}


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (409, ConfigError, "--force-conflicts"),
        (422, ConfigError, None),
        (401, HostError, "credentials"),
        (403, HostError, "k8s/submitter.yaml"),
        (503, HostError, None),
    ],
)
def test_a_refusal_is_told_in_the_cluster_s_words(server, cluster, reference, status, kind, hint):
    server.answers["PATCH", f"{JOBS}/bloom"] = (status, {"kind": "Status", "message": "because of spec.x"})
    with pytest.raises(kind, match=r"MPIJob team/bloom: .*because of spec\.x") as caught:
        cluster.apply(reference, JOB, force=False)
    assert (hint or "") in (caught.value.hint or "")


def test_a_kind_counts_once_the_cluster_lists_it(server, cluster):
    assert cluster.knows("kubeflow.org/v2beta1", "MPIJob")
    assert not cluster.knows("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")
    with pytest.raises(HostError, match="the cluster has no LeaderWorkerSet"):
        cluster.read(Reference("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "a", "team"))


def test_pods_are_found_by_label(server, cluster):
    server.answers["GET", "/api/v1/namespaces/team/pods"] = (
        200,
        {"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "p"}}]},
    )
    assert [pod["metadata"]["name"] for pod in cluster.find("Pod", "team", labels="a=b")] == ["p"]
    assert server.asked[-1][2] == {"labelSelector": ["a=b"]}


def test_a_log_is_followed_with_times_and_read_without(server, cluster):
    server.answers["GET", POD_LOG] = (200, LOG)
    lines = list(cluster.log("team", "bloom-worker-0", "worker", follow=True, since_s=3))
    assert lines == LOG.decode().splitlines()
    query = server.asked[-1][2]
    assert {name: query[name][0].lower() for name in ("follow", "timestamps", "sinceSeconds")} == {
        "follow": "true",
        "timestamps": "true",
        "sinceSeconds": "3",
    }
    server.answers["GET", POD_LOG] = (200, b"one\n\xff\ntwo\n")
    assert list(cluster.log("team", "bloom-worker-0", "worker", follow=False, since_s=None)) == ["one", "\ufffd", "two"]
    with pytest.raises(HostError, match="log of team/gone: the cluster answers 404: not here"):
        list(cluster.log("team", "gone", "worker", follow=True, since_s=None))


def test_a_server_that_is_gone_is_named(server, cluster, reference):
    server.shutdown()
    server.server_close()
    with pytest.raises(HostError, match=r"no answer from http://127\.0\.0\.1") as caught:
        cluster.read(reference)
    assert "current-context" in caught.value.hint
