from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corebound.engine.predict.ceilings import AttentionRate, Ceilings, InputTime, SumTime, read_ceilings, write_ceilings
from corebound.errors import ConfigError
from corebound.kernels.panel_format import KINDS
from corebound.kernels.panel_probe import ProductRate

CEILINGS = Ceilings(
    host="far",
    isa="amx",
    num_cores=4,
    num_numa_nodes=2,
    memory_bytes=1 << 34,
    read_gb_per_s=40.0,
    products=tuple(ProductRate(kind=kind, num_rows=1, matrix_bytes=1 << 30, weights_per_s=2e10) for kind in KINDS),
    inputs=tuple(InputTime(kind=kind, time_ns=number + 1) for number, kind in enumerate(KINDS)),
    attention=(
        AttentionRate(group_heads=9, cache_gb_per_s=10.0, prompt_gflop_per_s=500.0),
        AttentionRate(group_heads=1, cache_gb_per_s=20.0, prompt_gflop_per_s=250.0),
    ),
    sums=(SumTime(num_ranks=2, num_bytes=4096, time_us=1.0), SumTime(num_ranks=2, num_bytes=8192, time_us=2.0)),
    layer_us=12.5,
)


def test_a_file_says_what_was_written(tmp_path: Path) -> None:
    write_ceilings(tmp_path / "c.json", CEILINGS)
    assert read_ceilings(tmp_path / "c.json") == CEILINGS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 1}, "expected an object with format 2"),
        ({"read_gb_per_s": 0}, "read_gb_per_s: expected a number above 0, found 0"),
        ({"num_cores": "4"}, "num_cores: expected a number above 0, found '4'"),
        ({"layer_us": float("nan")}, "layer_us: expected a number above 0, found nan"),
        ({"host": None}, "host: expected text, found None"),
        ({"speed": 1}, "unknown field speed"),
        ({"products": []}, "products: none of bfloat16 with one row"),
        ({"inputs": [{"kind": "int4", "time_ns": 1.0}]}, "inputs: none of bfloat16"),
        ({"inputs": [{"kind": "int4", "time_ns": 0}]}, r"inputs\[0\].time_ns: expected a number above 0, found 0"),
        ({"attention": []}, "attention: expected some, found none"),
        ({"sums": 1}, "sums: expected a list, found int"),
        ({"sums": [{"num_bytes": 1}]}, r"sums\[0\]: expected num_ranks, num_bytes, time_us"),
        ({"network_gb_per_s": -1}, "network_gb_per_s: expected a number above 0, found -1"),
    ],
)
def test_a_wrong_file_is_refused_by_the_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(CEILINGS.to_json() | change))
    with pytest.raises(ConfigError, match=said) as refused:
        read_ceilings(path)
    assert str(path) in str(refused.value) and "--measure" in (refused.value.hint or "")


def test_files_that_are_not_there_or_not_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_ceilings(tmp_path / "none")
    (tmp_path / "text").write_text("fast")
    with pytest.raises(ConfigError, match="not JSON"):
        read_ceilings(tmp_path / "text")
    with pytest.raises(ConfigError, match="No such file"):
        write_ceilings(tmp_path / "none" / "c.json", CEILINGS)


def test_sums_lie_on_the_lines_between_what_was_measured() -> None:
    assert CEILINGS.sum_seconds(1, 4096) == 0
    assert CEILINGS.sum_seconds(2, 6144) == pytest.approx(1.5e-6)
    assert CEILINGS.sum_seconds(2, 100) == pytest.approx(1e-6)
    # Larger than anything measured: at the rate of the largest.
    assert CEILINGS.sum_seconds(2, 81920) == pytest.approx(20e-6)
    # Each of four reads three others' parts.
    assert CEILINGS.sum_seconds(4, 4096) == pytest.approx(3e-6)


def test_an_input_costs_what_its_kind_costs() -> None:
    assert CEILINGS.input_seconds("bfloat16", 2000) == pytest.approx(2e-6)
    assert CEILINGS.input_seconds("int4", 2000) == pytest.approx(6e-6)


def test_a_cache_takes_longer_the_more_queries_read_the_same_keys() -> None:
    assert CEILINGS.cache_seconds(1e9, 1) == pytest.approx(0.05)
    assert CEILINGS.cache_seconds(1e9, 9) == pytest.approx(0.1)
    assert CEILINGS.cache_seconds(1e9, 5) == pytest.approx(0.075)
    assert CEILINGS.cache_seconds(1e9, 64) == pytest.approx(0.1)


def test_attention_of_a_prompt_lays_keys_out_once_for_all_queries_that_read_them() -> None:
    assert CEILINGS.prompt_attention_seconds(1e12, 1) == pytest.approx(4.0)
    assert CEILINGS.prompt_attention_seconds(1e12, 9) == pytest.approx(2.0)
    # Half way between one and a ninth of a layout for each query.
    assert CEILINGS.prompt_attention_seconds(1e12, 1.8) == pytest.approx(3.0)
    assert CEILINGS.prompt_attention_seconds(1e12, 64) == pytest.approx(2.0)
