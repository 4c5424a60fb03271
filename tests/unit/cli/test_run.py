from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from corebound.cli.launch_options import OPTION_NAMES, launch_options, spec_from_options
from corebound.cli.main import main
from corebound.errors import ConfigError
from corebound.launcher.spec import LaunchSpec

# By name, because the package's attribute may be the command of the same name.
run_module = importlib.import_module("corebound.cli.run")
Parse = Callable[..., LaunchSpec]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Parse:
    """Returns the spec that `corebound run` makes of arguments, in a directory with s.py; nothing is launched."""
    (tmp_path / "s.py").touch()
    monkeypatch.chdir(tmp_path)
    seen: list[LaunchSpec] = []

    def launch(spec: LaunchSpec) -> int:
        seen.append(spec)
        return 0

    monkeypatch.setattr(run_module, "launch", launch)

    def parsed(*args: str) -> LaunchSpec:
        assert main(["run", *args]) == 0
        return seen[-1]

    return parsed


@pytest.mark.parametrize("flag", ["num_accelerators", "num-accelerators", "num_gpus", "num-gpus"])
def test_flags_are_accepted_with_either_spelling(parse: Parse, flag: str) -> None:
    assert parse(f"--{flag}", "3", "s.py").num_accelerators == 3


def test_every_flag_of_the_design_reaches_the_spec(parse: Parse) -> None:
    spec = parse(
        *("-H", "hosts", "-i", "a:0", "--bind-cores-to-rank", "--bind_core_list", "0-1", "--launcher", "openmpi"),
        *("--launcher-args", "-x A", "--master-addr", "m", "--master_port", "1234", "--ssh-port", "2222"),
        *("--node-rank", "1", "--no-ssh", "--enable-each-rank-log", "logs", "--force-multi", "--save-pid"),
        *("--no-local-rank", "s.py"),
    )
    assert spec == LaunchSpec(
        command=(sys.executable, "-u", "s.py"),
        hostfile=Path("hosts"),
        include="a:0",
        bind_cores_to_rank=True,
        bind_core_list="0-1",
        launcher="openmpi",
        launcher_args="-x A",
        master_addr="m",
        master_port=1234,
        ssh_port=2222,
        node_rank=1,
        no_ssh=True,
        log_dir=Path("logs"),
        force_multi=True,
        save_pid=True,
    )
    assert parse("-e", "b", "-H", "hosts", "s.py").exclude == "b"
    assert parse("--num-nodes", "2", "-H", "hosts", "s.py").num_nodes == 2


def test_what_follows_the_script_belongs_to_the_script(parse: Parse) -> None:
    spec = parse("--num_gpus", "2", "s.py", "--num_gpus", "9", "--help", "-x", "a b", "--")
    assert spec.num_accelerators == 2
    assert spec.arguments == ("--num_gpus", "9", "--help", "-x", "a b", "--")


def test_a_script_is_passed_local_rank_by_default_and_a_program_never(parse: Parse) -> None:
    assert parse("s.py").pass_local_rank
    assert parse("--module", "s").pass_local_rank
    assert not parse("--no_local_rank", "s.py").pass_local_rank
    assert not parse("--no_python", "true").pass_local_rank


def test_modules_and_programs_make_their_own_commands(parse: Parse) -> None:
    assert parse("--module", "a.b", "x").command == (sys.executable, "-u", "-m", "a.b")
    assert parse("--no-python", "true", "x").command == ("true",)


def test_a_plain_run_binds_nothing_and_a_core_list_binds(parse: Parse) -> None:
    assert parse("s.py").binds is False
    assert parse("--bind_core_list", "0", "s.py").binds is True
    assert parse("--no-bind-cores-to-rank", "s.py").binds is False


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--bind_core_to_rank", "s.py"], "'--bind_cores_to_rank'"),
        (["--hostfiel", "x", "s.py"], "'--hostfile'"),
        (["--num_acelerators=2", "s.py"], "'--num_accelerators'"),
        (["--launcher", "slurn", "s.py"], "did you mean `slurm`?"),
        (["nowhere.py"], "script nowhere.py: no such file"),
        (["."], "script .: expected a file, found a directory"),
        (["--no_python", "no-such-program"], "program no-such-program: not found"),
        (["--module", "--no_python", "x"], "--module and --no_python cannot be used together"),
        (["--master_port", "x", "s.py"], "'x' is not a valid integer"),
        (["-i", "a", "-e", "b", "s.py"], "--include and --exclude cannot be used together"),
        ([], "no script given"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_the_way_out(
    parse: Parse, capsys: pytest.CaptureFixture[str], args: list[str], problem: str
) -> None:
    assert main(["run", *args]) == 2
    captured = capsys.readouterr()
    assert problem in captured.err
    assert captured.out == ""


def test_the_exit_code_of_the_launch_is_that_of_the_command(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "launch", lambda spec: 137)
    assert main(["run", "s.py"]) == 137


def test_the_option_names_are_those_that_the_decorator_adds() -> None:
    @click.command()
    @launch_options
    def command(**options: Any) -> None:
        """Hold the options."""

    assert {option.name for option in command.params if option.expose_value} == OPTION_NAMES


def test_a_command_of_ours_binds_by_default_where_it_can() -> None:
    assert spec_from_options(("x",), bind_by_default=True).binds is None
    assert spec_from_options(("x",), bind_by_default=True, bind_cores_to_rank=True).binds is True
    assert spec_from_options(("x",), bind_by_default=True, bind_cores_to_rank=False).binds is False


def test_script_flags_on_a_command_without_a_script_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    options_module = importlib.import_module("corebound.cli.launch_options")
    monkeypatch.setattr(options_module._log, "warning", lambda text, *values: told.append(text % values))
    spec_from_options(("x",), module=True, no_python=False)
    assert told == ["--module has no effect here: this command runs no script"]


def test_options_that_are_not_launch_options_are_refused() -> None:
    with pytest.raises(TypeError, match="not launch options: colour"):
        spec_from_options(("x",), colour="red")
    with pytest.raises(ConfigError, match="--num_nodes 3 needs --hostfile"):
        spec_from_options(("x",), num_nodes=3)
