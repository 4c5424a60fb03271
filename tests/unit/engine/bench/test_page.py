"""One page of both results: promises, then what is held against others, then everyone; and the page that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corebound.engine.bench import results
from corebound.engine.bench.against import render_against
from corebound.engine.bench.page import render
from corebound.engine.bench.peers.report import _plot
from corebound.engine.bench.targets.finding import Finding, Measured, NotMeasured

ROOT = Path(__file__).parents[4]
LOAD = {"other_share": 0.01, "steal_share": 0.0}
MACHINE = {
    "processor": "x",
    "isa": "avx2",
    "num_cores": 2,
    "num_sockets": 1,
    "num_numa_nodes": 1,
    "last_level_cache_bytes": 1 << 20,
    "memory_bytes": 1 << 30,
    "kernel": "6",
    "python": "3",
    "torch": "2",
}


def row(
    engine: str, next_ms: float, *, ranks: int = 1, batch: int = 1, dtype: str = "bfloat16", prompt: int = 32
) -> dict[str, Any]:
    return {
        "engine": engine,
        "dtype": dtype,
        "num_ranks": ranks,
        "num_prompt_tokens": prompt,
        "batch_size": batch,
        "next_token_ms": next_ms,
        "first_token_ms": 10 * next_ms,
        "decode_tokens_per_s": 1e3 * batch / next_ms,
    }


def comparison(engine: str, *, ranks: int = 1, batch: int = 1, **ratios: float) -> dict[str, Any]:
    case = {"dtype": "bfloat16", "num_ranks": ranks, "num_prompt_tokens": 32, "batch_size": batch}
    return {"with": engine, **case, **ratios}


def test_promises_come_with_what_was_measured_and_what_could_not_be() -> None:
    kept = Finding(
        line="decode",
        what="a | b",
        sense="at least",
        bound=0.9,
        ratios=[0.8, 0.95, 0.97],
        measured=Measured(name="read", unit="GB/s", rounds=[19.0]),
        limit=Measured(name="bandwidth", unit="GB/s", rounds=[20.0]),
    )
    missing = NotMeasured(line="allreduce", what="far", reason="there is one cache")
    found = {
        "benchmark": "targets",
        "command": "corebound bench targets",
        "date": "2026-01-01",
        "machine": MACHINE,
        "num_rounds": 3,
        "elapsed_s": 60.0,
        "readings": [{"read_gb_per_s": 20.0, "gemm_gflop_per_s": 1000.0}],
        "load": LOAD,
        "quality": None,
        "rows": [kept.row(), missing.row()],
    }
    text = render([found], {}, folder="x")
    assert "| a / b | at least 0.9 | 0.950 | 0.830 | 0.966 | 3 | read 19.00 GB/s | bandwidth 20.00 GB/s | yes |" in text
    assert "| far |  | not measured |" in text and "There is one cache." in text
    assert "1 of 1 promises are kept; 1 could not be measured here." in text


def test_the_best_of_the_others_is_what_ours_are_held_against() -> None:
    timed = [
        {"provider": name, "entry": entry, "bytes": 8192, "placement": "far", "p50_us": value}
        for name, entry, value in (
            ("shm", "python", 2.0),
            ("shm", "native", 0.5),
            ("vllm_tp", "python", 3.0),
            ("deepspeed_tp", "python", 1.0),
            ("gloo", "python", 0.1),
        )
    ]
    rows = [row("corebound", 50), row("corebound", 40, ranks=2), row("vllm", 60), row("llama_cpp", 30)]
    rows += [row("corebound", 100, batch=16), row("vllm", 130, batch=16)]
    rows += [row("corebound", 20, dtype="int8")]
    comparisons = [
        comparison("llama_cpp", decode_speed_ratio=1.1),  # of the slower of ours
        comparison("llama_cpp", ranks=2, decode_speed_ratio=1.01),
        comparison("vllm", ranks=2, decode_speed_ratio=2.0),
        comparison("vllm", batch=16, decode_speed_ratio=9.0)
        | {"round_counts": [True, False, True, True], "ratio_per_round": [1.1, 7.0, 1.19, 1.2]},
    ]
    run = {"shape": "s", "date": "d", "machine": MACHINE, "rows": rows, "all_reduce": timed, "comparisons": comparisons}
    (_, table, method) = render_against([run])
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [(line[2], line[-1].strip(" |")) for line in lines] == [
        ("1.01", "yes"),  # of the rounds, where the medians would say 0.75
        ("0.75, of medians", "no"),
        ("not measured", "none ran"),
        ("not measured", "none ran"),
        ("1.19, 3 of 4 rounds", "no"),
        ("0.50, of medians", "no"),
        ("not measured", "this machine has no two near cores"),
    ]
    assert lines[0][3].startswith("2 ranks") and lines[0][4].startswith("llama.cpp")
    assert "far cores" in lines[-2][0]
    assert "of the ratio\nwithin a round" in method


def sums(*providers: tuple[str, float], sizes: tuple[int, ...] = (8 << 10,)) -> list[dict[str, Any]]:
    return [
        {"provider": name, "entry": "python", "bytes": num_bytes, "placement": "near"}
        | {f"p{p}_us": value for p in (10, 50, 90, 99)}
        for num_bytes in sizes
        for name, value in providers
    ]


def lines_of(run: dict[str, Any]) -> list[list[str]]:
    (_, table, _) = render_against([{"shape": "s", "date": "d", "machine": MACHINE, "comparisons": [], **run}])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_promise_against_others_is_a_row() -> None:
    rows = [
        row(engine, time, dtype=dtype, prompt=prompt)
        for engine, time in (("corebound", 20), ("openvino", 30), ("llama_cpp", 40))
        for dtype in ("bfloat16", "int8", "int4")
        for prompt in (32, 512)
    ]
    rows += [row("corebound", 20, batch=16), row("vllm", 25, batch=16), row("openvino", 21, batch=16)]
    sizes = (8 << 10, 64 << 10, 1 << 20, 32 << 20)
    found = sums(("shm", 2.0), ("vllm_tp", 3.0), ("deepspeed_tp", 4.0), ("gloo", 1.0), sizes=sizes)
    lines = lines_of({"rows": rows, "all_reduce": found})
    assert [line[:3] for line in lines[:-1]] == [
        *(
            [f"{name}, {dtype}, prompt of {prompt}: fastest other over ours", "at least 1", "1.50, of medians"]
            for dtype in ("bfloat16", "int8", "int4")
            for prompt in (32, 512)
            for name in ("next token", "first token")
        ),
        ["batch 16, bfloat16, tokens/s: ours over vLLM-CPU", "at least 1.2", "1.25, of medians"],
        *(
            [f"all-reduce of {size}, near cores: fastest other over ours", "at least 1", "1.50, of medians"]
            for size in ("8 KiB", "64 KiB", "1 MiB", "32 MiB")
        ),
    ]
    assert {line[-1] for line in lines[:-1]} == {"yes"}
    assert lines[-1][2:4] == ["not measured", "this machine has no two far cores"]


def test_a_sum_without_rivals_or_without_ours_is_not_measured() -> None:
    (alone, _) = lines_of({"rows": [row("llama_cpp", 1)], "all_reduce": sums(("shm", 2.0), ("gloo", 9.0))})
    assert alone[2:] == ["not measured", "2.00 us", "none ran", ""]
    (missing, _) = lines_of({"rows": [], "all_reduce": sums(("vllm_tp", 2.0), ("gloo", 9.0))})
    assert missing[2:] == ["not measured", "no shared memory", "", ""]


def test_a_run_of_sums_alone_is_a_part_of_the_page() -> None:
    run = {
        "command": "corebound bench peers --only-all-reduce --rounds 1",
        "date": "2026-01-01",
        "machine": MACHINE,
        "num_rounds": 1,
        "load": LOAD,
        "rows": [],
        "comparisons": [],
        "readings": [],
        "failures": [{"engine": "deepspeed_tp", "dtype": "all-reduce, bfloat16", "reason": "no g++"}],
        "all_reduce": sums(("shm", 2.0), ("vllm_tp", 3.0)),
    }
    text = render([run], {}, folder="x")
    assert "## Against other engines, Sums of two ranks, 2026-01-01, x, avx2" in text
    assert "## Sums of two ranks, 2026-01-01, x, avx2" in text
    assert "1 rounds. Other processes took 1% of" in text
    assert "| 8 KiB | near | vLLM-CPU, 2 ranks (python) | 3.00 |" in text
    assert "| DeepSpeed AutoTP, 2 ranks | all-reduce, bfloat16 | no g++ |" in text
    assert "### Decode" not in text


def test_two_runs_of_one_shape_have_their_own_charts() -> None:
    plots: dict[str, str] = {}
    for value in (1.0, 2.0, 3.0):
        (shown,) = _plot(plots, "x", "s-decode.svg", "t", [row("corebound", value)], lambda one: one["next_token_ms"])
        assert shown == f"![t](x/{list(plots)[-1]})"
    assert list(plots) == ["s-decode.svg", "2-s-decode.svg", "3-s-decode.svg"]
    assert len(set(plots.values())) == 3


def test_a_run_without_others_says_nothing_about_them() -> None:
    alone = {
        "shape": "s",
        "date": "d",
        "machine": MACHINE,
        "rows": [row("corebound", 50)],
        "all_reduce": sums(("shm", 1.0), ("gloo", 9.0)),
    }
    assert render_against([alone]) == []


def test_the_page_that_is_kept_is_what_the_results_beside_it_come_to() -> None:
    page, folder = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
    kept = sorted(folder.glob("*.json"))
    assert page.exists() == bool(kept)
    if kept:
        plots: dict[str, str] = {}
        assert page.read_text(encoding="utf-8") == render(list(map(results.read, kept)), plots, folder=folder.name)
        for name, svg in plots.items():
            assert (folder / name).read_text(encoding="utf-8") == svg
