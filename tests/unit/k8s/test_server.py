"""The manifests of a server: made from values, valid, and the script that all its pods run."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from corebound.errors import ConfigError
from corebound.k8s.documents import parse_documents
from corebound.k8s.render import render
from corebound.k8s.validate import has_errors, make_validator
from corebound.k8s.values import ServerValues, Workers, read_values

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "images/runtime/files/corebound-server"
NAMES = ["server", "server-leader-worker-set"]
VALUES = ServerValues(name="corebound", image="a/b@sha256:" + "0" * 64)


def documents(values: ServerValues):
    return parse_documents(render(values), "text")


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_manifests_are_what_their_values_make(name):
    values = read_values(ROOT / f"inventories/k8s/{name}.yml")
    assert render(values) == (ROOT / f"k8s/{name}.yaml").read_text(encoding="utf-8"), "run `make manifests`"
    assert values == ServerValues(name=values.name, image=values.image, controller=values.controller)


@pytest.mark.parametrize("controller", ["StatefulSet", "LeaderWorkerSet"])
def test_a_server_passes_every_check(controller):
    validator = make_validator(None)
    assert validator.findings(documents(replace(VALUES, controller=controller))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("size: 2", "size: two"), "spec.leaderWorkerTemplate.size"),
        (("restartPolicy: Recreate", "restartPolicy: Restart"), "spec.leaderWorkerTemplate.restartPolicy"),
        (("startupPolicy", "startPolicy"), "spec.startPolicy"),
        (("terminationGracePeriodSeconds", "terminationGraceSeconds"), "spec.leaderWorkerTemplate.workerTemplate.spec"),
    ],
)
def test_a_leader_worker_set_is_checked_by_its_schema(change, said):
    text = render(replace(VALUES, controller="LeaderWorkerSet"))
    assert change[0] in text
    found = make_validator(None).findings(parse_documents(text.replace(*change), "text"))
    assert has_errors(found)
    assert any(finding.path.startswith(said) for finding in found), found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: servers\nname: a\nimage: b:1\n", "unknown kind"),
        ("kind: server\nname: a\nimage: b:1\nworkers: {}\n", "unknown key in {path}: 'workers'"),
        ("kind: server\nname: a\nimage: b:1\nport: 80\n", "{path}: port: expected 1024 to 65535, found 80"),
        ("kind: server\nname: a\nimage: b:1\ndrain_s: 0\n", "{path}: drain_s: expected 1 or more"),
        ("kind: server\nname: a\nimage: b:1\ncontroller: Deployment\n", "unknown controller in {path}"),
        ("kind: server\nname: a\nimage: b:1\npods: {ranks: 2}\n", "{path}: pods.ranks: 2 ranks need a CPU each"),
        ("kind: server\nname: a\nimage: b:1\npods: {memory: 200Mi}\n", "{path}: pods.memory: 200Mi does not even hold"),
        (f"kind: server\nname: {'a' * 60}\nimage: b:1\n", "{path}: name: expected at most 52"),
    ],
)
def test_values_that_no_cluster_could_use_are_refused_with_their_field(tmp_path, text, said):
    path = tmp_path / "values.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_values(path)
    assert said.format(path=path) in caught.value.render()


def test_the_headless_service_names_the_pods_as_the_script_does():
    found = documents(replace(VALUES, pods=Workers(replicas=3)))
    stateful_set = next(document.data for document in found if document.kind == "StatefulSet")
    words = stateful_set["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[:4] == ["corebound-server", "3", "1", stateful_set["spec"]["serviceName"]]


def run_script(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Returns what the script does, with programs in its path that only say how they were called."""
    for name in ("corebound-launcher", "corebound-worker"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/bash\necho "{name} $*"\n[[ ! -e /tmp/corebound/hostfile ]] || cat /tmp/corebound/hostfile\n'
        )
        program.chmod(0o755)
    text = SCRIPT.read_text(encoding="utf-8").replace("/tmp/corebound", str(tmp_path / "corebound"))
    script = tmp_path / "corebound-server"
    script.write_text(text, encoding="utf-8")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        ["bash", script, *words], env=environ, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_first_pod_launches_over_all_and_the_others_wait(tmp_path):
    first = run_script(tmp_path, "3", "2", "c-pods", "--model=demo", HOSTNAME="c-0")
    assert (
        first.stdout.splitlines()[0]
        == f"corebound-launcher serve --hostfile={tmp_path}/corebound/hostfile --model=demo"
    )
    hostfile = (tmp_path / "corebound/hostfile").read_text(encoding="utf-8")
    assert hostfile == "c-0 slots=2\nc-1.c-pods slots=2\nc-2.c-pods slots=2\n"
    assert run_script(tmp_path, "3", "2", "c-pods", "--model=demo", HOSTNAME="c-2").stdout.startswith(
        "corebound-worker \n"
    )


def test_pods_of_a_leader_worker_set_know_their_place_by_its_variables(tmp_path):
    names = {"LWS_LEADER_ADDRESS": "c-0.c.default", "HOSTNAME": "c-0"}
    run_script(tmp_path, "3", "1", "c-pods", **names, LWS_WORKER_INDEX="0")
    hostfile = (tmp_path / "corebound/hostfile").read_text(encoding="utf-8")
    assert hostfile == "c-0 slots=1\nc-0-1.c.default slots=1\nc-0-2.c.default slots=1\n"
    names["HOSTNAME"] = "c-0-0"
    other = run_script(tmp_path, "3", "1", "c-pods", **names, LWS_WORKER_INDEX="2")
    assert other.stdout.startswith("corebound-worker \n")


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_a_probe_of_the_first_pod_asks_its_http_server(tmp_path, status, code):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = run_script(tmp_path, "--check", "/ready", str(server.server_address[1]), HOSTNAME="c-0")
        server.shutdown()
    assert done.returncode == code
    assert run_script(tmp_path, "--check", "/ready", "1", HOSTNAME="c-0").returncode != 0
    assert run_script(tmp_path, "--check", "/ready", "1", HOSTNAME="c-1").stdout == "corebound-worker --check\n"


def test_a_pod_without_a_launch_leaves_at_once(tmp_path):
    assert run_script(tmp_path, "--leave", "30", HOSTNAME="c-0").returncode == 0
