from __future__ import annotations

from pathlib import Path

import pytest

from corebound.errors import ConfigError
from corebound.k8s.documents import parse_documents
from corebound.k8s.render import render
from corebound.k8s.values import Values, read_values

ROOT = Path(__file__).resolve().parents[3]
VALUES = ROOT / "inventories/k8s/mpijob-bloom.yml"


def written(folder: Path, text: str) -> Path:
    path = folder / "values.yml"
    path.write_text(text, encoding="utf-8")
    return path


def pod(text: str, role: str) -> dict:
    job = next(document for document in parse_documents(text, "text") if document.kind == "MPIJob")
    return job.data["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]


def test_the_committed_manifest_is_what_its_values_make():
    committed = (ROOT / "k8s/mpijob-bloom.yaml").read_text(encoding="utf-8")
    assert render(read_values(VALUES)) == committed, "run `make manifests`"


def test_the_committed_values_are_the_defaults_written_out():
    values = read_values(VALUES)
    assert values == Values(name=values.name, image=values.image)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("name: a\nimage: b:1\nworker: {}\n", "unknown key in {path}: 'worker'", "did you mean `workers`?"),
        (
            "name: a\nimage: b:1\nworkers: {cpu: 1}\n",
            "unknown key in {path}: workers: 'cpu'",
            "did you mean `cpus`?",
        ),
        ("name: a\n", "{path}: image is missing", None),
        ("name: A\nimage: b:1\n", "{path}: name: expected at most 54 of a-z, 0-9 and -", None),
        (f"name: {'a' * 55}\nimage: b:1\n", "{path}: name: expected at most 54", None),
        ("name: a\nimage: b:1@sha256:12\n", "{path}: image: expected NAME:TAG or NAME@sha256", None),
        ("name: a\nimage: b:1\nworkers: {cpus: '1'}\n", "{path}: workers: cpus: expected a whole number", None),
        ("name: a\nimage: b:1\nworkers: {cpus: true}\n", "{path}: workers: cpus: expected a whole number", None),
        ("name: a\nimage: b:1\nworkers: {ranks: 2}\n", "{path}: workers.ranks: 2 ranks need a CPU each", None),
        ("name: a\nimage: b:1\nworkers: {memory: 272Mi}\n", "{path}: workers.memory: 272Mi does not even hold", None),
        ("name: a\nimage: b:1\nmodel: {source: claim}\n", "{path}: model.claim: expected, because", None),
        ("name: a\nimage: b:1\nmodel: {claim: c}\n", "{path}: model.claim: has no effect while", None),
        ("name: a\nimage: b:1\njob: {clean_pods: running}\n", "unknown policy in {path}: job.clean_pods", "`Running`"),
    ],
)
def test_values_that_no_cluster_could_use_are_refused_with_their_field(tmp_path, text, message, hint):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_values(path)
    assert message.format(path=path) in caught.value.message
    assert (hint or "") in (caught.value.hint or "")


def test_shared_memory_grows_with_the_ranks_of_a_pod_and_yields_to_a_size_that_is_given(tmp_path):
    text = "name: a\nimage: b:1\nworkers: {cpus: 16, ranks: 4"
    volumes = pod(render(read_values(written(tmp_path, text + "}\n"))), "Worker")["volumes"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "320Mi"}} in volumes
    volumes = pod(render(read_values(written(tmp_path, text + ", shm: 1Gi}\n"))), "Worker")["volumes"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}} in volumes


@pytest.mark.parametrize(
    ("model", "volume"),
    [
        ("{source: claim, claim: big}", {"persistentVolumeClaim": {"claimName": "big", "readOnly": True}}),
        ("{source: host_path, host_path: /srv/m}", {"hostPath": {"path": "/srv/m", "type": "Directory"}}),
        (
            "{source: archive, url: 'https://m.example/b.tar', sha256: '" + "0" * 64 + "'}",
            {"emptyDir": {"sizeLimit": "8Gi"}},
        ),
    ],
)
@pytest.mark.parametrize("role", ["Launcher", "Worker"])
def test_launcher_and_workers_mount_the_model_from_its_source(tmp_path, model, volume, role):
    text = render(read_values(written(tmp_path, f"name: a\nimage: b:1\nmodel: {model}\n")))
    spec = pod(text, role)
    assert {"name": "model", **volume} in spec["volumes"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    assert ("initContainers" in spec) == ("archive" in model)


def test_an_init_container_may_reach_the_server_of_the_archive_and_has_the_worker_s_own_resources(tmp_path):
    model = f"model: {{source: archive, url: 'https://m.example/b.tar', sha256: '{'0' * 64}'}}"
    text = render(read_values(written(tmp_path, f"name: a\nimage: b:1\n{model}\n")))
    policy = parse_documents(text, "text")[0].data
    assert {"ports": [{"port": 443, "protocol": "TCP"}]} in policy["spec"]["egress"]
    spec = pod(text, "Worker")
    assert spec["initContainers"][0]["resources"] == spec["containers"][0]["resources"]


def test_no_value_can_leave_its_place_in_the_manifest(tmp_path):
    prompt = 'a"\n  b: {{ 1 }} # ü \\'
    values = Values(name="a", image="b:1", prompts=(prompt,))
    assert pod(render(values), "Launcher")["containers"][0]["args"][-1] == f"--prompt={prompt}"


def test_a_key_that_is_there_twice_is_found_with_its_line():
    (document,) = parse_documents("a: 1\nb:\n  - c: 1\n    c: 2\n", "text")
    assert document.duplicates == (("b[0].c", 4),)
