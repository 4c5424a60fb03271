"""Runs the porting table of docs/accelerators.md, row by row."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from corebound.accelerator.cpu import CpuAccelerator

GUIDE = Path(__file__).parents[3] / "docs/accelerators.md"
ROW = re.compile(r"^\| `(.+)` \| `(.+)` \| `(.+)` \|$")


def rows() -> list[tuple[str, str, str]]:
    text = GUIDE.read_text(encoding="utf-8").split("## Porting a script")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    matches = [ROW.match(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return [(match[1], match[2], match[3]) for match in matches if match]


def run(code: str, names: dict[str, Any]) -> Any:
    try:
        compiled = compile(code, code, "eval")
    except SyntaxError:
        exec(compile(code, code, "exec"), names)
        return None
    return eval(compiled, names)


def test_every_row_does_on_the_cpu_what_it_says() -> None:
    names: dict[str, Any] = {"accelerator": CpuAccelerator(), "torch": torch, "tensor": torch.ones(2), "index": 0}
    state = torch.get_rng_state()
    try:
        for before, ported, holds in rows():
            names["result"] = run(ported, names)
            assert run(holds, names) is True, (before, ported, holds, names["result"])
    finally:
        torch.set_rng_state(state)


def test_the_first_column_names_what_torch_has() -> None:
    found = list(cuda_names())
    assert len(found) > 30
    for dotted in found:
        value: Any = torch
        for part in dotted.split(".")[1:]:
            # Tensor types and default_generators are made when a device is there.
            assert hasattr(value, part) or part.endswith("Tensor") or part == "default_generators", dotted
            value = getattr(value, part, None)


def test_the_table_has_a_row_for_every_group_of_the_interface() -> None:
    ported = " ".join(row[1] for row in rows())
    for name in ("device_count", "manual_seed", "Stream", "Event", "create_graph", "memory_stats", "pin_memory",
                 "supported_dtypes", "LongTensor", "communication_backend_name", "get_compile_backend"):  # fmt: skip
        assert f"accelerator.{name}" in ported


def cuda_names() -> Iterator[str]:
    """Yield the dotted names that the first column uses of torch.cuda, as far as no call interrupts them."""
    for before, _, _ in rows():
        for node in ast.walk(ast.parse(before)):
            dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"torch\.cuda(\.\w+)+", dotted):
                yield dotted
