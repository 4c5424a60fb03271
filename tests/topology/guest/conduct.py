"""Runs the cases of a file on this machine and prints a JSON object a line: first the machine, then each case."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CPU, NODE = "sys/devices/system/cpu", "sys/devices/system/node"
# What a topology is read from, to be read again elsewhere.
DUMPED = (
    f"{CPU}/online",
    f"{CPU}/present",
    f"{CPU}/cpu[0-9]*/topology/core_id",
    f"{CPU}/cpu[0-9]*/topology/physical_package_id",
    f"{CPU}/cpu[0-9]*/topology/core_cpus_list",
    f"{CPU}/cpu[0-9]*/cache/index*/level",
    f"{CPU}/cpu[0-9]*/cache/index*/type",
    f"{CPU}/cpu[0-9]*/cache/index*/size",
    f"{CPU}/cpu[0-9]*/cache/index*/shared_cpu_list",
    f"{NODE}/online",
    f"{NODE}/node*/cpulist",
    f"{NODE}/node*/distance",
    f"{NODE}/node*/meminfo",
    f"{NODE}/node*/access0/initiators/read_bandwidth",
)
CASE_TIMEOUT_S = 120


def corebound(case: dict[str, Any], verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "corebound", verb, *words]
    if case.get("refuses_memory_policy"):
        command = [sys.executable, "/corebound/without_set_mempolicy.py", *command]
    if case.get("affinity"):
        command = ["taskset", "--cpu-list", case["affinity"], *command]
    if case.get("cpuset"):
        # The shell joins the group, then becomes the command.
        command = ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', make_cpuset(**case["cpuset"]), *command]
    environ = {**os.environ, **case.get("environ", {})}
    return subprocess.run(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CASE_TIMEOUT_S,
        check=False,
    )


def make_cpuset(cpus: str, memory_nodes: str) -> str:
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+cpuset")
    group = Path("/sys/fs/cgroup/case")
    group.mkdir(exist_ok=True)
    (group / "cpuset.cpus").write_text(cpus)
    (group / "cpuset.mems").write_text(memory_nodes)
    return str(group)


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    flags = list(case["flags"])
    with tempfile.TemporaryDirectory() as folder:
        if case.get("hostfile"):
            hostfile = Path(folder) / "hosts"
            hostfile.write_text(case["hostfile"])
            flags += ["--hostfile", str(hostfile)]
        planned = corebound(case, "plan", "--json", *flags)
        ranks = Path(folder) / "ranks"
        ranks.mkdir()
        done = corebound(
            case, "run", *flags, "--no_python", "/corebound/probe.py", str(ranks), str(case["touched_mib"])
        )
        return {
            "name": case["name"],
            "plan": json.loads(planned.stdout) if planned.returncode == 0 else None,
            "plan_exit_code": planned.returncode,
            "plan_messages": planned.stderr.splitlines(),
            "exit_code": done.returncode,
            "messages": done.stderr.splitlines(),
            "ranks": [json.loads(path.read_text()) for path in sorted(ranks.iterdir())],
        }


def describe_machine() -> dict[str, Any]:
    seen = corebound({}, "topology", "--json")
    if seen.returncode != 0:
        raise RuntimeError(f"corebound topology: exit code {seen.returncode}\n{seen.stderr}")
    tree = {str(path): path.read_text().strip() for pattern in DUMPED for path in sorted(Path("/").glob(pattern))}
    tree["/proc/cpuinfo"] = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    tree["/proc/meminfo"] = Path("/proc/meminfo").read_text().strip()
    lines = Path("/proc/self/status").read_text().splitlines()
    tree["/proc/self/status"] = next(line for line in lines if line.startswith("Cpus_allowed_list"))
    return {"topology": json.loads(seen.stdout), "tree": {path.lstrip("/"): text for path, text in tree.items()}}


print(json.dumps(describe_machine()), flush=True)
for one in json.loads(Path(sys.argv[1]).read_text()):
    print(json.dumps(run_case(one)), flush=True)
