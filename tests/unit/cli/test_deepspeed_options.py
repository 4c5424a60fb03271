"""Flags of DeepSpeed's launcher: accepted where they mean something on CPUs, an error or a warning where not."""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from corebound import logs
from corebound.cli import launch_options
from corebound.cli.main import main
from corebound.launcher.spec import LaunchSpec

run_module = importlib.import_module("corebound.cli.run")


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[LaunchSpec]]:
    """The specs that `corebound run` would launch, in a directory with s.py; nothing is launched."""
    (tmp_path / "s.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COREBOUND_LOG_LEVEL", "info")
    seen: list[LaunchSpec] = []
    monkeypatch.setattr(run_module, "launch", lambda spec: seen.append(spec) or 0)
    yield seen
    logs.setup()


def test_minus_one_means_not_given(specs: list[LaunchSpec]) -> None:
    assert main(["run", "--num_nodes", "-1", "--num_gpus=-1", "--node_rank", "-1", "s.py"]) == 0
    assert (specs[0].num_nodes, specs[0].num_accelerators, specs[0].node_rank) == (None, None, None)


@pytest.mark.parametrize(
    ("args", "level"),
    [
        (["-q"], "error"),
        (["--quiet"], "error"),
        (["--log-level", "debug"], "debug"),
        (["--log_level=critical"], "error"),
    ],
)
def test_the_level_of_messages_is_that_of_launcher_agents_and_ranks(
    specs: list[LaunchSpec], args: list[str], level: str
) -> None:
    """DeepSpeed's pdsh runner: "quiet, log level not forwarded"."""
    assert main(["run", *args, "s.py"]) == 0
    assert logging.getLogger("corebound").level == getattr(logging, level.upper())
    assert os.environ["COREBOUND_LOG_LEVEL"] == level


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--elastic_training"], "--elastic_training: Corebound has no such thing"),
        (["--min_elastic_nodes", "1"], "--min_elastic_nodes: Corebound has no such thing"),
        (["--max-elastic-nodes", "2"], "--max_elastic_nodes: Corebound has no such thing"),
        (["--autotuning", "tune"], "corebound plan --model M"),
        (["--launcher", "pdsh"], "hint: --launcher ssh does the same"),
        (["--launcher", "mvapich"], "hint: --launcher mpich does the same"),
        (["--log_level", "waring"], "did you mean `warning`?"),
    ],
)
def test_what_there_is_not_is_an_error_with_the_way_out(
    specs: list[LaunchSpec], capsys: pytest.CaptureFixture[str], args: list[str], problem: str
) -> None:
    assert main(["run", *args, "s.py"]) == 2
    assert problem in capsys.readouterr().err
    assert specs == []


def test_deepspeeds_defaults_of_such_flags_are_no_error(specs: list[LaunchSpec]) -> None:
    assert main(["run", "--min_elastic_nodes=-1", "--max_elastic_nodes=-1", "--autotuning", "", "s.py"]) == 0


def test_flags_without_effect_say_so(specs: list[LaunchSpec], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--no_ssh_check", "s.py"]) == 0
    assert "--no_ssh_check has no effect" in capsys.readouterr().err


def test_variables_of_files_reach_the_ranks_and_their_names_the_log(
    specs: list[LaunchSpec], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    Path(".deepspeed_env").write_text("# ours\n\nNCCL_DEBUG=x=y\nHF_TOKEN=hf_value\nOMP_NUM_THREADS=2\n")
    assert main(["run", "s.py"]) == 0
    assert specs[0].file_environ == {"NCCL_DEBUG": "x=y", "HF_TOKEN": "hf_value", "OMP_NUM_THREADS": "2"}
    said = capsys.readouterr().err
    assert "for all ranks, from" in said and "HF_TOKEN, NCCL_DEBUG, OMP_NUM_THREADS" in said
    assert "OMP_NUM_THREADS: the files' values take the place of those in the environment" in said
    assert "hf_value" not in said


def test_a_hostfile_that_deepspeed_would_read_unasked_is_named(
    specs: list[LaunchSpec], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DSE #575: a hostfile that was not found "silently ran on one node"."""
    monkeypatch.setattr(launch_options, "DEEPSPEED_HOSTFILE", tmp_path / "hostfile")
    assert main(["run", "s.py"]) == 0
    assert "is not read" not in capsys.readouterr().err
    (tmp_path / "hostfile").write_text("a slots=1\n")
    assert main(["run", "s.py"]) == 0
    assert "hostfile is not read: Corebound has no default hostfile, name it with --hostfile" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "NoDevFiles", "0,1", "-1"])
def test_visible_devices_of_gpus_choose_no_cpus(
    specs: list[LaunchSpec], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """#2601: `CUDA_VISIBLE_DEVICES=` crashed with "invalid literal for int() with base 10: ''"."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert main(["run", "--num_gpus", "2", "s.py"]) == 0
    assert (specs[0].include, specs[0].num_accelerators) == (None, 2)


# Every flag of DeepSpeed's launcher (0.19), as its --help has them.
DEEPSPEED_FLAGS = {
    "--hostfile", "-H", "--include", "-i", "--exclude", "-e", "--num_nodes", "--min_elastic_nodes",
    "--max_elastic_nodes", "--num_gpus", "--num_accelerators", "--master_port", "--master_addr", "--node_rank",
    "--launcher", "--launcher_args", "--module", "--no_python", "--no_local_rank", "--no_ssh", "--no_ssh_check",
    "--force_multi", "--save_pid", "--enable_each_rank_log", "--autotuning", "--elastic_training",
    "--bind_cores_to_rank", "--bind_core_list", "--ssh_port", "--venv_script", "--log_level", "-q", "--quiet",
}  # fmt: skip


def test_every_flag_of_deepspeed_is_known_and_has_its_line_in_the_docs() -> None:
    known = {name for option in run_module.run.params for name in getattr(option, "opts", ())}
    assert known >= DEEPSPEED_FLAGS
    text = (Path(__file__).parents[3] / "docs/launching.md").read_text(encoding="utf-8")
    table = text.partition("## From deepspeed's launcher")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    told = {word for cell in first_cells for word in re.findall(r"`(-[^` ]+)", cell)}
    assert told == DEEPSPEED_FLAGS
