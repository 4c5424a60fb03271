"""Writes results of benchmarks as one page of Markdown, with plots beside it: our promises first, then the engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corebound.engine.bench import results as files
from corebound.engine.bench.against import render_against
from corebound.engine.bench.peers import report as peers
from corebound.engine.bench.targets import report as targets


def write_page(results: Sequence[dict[str, Any]], output: Path) -> list[Path]:
    """Write the page and its plots, which go to a folder of its name, and return what was written."""
    plots: dict[str, str] = {}
    text = render(results, plots, folder=output.stem)
    folder = output.parent / output.stem
    folder.mkdir(parents=True, exist_ok=True)
    written = [output]
    output.write_text(text, encoding="utf-8")
    for name, svg in plots.items():
        (folder / name).write_text(svg, encoding="utf-8")
        written.append(folder / name)
    return written


def render(results: Sequence[dict[str, Any]], plots: dict[str, str], *, folder: str) -> str:
    """Return the page, promises before comparisons; `plots` is filled with its charts, by file name."""
    promises = [result for result in results if result.get("benchmark") == files.TARGETS]
    compared = [result for result in results if result.get("benchmark") != files.TARGETS]
    commands = "\n".join(f"    {result['command']}" for result in [*promises, *compared])
    parts = ["# Benchmarks", "Measured and written by:", commands]
    for result in promises:
        parts += targets.render_run(result)
    parts += render_against(compared)
    for result in compared:
        parts += peers.render_run(result, plots, folder)
    parts += [targets.METHOD] if promises else []
    parts += [peers.METHOD] if compared else []
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"
