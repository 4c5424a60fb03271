"""The entry of the command: what it prints for mistakes, and with which exit code."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from corebound.cli.main import VERBS, main
from corebound.errors import EXIT_CONFIG, EXIT_HOST


def test_a_mistyped_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genrate"]) == EXIT_CONFIG
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Did you mean `generate`?" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("verb", ["plan", "run", "generate"])
def test_a_mistyped_flag_names_the_nearest_and_where_help_is(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--hostfil", "x"]) == EXIT_CONFIG
    error = capsys.readouterr().err
    assert "--hostfile" in error
    assert f"hint: `corebound {verb} --help`" in error


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_help_of_every_verb_keeps_its_examples_on_lines_of_their_own(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert "\\b" not in help_text
    assert any(line.strip().startswith(f"corebound {verb}") for line in help_text.splitlines()[2:])


def test_a_path_that_may_not_be_looked_at_is_an_error_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    # Root, as whom tests may run, is never refused.
    monkeypatch.setattr(Path, "is_dir", refuse)
    assert main(["run", "--num_accelerators", "1", "/closed/script.py"]) == EXIT_HOST
    said = capsys.readouterr().err
    assert said.startswith("error: /closed/script.py: permission denied") and "hint: " in said
    assert "Traceback" not in said


def test_an_environment_variable_that_nothing_reads_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREBOUND_FASTER_PLEASE", "1")
    for name in ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR"):
        monkeypatch.setenv(f"COREBOUND_API_{name}", "10.0.0.1")
    monkeypatch.setenv("COREBOUND_LAB_NUMBER", "1")
    assert main(["topology", "--process"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("COREBOUND_") == 1
    assert "environment variable COREBOUND_FASTER_PLEASE has no effect" in captured.err
    assert "COREBOUND_" not in captured.out


def test_a_wrong_environment_value_is_an_error_with_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREBOUND_COMM", "shmm")
    assert main(["doctor"]) == EXIT_CONFIG
    error = capsys.readouterr().err
    assert "COREBOUND_COMM" in error
    assert "shm" in error
