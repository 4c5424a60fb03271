from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corebound.cli.main import main
from corebound.engine.predict.ceilings import AttentionRate, Ceilings, InputTime, SumTime, read_ceilings, write_ceilings
from corebound.kernels.panel_format import KINDS
from corebound.kernels.panel_probe import ProductRate
from fixtures.decoder_families import CASES, FEW
from fixtures.topology_trees import write_machine


@pytest.fixture
def ceilings(tmp_path: Path) -> Path:
    """The file of a machine of two cores that reads 10 GB/s."""
    rates = {"bfloat16": 5e9, "int8": 10e9, "int4": 18e9}
    write_ceilings(
        tmp_path / "ceilings.json",
        Ceilings(
            host="golden",
            isa="amx",
            num_cores=2,
            num_numa_nodes=1,
            memory_bytes=16 << 30,
            read_gb_per_s=10.0,
            products=tuple(
                ProductRate(kind=kind, num_rows=rows, matrix_bytes=1 << 24, weights_per_s=rates[kind] / slower)
                for kind in KINDS
                for rows, slower in ((1, 1), (512, 10))
            ),
            inputs=tuple(InputTime(kind=kind, time_ns=5.0) for kind in KINDS),
            attention=(AttentionRate(group_heads=8, cache_gb_per_s=8.0, prompt_gflop_per_s=100.0),),
            sums=(SumTime(num_ranks=2, num_bytes=4096, time_us=1.0),),
            layer_us=10.0,
        ),
    )
    return tmp_path / "ceilings.json"


def run(*args: str | Path) -> int:
    return main(["plan", *(str(arg) for arg in args)])


def test_every_dtype_and_number_of_ranks_is_compared(capsys: pytest.CaptureFixture[str], ceilings: Path) -> None:
    assert run("--shape", "llama-1.1b", "--ceilings", ceilings, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    rows = found["model"]
    assert [(row["dtype"], row["num_ranks"]) for row in rows] == [(kind, count) for kind in KINDS for count in (1, 2)]
    assert [row["dtype"] for row in rows if row["best"]] == ["int4"]
    plain = rows[0]
    # 2.07 GB of weights a token at 10 GB/s, and what comes beside them.
    assert plain["next_token_parts_ms"]["memory"] == pytest.approx(208, rel=0.01)
    assert sum(plain["next_token_parts_ms"].values()) == pytest.approx(plain["next_token_ms"], abs=0.01)
    assert (plain["bound_by"], plain["first_token_bound_by"]) == ("memory bandwidth", "arithmetic")
    assert found["ceilings"]["host"] == "golden"
    assert found["ranks"] and found["hosts"]


def test_the_table_names_units_the_best_and_what_binds(capsys: pytest.CaptureFixture[str], ceilings: Path) -> None:
    assert run("--shape", "bloom-560m", "--dtype", "int8", "--ceilings", ceilings) == 0
    out = capsys.readouterr().out
    assert "first ms  next ms" in out and "GiB" in out and "memory bandwidth" in out
    assert "best: " in out and "of int8, a token every" in out
    assert "each host: 2 cores (amx) like golden, reading 10.0 GB/s" in out
    assert "meet at" in out  # the plan stays


def test_ranks_that_were_asked_for_are_the_only_ones(capsys: pytest.CaptureFixture[str], ceilings: Path) -> None:
    assert run("--shape", "llama-1.1b", "--ceilings", ceilings, "--num_accelerators", "2", "--json") == 0
    assert {row["num_ranks"] for row in json.loads(capsys.readouterr().out)["model"]} == {2}


@pytest.mark.parametrize("name", FEW)
def test_models_of_every_family_are_predicted(
    capsys: pytest.CaptureFixture[str], ceilings: Path, tmp_path: Path, name: str
) -> None:
    model = CASES[name](tmp_path / name)
    args = ("--model", model, "--ceilings", ceilings, "--prompt-tokens", "32", "--num_accelerators", "2", "--json")
    assert run(*args) == 0
    rows = json.loads(capsys.readouterr().out)["model"]
    assert [(row["dtype"], row["num_ranks"]) for row in rows] == [(kind, 2) for kind in KINDS]
    assert all(row["next_token_ms"] > 0 for row in rows)


def test_ceilings_count_for_each_host(capsys: pytest.CaptureFixture[str], ceilings: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a.invalid slots=2\nb.invalid slots=2\n")
    assert run("--hostfile", tmp_path / "hosts", "--shape", "llama-1.1b", "--ceilings", ceilings, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["model"]
    assert {(row["num_ranks"], row["num_hosts"]) for row in rows} == {(2, 2), (4, 2)}
    assert run("--hostfile", tmp_path / "hosts", "--shape", "llama-1.1b", "--ceilings", ceilings) == 0
    assert "assumed between hosts: 30 us and 1.1 GB/s" in capsys.readouterr().out


def test_what_does_not_fit_says_capacity(capsys: pytest.CaptureFixture[str], ceilings: Path) -> None:
    values = json.loads(ceilings.read_text()) | {"memory_bytes": 1 << 20}
    ceilings.write_text(json.dumps(values))
    assert run("--shape", "llama-1.1b", "--ceilings", ceilings) == 0
    out = capsys.readouterr().out
    assert "capacity" in out and "none fits: 1 MiB are available on each host" in out


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["--dtype", "int8"], "--dtype says nothing without a model", "add --model DIR"),
        (["--shape", "llama-1.1b", "--model", "demo"], "give either --model or --shape", ""),
        (["--shape", "llama-1b"], "llama-1b", "did you mean `llama-1.1b`"),
        (["--shape", "llama-1.1b", "--dtype", "float16"], "--dtype float16: only what the native decoder", "int4:g64"),
        (["--shape", "llama-1.1b", "--dtype", "int4:g7"], "unknown part 'g7'", "expected int8|int4"),
        (["--shape", "llama-1.1b", "--context", "4096"], "contexts of up to 2048 tokens, found 4096", "lower"),
        (["--shape", "llama-1.1b", "--num_accelerators", "3"], "found 3 ranks for 2 cores", "use up to 2 ranks"),
        (["--model", "nowhere/at all"], "no such directory", "needs no download"),
    ],
)
def test_mistakes_are_errors_with_a_hint(
    capsys: pytest.CaptureFixture[str], ceilings: Path, args: list[str], said: str, hint: str
) -> None:
    with_file = [] if args[0] == "--dtype" else ["--ceilings", str(ceilings)]
    assert run(*args, *with_file) in (2, 6)
    err = capsys.readouterr().err
    assert said in err and hint in err


def test_ceilings_are_either_read_or_measured(capsys: pytest.CaptureFixture[str], ceilings: Path) -> None:
    assert run("--shape", "llama-1.1b", "--ceilings", ceilings, "--measure", ceilings) == 2
    assert "give one of them" in capsys.readouterr().err


def test_another_machine_is_not_measured_here(
    capsys: pytest.CaptureFixture[str], ceilings: Path, tmp_path: Path
) -> None:
    root = write_machine("interleaved", tmp_path / "root")
    assert run("--root", root, "--shape", "llama-1.1b") == 2
    assert "--root shows another machine" in capsys.readouterr().err
    assert run("--root", root, "--shape", "llama-1.1b", "--ceilings", ceilings) == 0


def test_predicting_imports_no_torch(ceilings: Path) -> None:
    code = (
        "import sys\nfrom corebound.cli.main import main\n"
        f"code = main(['plan', '--json', '--model', 'demo', '--ceilings', {str(ceilings)!r}])\n"
        "assert code == 0 and not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


@pytest.mark.native
def test_ceilings_are_measured_into_a_file_that_predicts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    assert run("--measure", path) == 0
    assert f"ceilings written to {path}" in capsys.readouterr().err
    found = read_ceilings(path)
    assert {rate.kind for rate in found.products} == set(KINDS)
    assert run("--model", "demo", "--ceilings", path) == 0
    assert "a token every" in capsys.readouterr().out
