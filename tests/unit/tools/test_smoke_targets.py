"""How the smoke run reaches a node: locally for real, and ssh with fabric's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import paramiko

from smoke.__main__ import generate_words, smoke
from smoke.table import row
from smoke.targets import Target, connect, read_targets, run_on

ENTRY: dict[str, Any] = {
    "host": "here",
    "connection": "local",
    "address": "localhost",
    "user": "",
    "port": 22,
    "key_file": "",
    "ssh_config": "",
    "command": "/bin/false",
    "model": "/models/demo",
    "hostfile": "/etc/hostfile",
    "num_ranks": 2,
    "prompts": ['It\'s a "quoted" $prompt'],
    "max_new_tokens": 4,
    "dtype": "float32",
    "timeout_s": 5,
}


def test_targets_are_read_as_the_role_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    path.write_text(json.dumps([ENTRY, {**ENTRY, "host": "there", "connection": "ssh"}]), encoding="utf-8")
    assert [target.host for target in read_targets(path)] == ["here", "there"]


def test_a_local_command_gets_its_words_unharmed() -> None:
    answer = run_on(Target(**ENTRY), ["printf", "%s|", *generate_words(Target(**ENTRY), 2)])
    assert answer.exit_code == 0
    assert answer.stdout.split("|")[:-1] == generate_words(Target(**ENTRY), 2)
    assert ENTRY["prompts"][0] in answer.stdout


def test_a_command_that_does_not_end_is_given_up() -> None:
    answer = run_on(Target(**{**ENTRY, "timeout_s": 1}), ["sleep", "30"])
    assert answer.exit_code != 0
    assert "no answer within 1 s" in answer.stderr


def test_a_node_that_refuses_ssh_is_a_failed_check_not_a_crash() -> None:
    there = Target(**{**ENTRY, "connection": "ssh", "address": "127.0.0.1", "port": 1})
    report = smoke([there])
    assert report["verdict"] == "fail"
    assert all("cannot reach 127.0.0.1 port 1" in check["detail"] for check in report["checks"])


def test_a_host_key_counts_only_when_the_ssh_configuration_knows_it(tmp_path: Path) -> None:
    known_hosts, configuration = tmp_path / "known", tmp_path / "ssh_config"
    key = paramiko.RSAKey.generate(2048)
    known_hosts.write_text(f"localhost ssh-rsa {key.get_base64()}\n", encoding="utf-8")
    configuration.write_text(f"Host localhost\n    UserKnownHostsFile {known_hosts}\n", encoding="utf-8")
    client = connect(Target(**{**ENTRY, "ssh_config": str(configuration)})).client
    assert client._system_host_keys.check("localhost", key)
    assert isinstance(client._policy, paramiko.RejectPolicy)


def test_a_node_that_was_lost_before_the_visit_is_a_row_that_failed(tmp_path: Path) -> None:
    report = smoke([], ["node2"])
    assert report["verdict"] == "fail"
    assert [(host["host"], host["verdict"]) for host in report["hosts"]] == [("node2", "fail")]
    assert row(report["hosts"][0])[1:8] == ["-"] * 7
