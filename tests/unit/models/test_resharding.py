"""Models that were written for some ranks, written for others: the files that the checkpoint would have become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corebound.comm import Collectives
from corebound.errors import ConfigError, ShardingError
from corebound.models import describe, resharding
from corebound.models.description import ModelDescription
from corebound.models.shard_writing import write_shards
from corebound.sharding import ShardPlan
from corebound.sharding.plan import Parameter, model_parameters
from fixtures.decoding import Runner
from fixtures.packed_weights import pack_model
from fixtures.thread_group import run_ranks
from fixtures.tiny_models import build_bloom, build_family, build_llama

pytestmark = pytest.mark.native

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}


def build_gptq(path: Path, **config: object) -> Path:
    source = build_llama(path.with_name("source"), hidden_size=192, intermediate_size=384)
    pack_model(source, path, **GPTQ | config)
    return path


BUILDERS: dict[str, Callable[[Path], Path]] = {
    # 6 heads of 32 inputs, so that 2 and 3 ranks have whole groups of 32; 101 words, which nothing divides.
    "llama": lambda path: build_llama(path, hidden_size=192, intermediate_size=384, attention_bias=True, mlp_bias=True),
    "llama-uneven": lambda path: build_llama(path, num_kv_heads=3, tied=True),
    "bloom": lambda path: build_bloom(path, hidden_size=192),
    "bloom-untied": lambda path: build_bloom(path, hidden_size=192, tied=False),
    "gptq": build_gptq,
    "gptq-desc-act": lambda path: build_gptq(path, desc_act=True),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in made:
            made[name] = BUILDERS[name](tmp_path_factory.mktemp(name) / name)
        return made[name]

    return model


def write(model: Path, output: Path, num_ranks: int, dtype: str = "bfloat16", **options: int) -> Path:
    return write_shards(describe(model, tokenizer=False), output, num_ranks, dtype, **options)[0].path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", "bfloat16"),
        ("llama-uneven", "bfloat16"),
        ("bloom", "bfloat16"),
        ("llama", "int8:g32"),
        ("llama", "int4:g32"),
        ("llama", "int4:g32:sym"),
        ("bloom", "int4:g32"),
        ("bloom-untied", "int8:g32:asym"),
        ("gptq", "bfloat16"),
        ("gptq-desc-act", "bfloat16"),
    ],
)
def test_every_file_is_that_which_the_checkpoint_becomes(
    models: Callable[[str], Path], tmp_path: Path, name: str, dtype: str
) -> None:
    source = models(name)
    # What 4 ranks would cut through a group, desc_act can only have whole.
    numbers = (1, 1) if name == "gptq-desc-act" else (2, 3, 1, 2)
    path = write(source, tmp_path / "first", numbers[0], dtype)
    for step, num_ranks in enumerate(numbers[1:]):
        path = write(path, tmp_path / f"step-{step}", num_ranks, num_threads=1 + step % 2)
        assert contents(path) == contents(write(source, tmp_path / f"direct-{step}", num_ranks, dtype))


def test_it_computes_what_the_checkpoint_does(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(write(models("llama"), tmp_path / "first", 1, "int4:g32"), tmp_path / "second", 2)

    def tokens(model: Path, dtype: str) -> list[list[int]]:
        def work(collectives: Collectives) -> list[list[int]]:
            return Runner(model, collectives, dtype).greedy([[5, 6, 7]], 6)

        return run_ranks(2, work)[0]

    assert tokens(path, "bfloat16") == tokens(models("llama"), "int4:g32")


@pytest.mark.parametrize(
    ("dtype", "before", "after", "share"),
    [
        ("int8", 2, 1, "all"),  # two scales of a row cannot become one
        ("int8", 1, 2, "all"),
        ("int4:g128", 2, 3, "128 neighbouring"),
        ("int4:g64", 1, 2, "64 neighbouring"),  # 96 inputs of the attention on each rank
    ],
)
def test_a_cut_through_a_group_is_refused(
    models: Callable[[str], Path], tmp_path: Path, dtype: str, before: int, after: int, share: str
) -> None:
    path = write(models("llama"), tmp_path / "first", before, dtype)
    with pytest.raises(
        ShardingError, match=rf"cannot be written for {after} ranks? instead of {before}: {share} inputs"
    ) as caught:
        write(path, tmp_path / "second", after)
    assert caught.value.hint == "write it from the checkpoint that it was made of"
    assert not (tmp_path / "second").exists()


def test_another_dtype_is_refused(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(models("llama"), tmp_path / "first", 2, "int4:g32")
    with pytest.raises(ConfigError, match=r"dtype int8: .* was written with weights as int4:g32:asym"):
        write(path, tmp_path / "second", 3, "int8")


def test_a_model_may_take_its_own_place(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(models("bloom"), tmp_path / "model", 2)
    with pytest.raises(ConfigError, match="has bloom as bfloat16 for 2 ranks, which is not what would be written"):
        write(path, path, 3)
    write(path, path, 3, force=True)
    assert contents(path) == contents(write(models("bloom"), tmp_path / "direct", 3))


def test_files_that_others_replace_meanwhile_are_read_to_their_end(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was opened by its name again for every MiB, with the places that the header of the first had told."""
    two = write(models("llama"), tmp_path / "two", 2)
    expected = contents(write(two, tmp_path / "three", 3))
    parts = resharding.rank_tensors

    def find_and_replace(description: ModelDescription, plan: ShardPlan, rank: int, descriptor: int) -> Any:
        found = parts(description, plan, rank, descriptor)
        path = two / f"rank-{rank:05d}-of-00002.safetensors"
        path.with_name("other").write_bytes(bytes(path.stat().st_size))
        path.with_name("other").replace(path)
        return found

    monkeypatch.setattr(resharding, "rank_tensors", find_and_replace)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert contents(write(two, tmp_path / "again", 3)) == expected
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_headers_are_read_once_whatever_the_ranks(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = write(models("llama"), tmp_path / "two", 2)
    opened: list[Path] = []
    original = resharding.opened
    monkeypatch.setattr(resharding, "opened", lambda path: (opened.append(path), original(path))[1])
    write(two, tmp_path / "three", 3)
    assert [path.name for path in opened] == [f"rank-{rank:05d}-of-00002.safetensors" for rank in range(2)]


def test_each_parameter_costs_the_same_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with thousands of experts was walked whole for each of its parameters."""
    calls: list[str] = []
    field, local_shape = Parameter.field, ShardPlan.local_shape
    assert isinstance(field, property) and field.fget is not None
    of_field = field.fget
    monkeypatch.setattr(Parameter, "field", property(lambda self: (calls.append("field"), of_field(self))[1]))
    monkeypatch.setattr(
        ShardPlan, "local_shape", lambda self, *of: (calls.append("local_shape"), local_shape(self, *of))[1]
    )

    def cost(num_experts: int) -> float:
        path = tmp_path / str(num_experts)
        two = write(build_family(path / "model", "mixtral", num_local_experts=num_experts), path / "two", 2)
        calls.clear()
        write(two, path / "three", 3)
        return len(calls) / len(model_parameters(describe(two, tokenizer=False)))

    few, many = cost(3), cost(16)
    assert many < 1.2 * few
