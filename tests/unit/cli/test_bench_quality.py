"""`corebound bench quality`: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from corebound.cli.bench_quality import ALL_SCHEMES, quality
from corebound.errors import ConfigError
from corebound.quantization import Scheme
from fixtures.packed_weights import pack_model
from fixtures.tiny_models import build_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    return build_llama(path, num_heads=8, hidden_size=64, intermediate_size=96, tokenizer=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("Hello, you\n\nThe old ship\nA\n")
    return path


def run(*args: object) -> Any:
    result = CliRunner().invoke(quality, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_every_scheme_is_measured() -> None:
    assert len(set(ALL_SCHEMES)) == 16
    assert Scheme(4, 64, True) in ALL_SCHEMES


def test_json_has_a_row_for_each_float_type_and_scheme(llama: Path, text: Path) -> None:
    result = run("--model", llama, "--text", text, "--scheme", "int8", "--scheme", "int4:g32", "--json")
    found = json.loads(result.stdout)
    assert (found["model"], found["packed"], found["quantized_head"]) == ("tiny-llama", None, False)
    assert (found["num_texts"], found["num_tokens"]) == (3, 10 + 12 + 1 + 3)
    rows = {row["scheme"]: row for row in found["rows"]}
    assert list(rows) == ["float32", "bfloat16", "int8:channel:sym", "int4:g32:asym"]
    assert rows["float32"]["logits_error"] == 0
    assert rows["int8:channel:sym"]["logits_error"] < rows["int4:g32:asym"]["logits_error"]
    assert rows["int4:g32:asym"]["bits_per_weight"] == 4 + 20 / 32
    assert "measuring int4:g32:asym" in result.stderr


def test_the_table_names_model_and_columns(llama: Path, text: Path) -> None:
    lines = run("--model", llama, "--text", text, "--scheme", "int4", "--num-texts", 2, "--quantize-head").stdout
    title, header, *rows = lines.splitlines()
    assert title == "tiny-llama: 2 texts, 24 tokens, head quantized too"
    assert all(word in header for word in ("weights", "bits", "perplexity", "logits error", "same top token"))
    assert [row.split()[0] for row in rows] == ["float32", "bfloat16", "int4:g128:asym"]


def test_a_packed_model_is_measured_as_it_is(llama: Path, text: Path, tmp_path: Path) -> None:
    pack_model(llama, tmp_path / "packed", quant_method="gptq", bits=4, group_size=32)
    found = json.loads(run("--model", tmp_path / "packed", "--text", text, "--json").stdout)
    assert found["packed"] == "gptq int4:g32:sym"
    assert [row["scheme"] for row in found["rows"]] == ["float32", "bfloat16", "bfloat16, computed here"]


@pytest.mark.native
def test_what_runs_here_is_measured_beside_its_scheme(llama: Path, text: Path) -> None:
    rows = {row["scheme"]: row for row in json.loads(run("--model", llama, "--text", text, "--json").stdout)["rows"]}
    for dtype, scheme in (("bfloat16", "bfloat16"), ("int8", "int8:channel:sym"), ("int4", "int4:g128:asym")):
        computed = rows[f"{dtype}, computed here"]
        assert computed["bits_per_weight"] == rows[scheme]["bits_per_weight"]
        assert 0 < computed["logits_error"] < 3 * rows[scheme]["logits_error"] + 0.02


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((), "give either --model or --shape"),
        (("--model", "demo", "--scheme", "int3"), "quantization scheme 'int3': unknown width"),
        (("--model", "demo", "--text", "/does/not/exist"), "--text /does/not/exist: No such file"),
        (("--shape", "llama-tini"), "unknown shape in --shape: 'llama-tini'"),
    ],
)
def test_a_wrong_argument_is_named(args: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        CliRunner().invoke(quality, args, catch_exceptions=False)


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(ConfigError, match="expected a text a line, found none"):
        CliRunner().invoke(quality, ["--model", "demo", "--text", str(tmp_path / "empty")], catch_exceptions=False)
