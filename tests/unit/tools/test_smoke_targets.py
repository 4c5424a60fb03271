"""How the smoke run reaches a node: locally for real, and ssh with fabric's words."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from smoke.node import Node, connect
from smoke.run import smoke
from smoke.table import row
from smoke.targets import read_targets
from smoke.visit import generate_words
from unit.tools.smoke_nodes import ENTRY, target


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Returns a port that accepts connections and never says a word, as a host does whose processes are frozen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_targets_are_read_as_the_role_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    path.write_text(json.dumps([ENTRY, {**ENTRY, "host": "there", "connection": "ssh"}]), encoding="utf-8")
    assert [target.host for target in read_targets(path)] == ["here", "there"]


def test_a_local_command_gets_its_words_unharmed() -> None:
    words = generate_words(target(), "float32", target().prompts, "--num_accelerators", "2")
    answer = Node(target()).run(["printf", "%s|", *words])
    assert answer.exit_code == 0
    assert answer.stdout.split("|")[:-1] == words
    assert ENTRY["prompts"][0] in answer.stdout


@pytest.mark.parametrize("command", [["sleep", "30"], ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]])
def test_a_command_that_does_not_end_is_given_up_and_nothing_more_is_tried(command: list[str]) -> None:
    node = Node(target(timeout_s=1))
    answer = node.run(command)
    assert answer.exit_code != 0
    assert "no answer within 1 s" in answer.stderr
    started = time.monotonic()
    assert "no answer within 1 s" in node.run(["true"]).stderr
    assert time.monotonic() - started < 1


def test_a_killed_command_within_its_time_is_an_answer() -> None:
    node = Node(target())
    answer = node.run(["sh", "-c", "exit 137"])
    assert (answer.exit_code, node.lost) == (137, "")


def test_a_node_that_refuses_ssh_is_a_failed_check_not_a_crash(tmp_path: Path) -> None:
    report = smoke([target(connection="ssh", address="127.0.0.1", port=1)], [], tmp_path)
    assert report["verdict"] == "fail"
    (check,) = report["checks"]
    assert "cannot reach 127.0.0.1 port 1" in check["detail"]
    assert "cannot reach" in (tmp_path / check["evidence"][0]).read_text(encoding="utf-8")
    assert check["evidence"] == ["evidence/here/node-answers.txt"]


def test_nodes_that_refuse_and_that_hang_are_both_reported_within_a_bounded_time(
    tmp_path: Path, silent_port: int
) -> None:
    hangs = target(host="hangs", connection="ssh", address="127.0.0.1", port=silent_port)
    refuses = target(host="refuses", connection="ssh", address="127.0.0.1", port=1)
    started = time.monotonic()
    report = smoke([hangs, refuses, target(host="here")], ["dead"], tmp_path)
    assert time.monotonic() - started < 90
    assert [(row["host"], row["verdict"]) for row in report["hosts"]] == [
        ("hangs", "fail"),
        ("refuses", "fail"),
        ("here", "fail"),
        ("dead", "fail"),
    ]
    names = {(check["host"], check["name"]) for check in report["checks"]}
    assert {("hangs", "node answers"), ("refuses", "node answers"), ("here", "doctor answers")} <= names
    assert ("dead", "node can be visited") in names
    assert threading.active_count() < 20


def test_a_host_key_counts_only_when_the_ssh_configuration_knows_it(tmp_path: Path) -> None:
    known_hosts, configuration = tmp_path / "known", tmp_path / "ssh_config"
    key = paramiko.RSAKey.generate(2048)
    known_hosts.write_text(f"localhost ssh-rsa {key.get_base64()}\n", encoding="utf-8")
    configuration.write_text(f"Host localhost\n    UserKnownHostsFile {known_hosts}\n", encoding="utf-8")
    client = connect(target(ssh_config=str(configuration))).client
    assert client._system_host_keys.check("localhost", key)
    assert isinstance(client._policy, paramiko.RejectPolicy)


def test_a_node_that_was_lost_before_the_visit_is_a_row_that_failed(tmp_path: Path) -> None:
    report = smoke([], ["node2"], tmp_path)
    assert report["verdict"] == "fail"
    assert [(host["host"], host["verdict"]) for host in report["hosts"]] == [("node2", "fail")]
    assert row(report["hosts"][0])[1:8] == ["-"] * 7


def test_root_and_the_user_of_jobs_are_reached_as_the_inventory_grants() -> None:
    node: Any = Node(target(become=True, job_user="worker", user="admin"))
    asked: list[list[str]] = []
    node.run = lambda words, timeout_s=None: asked.append(list(words))
    node.run_as_root(["id"])
    assert asked == [["sudo", "--non-interactive", "id"]]
    with pytest.raises(AttributeError):
        node.run_as_job_user(["touch", "a b"])
    assert asked[1][:6] == ["sudo", "--non-interactive", "runuser", "--login", "worker", "--command"]
    assert "touch 'a b'" in asked[1][6]
