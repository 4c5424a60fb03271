"""The whole command of each transport, word by word, and the hostfile in each dialect."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from corebound.errors import ConfigError
from corebound.launcher.hostfile import Dialect, Host, parse_hostfile, render_machinefile
from corebound.launcher.spec import LaunchSpec
from corebound.launcher.transports.mpi import DIALECTS, Start
from corebound.launcher.transports.ssh import hint_for, ssh_command

TEMPLATE = Path(__file__).parents[3] / "playbooks/roles/hostfile/templates/hostfile.j2"
PYTHON = "/opt/corebound/venv/bin/python"
AGENT = [PYTHON, "-P", "-m", "corebound.launcher.agent", "--link"]
SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=2 -o ServerAliveCountMax=4"


def spec(**fields: Any) -> LaunchSpec:
    return LaunchSpec(command=(sys.executable, "s.py"), hostfile=Path("hosts"), remote_python=PYTHON, **fields)


def command(launcher: str, interface: str | None = "eth1", **fields: Any) -> list[str]:
    start = Start(spec(launcher=launcher, **fields), ["a", "b"], "/tmp/hosts", "10.0.0.9:4242", interface)
    return list(DIALECTS[launcher].command(start, "/bin/starter", {}))


def test_ssh() -> None:
    whole = ssh_command(spec(ssh_port=2222, launcher_args="-F 'my config'"), "a", {"PYTHONPATH": "/src/it's"})
    assert list(whole) == [
        "ssh", "-T", "-a", "-x", "-F", "my config", "-p", "2222", *SSH_OPTIONS.split(), "--", "a",
        "exec env 'PYTHONPATH=/src/it'\"'\"'s' " + " ".join(AGENT) + " stdio",
    ]  # fmt: skip


@pytest.mark.parametrize("launcher", ["ssh", "impi", "mpich", "openmpi", "slurm"])
def test_a_script_is_read_before_every_agent_and_its_words_are_not_the_agents(launcher: str) -> None:
    """DeepSpeed's --venv_script: "pdsh only"; the other launchers ignored it."""
    asked = spec(launcher=launcher, venv_script=Path("/opt/it's/activate"))
    bash = ["bash", "-c", '. "$0" >&2 && exec "$@"', "/opt/it's/activate", *AGENT]
    if launcher == "ssh":
        assert shlex.split(ssh_command(asked, "a", {})[-1]) == ["exec", *bash, "stdio"]
    else:
        start = Start(asked, ["a", "b"], "/tmp/hosts", "10.0.0.9:4242", None)
        assert list(DIALECTS[launcher].command(start, "/bin/starter", {}))[-len(bash) - 2 : -2] == bash


def test_intel_mpi() -> None:
    """#4531: Intel MPI's own pinning clashed with the cores that ranks were given."""
    assert command("impi", launcher_args="-v") == [
        "/bin/starter", "-f", "/tmp/hosts", "-ppn", "1", "-iface", "eth1", "-bootstrap", "ssh",
        "-genvlist", "COREBOUND_AGENT_SECRET,I_MPI_PIN", "-n", "2", "-v", *AGENT, "10.0.0.9:4242", "PMI_RANK",
    ]  # fmt: skip


def test_mpich() -> None:
    assert command("mpich", interface=None) == [
        "/bin/starter", "-f", "/tmp/hosts", "-ppn", "1", "-launcher", "ssh", "-bind-to", "none",
        "-genvlist", "COREBOUND_AGENT_SECRET", "-n", "2", *AGENT, "10.0.0.9:4242", "PMI_RANK",
    ]  # fmt: skip


def test_open_mpi() -> None:
    """DeepSpeed: "btl_tcp_if_include eth0 unless launcher_args overrides it"."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    assert command("openmpi", launcher_args="--mca btl_tcp_if_include eth1") == [
        "/bin/starter", "--hostfile", "/tmp/hosts", "-n", "2", "--map-by", "ppr:1:node", "--bind-to", "none", *root,
        "--mca", "oob_tcp_if_include", "eth1", "-x", "COREBOUND_AGENT_SECRET", "--mca", "btl_tcp_if_include", "eth1",
        *AGENT, "10.0.0.9:4242", "OMPI_COMM_WORLD_RANK",
    ]  # fmt: skip


def test_slurm() -> None:
    """DeepSpeed's slurm runner: "--include is not an srun option; ignores module/no_python/bind"."""
    assert command("slurm", launcher_args="--partition cpu") == [
        "/bin/starter", "--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1", "--nodelist", "a,b",
        "--cpu-bind=none", "--mem-bind=none", "--kill-on-bad-exit=0", "--overlap",
        "--export=COREBOUND_AGENT_SECRET,PATH,HOME,USER,LANG", "--partition", "cpu",
        *AGENT, "10.0.0.9:4242", "SLURMD_NODENAME",
    ]  # fmt: skip


def test_a_plan_shows_the_variables_and_never_the_secret() -> None:
    start = Start(spec(launcher="impi"), ["a"], "HOSTFILE", "LAUNCHER:PORT", None)
    shown = DIALECTS["impi"].shown(start, "mpiexec.hydra", {"I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS": "-F x"})
    assert list(shown[:4]) == [
        "env", "COREBOUND_AGENT_SECRET=SECRET", "I_MPI_PIN=off",
        f"I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS=-F x {SSH_OPTIONS}",
    ]  # fmt: skip


def test_an_unclosed_quote_in_the_launchers_arguments_is_refused() -> None:
    """#2802: --launcher_args and its quotes."""
    with pytest.raises(ConfigError, match="--launcher_args"):
        spec(launcher_args="-o 'x")


def test_one_hostfile_in_both_dialects() -> None:
    hosts = parse_hostfile("a slots=2\n10.0.0.2 slots=1  # small\n")
    assert render_machinefile(hosts, "slots") == "a slots=2\n10.0.0.2 slots=1\n"
    assert render_machinefile(hosts, "colon") == "a:2\n10.0.0.2:1\n"
    assert parse_hostfile(render_machinefile(hosts, "slots")) == hosts


def test_an_address_that_a_dialect_cannot_hold_is_refused() -> None:
    hosts = [Host("fe80::1", 1)]
    assert render_machinefile(hosts, "slots") == "fe80::1 slots=1\n"
    with pytest.raises(ConfigError, match="host fe80::1: Intel MPI and MPICH cannot read"):
        render_machinefile(hosts, "colon")


@pytest.mark.parametrize(("item", "dialect"), [("deepspeed", "slots"), ("impi", "colon"), ("mpich", "colon")])
def test_the_hostfile_role_renders_what_the_launcher_reads_and_writes(item: str, dialect: Dialect) -> None:
    hosts = {"node1": ("n1.example", 2), "node2": ("10.0.0.2", 1)}
    template = Environment(trim_blocks=True, autoescape=False).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        item=item,
        groups={"nodes": list(hosts)},
        hostfile_slots_per="numa_node",
        hostvars={
            name: {"hostfile_name": address, "hostfile_num_slots": slots} for name, (address, slots) in hosts.items()
        },
    )
    known = tuple(Host(address, slots) for address, slots in hosts.values())
    assert text.partition("\n")[2] == render_machinefile(known, dialect)
    if dialect == "slots":
        assert parse_hostfile(text) == known


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("root@h: Permission denied (publickey).", "authorized_keys"),
        ("ssh: connect to host h port 22: Connection refused", "--ssh_port"),
        ("/opt/python: No module named corebound", "install Corebound"),
        ("env: '/opt/python': No such file or directory", "--remote_python"),
        ("Timeout, server h not responding.", "firewall"),
    ],
)
def test_what_ssh_says_leads_to_what_to_do(words: str, part: str) -> None:
    assert part in (hint_for([words]) or "")
