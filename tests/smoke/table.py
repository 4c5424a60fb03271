"""Shows a smoke report as tables with units, the text that was generated and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from smoke.across import provider_of
from smoke.checks import BY_WEIGHT, GROUPS

COLUMNS = ("host", "ranks", "cores", "ISA", "comm", "first token ms", "next token ms", "tokens/s", "verdict")
ACROSS_COLUMNS = ("across nodes", "bytes", "ranks", "hosts", "p50 us", "p90 us", "p99 us", "network bytes")
COLOURS = {"warn": "yellow", "fail": "red"}


def show(report: Mapping[str, Any], console: Console, reports: Path | None = None) -> None:
    """Print the report: a row for each host, its checks, the sums across nodes, the text, and what failed.

    `reports` is the folder that evidence is named from.
    """
    _print_table(console, COLUMNS, [row(host) for host in report["hosts"]])
    _print_table(console, *checks_table(report))
    across = report.get("across_nodes") or {}
    if across.get("all_reduce"):
        _print_table(console, ACROSS_COLUMNS, [across_row(item) for item in across["all_reduce"]])
    for output in _once(report["outputs"]):
        console.print(
            f"[bold]{escape(output['prompt'])}[/bold]{escape(output['text'])}", soft_wrap=True, highlight=False
        )
    for check in report["checks"]:
        word = {"fail": "failed", "warn": "warning", "skip": "left out"}.get(check["status"])
        if word:
            text = f"{word} on {check['host']}: {check['name']}: {check['detail']}"
            style = COLOURS.get(check["status"], "")
            console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)
        for name in check["evidence"]:
            console.print(f"  evidence: {reports / name if reports else name}", soft_wrap=True, highlight=False)
    console.print(f"smoke: {report['verdict']}", style="green" if report["verdict"] == "pass" else "red")


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for cells in rows:
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)


def _once(outputs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return each text that was generated once, however many hosts have written it."""
    return list({(output["prompt"], output["text"]): output for output in reversed(outputs)}.values())[::-1]


def row(host: Mapping[str, Any]) -> list[str]:
    """Return the cells of one host; what was not measured is a dash."""
    return [
        host["host"],
        str(host["num_ranks"] or "-"),
        " | ".join(host["cores"]) or "-",
        ", ".join(host["isa"]) or "-",
        ", ".join(host["comm"]) or "-",
        _number(host["first_token_ms"]),
        _number(host["next_token_ms"]),
        _number(host["tokens_per_s"]),
        host["verdict"],
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def checks_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the checks by host: the worst status of each group, and what was measured."""
    groups = [group for group in GROUPS if any(check["group"] == group for check in report["checks"])]
    columns = ["host", *groups, "memory GB/s", "shared-memory sum us"]
    rows = []
    for host in report["hosts"]:
        own = [check for check in report["checks"] if check["host"] == host["host"]]
        statuses = [[check["status"] for check in own if check["group"] == group] for group in groups]
        shared = host["shared_memory_all_reduce"]
        rows.append(
            [
                host["host"],
                *(max(found, key=BY_WEIGHT.index) if found else "-" for found in statuses),
                _number(host["memory_gb_per_s"]),
                f"{shared['p50_us']:.1f} ({shared['bytes'] // 1024} KiB)" if shared else "-",
            ]
        )
    return columns, rows


def across_row(item: Mapping[str, Any]) -> list[str]:
    """Return the cells of one provider's sum over all nodes; what it does not report is a dash."""
    times = [_number(item.get(f"p{p}_us")) for p in (50, 90, 99)]
    return [provider_of(item), *(str(item.get(name, "-")) for name in ("bytes", "num_ranks", "num_hosts")), *times,
            str(item.get("network_bytes", "-"))]  # fmt: skip
