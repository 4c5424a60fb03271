"""Shows a smoke report as a table with units, the text that was generated and what failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

COLUMNS = ("host", "ranks", "cores", "ISA", "comm", "first token ms", "next token ms", "tokens/s", "verdict")


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report: one row for each host, then the generated text, then the checks that failed."""
    table = Table(*(Column(name, overflow="fold") for name in COLUMNS))
    for host in report["hosts"]:
        table.add_row(*(escape(cell) for cell in row(host)))
    console.print(table)
    for output in report["outputs"]:
        console.print(
            f"[bold]{escape(output['prompt'])}[/bold]{escape(output['text'])}", soft_wrap=True, highlight=False
        )
    for check in report["checks"]:
        if not check["passed"]:
            text = f"failed on {check['host']}: {check['name']}: {check['detail']}"
            console.print(text, style="red", soft_wrap=True, highlight=False, markup=False)
    console.print(f"smoke: {report['verdict']}", style="green" if report["verdict"] == "pass" else "red")


def row(host: Mapping[str, Any]) -> list[str]:
    """Return the cells of one host; what was not measured is a dash."""

    def number(name: str) -> str:
        return "-" if host[name] is None else f"{host[name]:.1f}"

    return [
        host["host"],
        str(host["num_ranks"] or "-"),
        " | ".join(host["cores"]) or "-",
        ", ".join(host["isa"]) or "-",
        ", ".join(host["comm"]) or "-",
        number("first_token_ms"),
        number("next_token_ms"),
        number("tokens_per_s"),
        host["verdict"],
    ]
