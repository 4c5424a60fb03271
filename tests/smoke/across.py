"""What is run over all nodes at once, started on the first of them: bindings, sums by every provider, one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smoke.binding import PlannedRank, found_ranks, judge_binding, planned_ranks
from smoke.checks import Check, Group, Status, failed, judged, parse_success
from smoke.node import Answer
from smoke.tokens import judge_tokens, reference, tokens_of
from smoke.visit import PATIENT, REFERENCE_DTYPE, Visit, generate_words

MESSAGES = ("64KiB", "1MiB")
ROUNDS = "2"


@dataclass
class Across:
    """The launch over all nodes that can take part. `reason` says why there is none; `left_out` are lost nodes."""

    visits: list[Visit]
    left_out: list[str] = field(default_factory=list)
    reason: str = ""
    checks: list[Check] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first(self) -> Visit:
        """The node on which launches are started."""
        return self.visits[0]

    def flags(self) -> list[str]:
        """Return the flags of a launch over these nodes."""
        exclude = ["--exclude", "@".join(self.left_out)] if self.left_out else []
        return ["--hostfile", self.first.target.hostfile, *exclude]

    def to_json(self) -> dict[str, Any]:
        """Return what smoke.json says of the launches across nodes."""
        return {
            "hosts": [] if self.reason else [visit.target.host for visit in self.visits],
            "left_out": self.left_out,
            "not_run": self.reason,
            "all_reduce": self.rows,
        }


def gather(visits: Sequence[Visit]) -> Across:
    """Return which nodes a launch can have: those that answer, in the order of the first one's hostfile."""
    there = {visit.target.address: visit for visit in visits if not visit.node.lost and visit.launch}
    if not there:
        return Across([], reason="not run: no node has a hostfile that can be read")
    launch = next(iter(there.values())).launch or {}
    hosts = [str(item["host"]) for item in launch["hosts"]]
    members = [there[host] for host in hosts if host in there]
    left_out = [host for host in hosts if host not in there]
    across = Across(members or list(there.values()), left_out)
    without = [visit.target.host for visit in members if not visit.target.job_user]
    if len(hosts) < 2:
        across.reason = "not run: one node"
    elif len(members) < 2:
        across.reason = "not run: fewer than two nodes of the hostfile answer"
    elif without:
        across.reason = f"not run: no cluster_ssh on {', '.join(without)}, so no job can log in from node to node"
    return across


def run_across(across: Across) -> None:
    """Start the launches over all nodes one after the other, and judge them."""
    if across.reason:
        _not_run(across)
        return
    _binding(across)
    _all_reduce(across)
    _tokens(across)


def _not_run(across: Across) -> None:
    """Judge each node's binding by itself, and say once that nothing was run across nodes."""
    for visit in across.visits:
        _binding_of_one(across, visit)
    if across.visits:
        target = across.first.target
        status: Status = "fail" if target.require_cluster else "skip"
        groups: tuple[tuple[Group, str], ...] = (
            ("all-reduce", "nodes sum together"),
            ("tokens", "nodes generate together"),
        )
        for group, name in groups:
            across.checks.append(Check(host=target.host, group=group, name=name, status=status, detail=across.reason))


def _probe_words(visit: Visit, what: str, *launch: str) -> list[str]:
    command = visit.target.command
    words = [command, "run", *launch, "--bind_cores_to_rank", "--enable_each_rank_log", visit.log_dir(what)]
    return [*words, "--no_python", command, "topology", "--process", "--json"]


def _binding_of_one(across: Across, visit: Visit) -> None:
    if not visit.bindings:
        return
    answer = visit.node.run(_probe_words(visit, "binding", "--num_accelerators", str(len(visit.bindings))))
    target = visit.target
    name = str(visit.bindings[0]["host"])
    planned = planned_ranks(target.host, visit.hostname, name, {"ranks": visit.bindings}, visit.bindings)
    _judge_binding(across, target.host, planned, answer)


def _binding(across: Across) -> None:
    """Compare every rank of the whole launch with what its own node had planned, by its own hostfile."""
    answer = across.first.node.run_as_job_user(_probe_words(across.first, "binding", *across.flags()))
    planned: list[PlannedRank] = []
    for visit in across.visits:
        launch = _without(visit.launch or {"ranks": []}, across.left_out)
        target = visit.target
        planned += planned_ranks(target.host, visit.hostname, target.address, launch, visit.bindings)
    _judge_binding(across, across.first.target.host, planned, answer)


def _without(launch: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """Return a plan's ranks as they are numbered when some hosts are left out."""
    ranks = [rank for rank in launch["ranks"] if rank["host"] not in left_out]
    return {"ranks": [{**rank, "rank": number} for number, rank in enumerate(ranks)]}


def _judge_binding(across: Across, host: str, planned: Sequence[PlannedRank], answer: Answer) -> None:
    found = found_ranks(answer)
    if answer.exit_code != 0:
        across.checks.append(failed(host, "binding", "bound ranks can be started", answer))
        return
    across.checks += judge_binding(planned, answer)
    across.ranks += [
        {"host": rank.host, "rank": rank.rank, "planned": vars(rank), "found": found.get(rank.rank)} for rank in planned
    ]


def _all_reduce(across: Across) -> None:
    """Time the sum over all ranks: every provider that the command reports becomes a row and a check."""
    target = across.first.target
    words = [target.command, "bench", "allreduce", "--json", *across.flags(), "--rounds", ROUNDS]
    words += ["--enable_each_rank_log", across.first.log_dir("all-reduce")]
    for size in MESSAGES:
        words += ["--bytes", size]
    answer = across.first.node.run_as_job_user(words)
    across.checks += judge_all_reduce(target.host, answer, len(across.visits))
    across.rows = (parse_success(answer) or {}).get("rows", [])


def provider_of(row: Mapping[str, Any]) -> str:
    """Return the provider of a measured row, with what carries its slices between nodes where that is another."""
    link = row.get("host_link")
    return f"{row['provider']} ({link})" if link else str(row["provider"])


def judge_all_reduce(host: str, answer: Answer, num_hosts: int) -> list[Check]:
    """Return whether all nodes sum together, a check for each provider that was measured."""
    report = parse_success(answer)
    if report is None or not report.get("rows"):
        return [failed(host, "all-reduce", "nodes sum together", answer)]
    checks = []
    for provider in dict.fromkeys(provider_of(row) for row in report["rows"]):
        rows = [row for row in report["rows"] if provider_of(row) == provider]
        wrong = [row for row in rows if row.get("num_hosts", num_hosts) != num_hosts]
        detail = "; ".join(f"{row['bytes']} bytes in {row['p50_us']:.0f} us at the median" for row in rows)
        if wrong:
            detail = f"on {wrong[0]['num_hosts']} hosts, expected {num_hosts}"
        passed = not wrong and all(row["p50_us"] > 0 for row in rows)
        checks.append(judged(host, "all-reduce", f"nodes sum together by {provider}", passed, detail, answer))
    return checks


def _tokens(across: Across) -> None:
    """Continue the first prompt on all nodes together, in float32 and in the type that the model is used in."""
    known = reference({visit.target.host: visit.reference for visit in across.visits})
    target = across.first.target
    if known is None:
        return  # each node's own reference run has failed, and says so
    together = _generate(across, REFERENCE_DTYPE)
    name = "nodes together say what one rank says"
    across.checks.append(judge_tokens(target.host, name, tokens_of(together), known[1], strict=True, answer=together))
    own = across.first.generate_answer
    if target.dtype == REFERENCE_DTYPE or own is None:
        return
    expected = tokens_of(own)
    if expected:
        again = _generate(across, target.dtype)
        name = f"nodes together say what one node says in {target.dtype}"
        # An answer without tokens fails all the same.
        check = judge_tokens(target.host, name, tokens_of(again), expected, strict=False, answer=again)
        across.checks.append(check)


def _generate(across: Across, dtype: str) -> Answer:
    target = across.first.target
    log = ["--enable_each_rank_log", across.first.log_dir(f"together-{dtype}")]
    words = generate_words(target, dtype, target.prompts[:1], *across.flags(), *log)
    return across.first.node.run_as_job_user([*PATIENT, *words])


def judge_references(visits: Sequence[Visit]) -> list[Check]:
    """Return whether one rank says the same on every node, and the ranks of a node what one rank says."""
    known = reference({visit.target.host: visit.reference for visit in visits})
    checks = []
    for visit in visits:
        if visit.node.lost or visit.reference_answer is None:
            continue
        host, answer = visit.target.host, visit.reference_answer
        if not visit.reference or known is None:
            checks.append(failed(host, "tokens", "one rank generates in float32", answer))
            continue
        name = f"one rank says what it says on {known[0]}"
        checks.append(judge_tokens(host, name, visit.reference, known[1], strict=True, answer=answer))
        if visit.generate_answer is not None and visit.target.dtype == REFERENCE_DTYPE and visit.generated:
            own = tokens_of(visit.generate_answer)
            name = "the ranks of the node say what one rank says"
            checks.append(judge_tokens(host, name, own, known[1], strict=True, answer=visit.generate_answer))
    return checks
