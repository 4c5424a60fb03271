"""What is run on every node by itself: diagnosis, plan, memory, shared memory, and the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from smoke import verdict
from smoke.checks import Check, cores, failed, judged, parse, parse_success
from smoke.node import Answer, Node
from smoke.targets import Target
from smoke.tokens import tokens_of

MEASURES = ("ready_s", "first_token_ms", "next_token_ms", "tokens_per_s")
SHARED_MEMORY_BYTES = "64KiB"
SHARED_MEMORY_ROUNDS = "2"
# The node may have other work: this is not the moment to take half of its memory. No core has that much of a cache.
MAX_MEMORY_GIB, MEMORY_GIB_PER_CORE = 2.0, 0.25
REFERENCE_DTYPE = "float32"
# Where only tokens count, threads that wait for each other need not hold their cores: where something else runs on
# them too, as in the lab, each of thousands of waits would cost a turn of the scheduler.
PATIENT = ("env", "OMP_WAIT_POLICY=passive")


@dataclass
class Visit:
    """One node, what was asked of it so far and what it said.

    `launch` is the plan of the whole hostfile, `bindings` where the node itself would put its ranks, by slot;
    `reference` the greedy tokens of one rank in float32.
    """

    node: Node
    log_prefix: str
    checks: list[Check] = field(default_factory=list)
    hostname: str = ""
    launch: dict[str, Any] | None = None
    bindings: list[dict[str, Any]] = field(default_factory=list)
    num_cores: int = 0
    num_ranks: int = 0
    memory_gb_per_s: float | None = None
    shared_memory: dict[str, Any] | None = None
    generated: dict[str, Any] = field(default_factory=dict)
    generate_answer: Answer | None = None
    reference_answer: Answer | None = None

    @property
    def target(self) -> Target:
        """The node as the inventory knows it."""
        return self.node.target

    @property
    def reference(self) -> list[int] | None:
        """The tokens of one rank in float32, None where that run failed."""
        return None if self.reference_answer is None else tokens_of(self.reference_answer)

    def log_dir(self, what: str) -> str:
        """Return the folder on the nodes for the rank logs of one launch."""
        return f"{self.log_prefix}-{what}"


def generate_words(target: Target, dtype: str, prompts: list[str], *launch: str) -> list[str]:
    """Return the command that continues prompts greedily, with more flags of the launch."""
    words = [target.command, "generate", "--json", "--model", target.model, "--dtype", dtype]
    words += ["--max-new-tokens", str(target.max_new_tokens), *launch]
    for prompt in prompts:
        words += ["--prompt", prompt]
    return words


def plan_words(target: Target, *launch: str) -> list[str]:
    """Return the command that plans a launch without starting anything."""
    return [target.command, "plan", "--json", *launch, "--no_python", "true"]


def visit(this: Visit, num_nodes: int) -> None:
    """Ask a node everything, in an order in which later questions rest on earlier answers; stop when it is lost."""
    steps: tuple[Callable[[Visit], list[Check]], ...] = (
        _diagnose,
        lambda this: _read_hostfile(this, num_nodes),
        _plan,
        _generate,
        _reference,
        _memory,
        _shared_memory,
    )
    for step in steps:
        checks = step(this)
        if this.node.lost:
            this.checks.append(judged(this.target.host, "node", "node answers", False, this.node.lost))
            return
        this.checks += checks


def _diagnose(this: Visit) -> list[Check]:
    answer = this.node.run([this.target.command, "doctor", "--json"])
    this.hostname = (parse(answer) or {}).get("host", "")
    return verdict.judge_doctor(this.target.host, answer)


def _read_hostfile(this: Visit, num_nodes: int) -> list[Check]:
    target = this.target
    answer = this.node.run(plan_words(target, "--hostfile", target.hostfile))
    this.launch = parse_success(answer)
    this.num_cores = verdict.num_physical_cores(this.node.run([target.command, "topology", "--json"]))
    this.num_ranks = verdict.choose_num_ranks(target.num_ranks, this.num_cores, target.address, answer)
    return verdict.judge_hostfile(target.host, answer, num_nodes)


def _plan(this: Visit) -> list[Check]:
    """Ask the node where it would put ranks: on all its slots of the hostfile, or those of the run by itself."""
    hosts = this.launch["hosts"] if this.launch else []
    slots = next((item["num_slots"] for item in hosts if item["host"] == this.target.address), this.num_ranks)
    words = plan_words(this.target, "--num_accelerators", str(slots), "--bind_cores_to_rank")
    answer = this.node.run(words)
    plan = parse_success(answer)
    if plan is None:
        return [failed(this.target.host, "binding", "ranks can be bound to cores", answer)]
    this.bindings = plan["ranks"]
    return []


def _generate(this: Visit) -> list[Check]:
    target = this.target
    flags = ["--num_accelerators", str(this.num_ranks), "--bind_cores_to_rank"]
    flags += ["--enable_each_rank_log", this.log_dir("generate")]
    answer = this.node.run(generate_words(target, target.dtype, target.prompts, *flags))
    this.generate_answer = answer
    this.generated = parse_success(answer) or {}
    return verdict.judge_generate(target.host, answer, this.num_ranks)


def _reference(this: Visit) -> list[Check]:
    flags = ["--num_accelerators", "1", "--enable_each_rank_log", this.log_dir("reference")]
    words = generate_words(this.target, REFERENCE_DTYPE, this.target.prompts[:1], *flags)
    this.reference_answer = this.node.run([*PATIENT, *words])
    return []


def _memory(this: Visit) -> list[Check]:
    words = [this.target.command, "bench", "memory", "--json", "--whole-machine"]
    max_gib = min(MAX_MEMORY_GIB, MEMORY_GIB_PER_CORE * max(1, this.num_cores))
    answer = this.node.run([*words, "--max-gib", f"{max_gib:g}", "--repetitions", "3"])
    checks, this.memory_gb_per_s = verdict.judge_memory(this.target.host, answer, this.target.min_memory_gb_per_s)
    return checks


def _shared_memory(this: Visit) -> list[Check]:
    if this.num_ranks < 2:
        name, detail = "ranks of the node sum in shared memory", "not run: one rank"
        return [Check(host=this.target.host, group="all-reduce", name=name, status="skip", detail=detail)]
    words = [this.target.command, "bench", "allreduce", "--json", "--num-ranks", str(this.num_ranks)]
    answer = this.node.run([*words, "--bytes", SHARED_MEMORY_BYTES, "--rounds", SHARED_MEMORY_ROUNDS])
    checks, this.shared_memory = verdict.judge_shared_memory(this.target.host, answer)
    return checks


def row(this: Visit, checks: list[Check]) -> dict[str, Any]:
    """Return the node's row of the report; `checks` are all of this node, also those across nodes."""
    ranks = this.generated.get("ranks", [])
    return {
        "host": this.target.host,
        "num_ranks": len(ranks),
        "cores": [cores(rank["cpus"]) for rank in ranks],
        "isa": sorted({rank["isa"] for rank in ranks}),
        "comm": sorted({rank["comm"] for rank in ranks}),
        **{name: this.generated.get(name) for name in MEASURES},
        "memory_gb_per_s": this.memory_gb_per_s,
        "shared_memory_all_reduce": this.shared_memory,
        "ranks": ranks,
        "verdict": "pass" if all(check.passed for check in checks) else "fail",
    }


def row_of_missing(host: str) -> tuple[dict[str, Any], Check]:
    """Return row and check of a node that was lost before the visit: nothing measured, and failed."""
    detail = "Ansible could not prepare the visit; its output says why (unreachable, not deployed, ...)"
    measured: dict[str, Any] = dict.fromkeys((*MEASURES, "memory_gb_per_s", "shared_memory_all_reduce"))
    lists: dict[str, Any] = {name: [] for name in ("cores", "isa", "comm", "ranks")}
    row = {"host": host, "num_ranks": 0, **lists, **measured, "verdict": "fail"}
    return row, judged(host, "node", "node can be visited", False, detail)
