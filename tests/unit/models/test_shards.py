"""Models that `corebound shard` wrote: tokens of the checkpoint they were made of, and every damage named."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies
from safetensors.torch import load_file, save_file

from corebound import kernels
from corebound.comm import Collectives
from corebound.errors import ConfigError, CoreboundError, HostError, KernelError, ModelLoadError, ShardingError
from corebound.kernels.panel_format import PanelFormat
from corebound.models import describe, load_model, shard_reading, shard_writing, verify_manifest
from corebound.models.manifest import SHARDS_FILE
from corebound.models.shard_reading import read_rank
from corebound.models.shard_writing import write_shards
from corebound.models.shards import Shards, read_shards
from corebound.sharding import checkpoint, shard_plan
from fixtures.decoder_families import CASES
from fixtures.decoding import Runner
from fixtures.packed_weights import pack_model
from fixtures.thread_group import run_ranks
from fixtures.tiny_models import VOCAB_SIZE, build_bloom, build_llama

pytestmark = pytest.mark.native

PROMPTS = [
    [int(token) for token in torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(length))]
    for length in (23, 1, 9)
]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm", "zero_point": True}


def build_packed(path: Path, **config: Any) -> Path:
    source = build_llama(path.with_name("source"), num_heads=8, hidden_size=128, intermediate_size=256)
    pack_model(source, path, **config)
    return path


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "bloom-tied": build_bloom,
    "bloom-untied": lambda path: build_bloom(path, tied=False),
    "llama-biases": lambda path: build_llama(path, attention_bias=True, mlp_bias=True),
    "gptj": CASES["gptj"],
    "opt": CASES["opt"],
    "qwen3-biases": CASES["qwen3-biases"],
    "falcon-uneven-groups": CASES["falcon-uneven-groups"],
    "phi3": CASES["phi3"],
    "mixtral": CASES["mixtral"],
    "qwen2_moe": CASES["qwen2_moe"],
    "gptq": lambda path: build_packed(path, **GPTQ),
    "awq-per-channel": lambda path: build_packed(path, **AWQ),
    "gptq-desc-act": lambda path: build_packed(path, **GPTQ | {"desc_act": True}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in made:
            made[name] = BUILDERS[name](tmp_path_factory.mktemp(name) / name)
        return made[name]

    return model


@pytest.fixture
def bloom(models: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a BLOOM written for 2 ranks, int4."""
    return write(models("bloom-tied"), tmp_path / "bloom-2", 2, "int4:g32").path


@pytest.fixture(autouse=True)
def native_kernels() -> Any:
    with kernels.forced(mode="native"):
        yield


def write(model: Path, output: Path, num_ranks: int, dtype: str = "bfloat16", **options: Any) -> Shards:
    return write_shards(describe(model, tokenizer=False), output, num_ranks, dtype, **options)[0]


def run(path: Path, num_ranks: int, dtype: str = "bfloat16") -> tuple[torch.Tensor, list[list[int]]]:
    def work(collectives: Collectives) -> tuple[torch.Tensor, list[list[int]]]:
        runner = Runner(path, collectives, dtype)
        return torch.cat(runner.logits(PROMPTS)), runner.greedy(PROMPTS, 6)

    return run_ranks(num_ranks, work)[0]


@pytest.mark.parametrize(
    ("name", "num_ranks", "dtype"),
    [
        ("bloom-tied", 2, "bfloat16"),
        ("bloom-tied", 3, "int4:g32"),
        ("bloom-untied", 2, "int8"),
        ("bloom-untied", 1, "int4:g32:sym"),
        ("llama-biases", 2, "bfloat16"),
        ("llama-biases", 3, "int8:g32"),
        ("gptj", 2, "bfloat16"),
        ("opt", 2, "int8"),
        ("qwen3-biases", 3, "bfloat16"),
        ("falcon-uneven-groups", 4, "int8"),
        ("phi3", 2, "int4:g32"),
        ("mixtral", 2, "int4:g32"),
        ("qwen2_moe", 3, "bfloat16"),
        ("gptq", 1, "bfloat16"),
        ("gptq", 2, "int4:g32:asym"),
        ("awq-per-channel", 2, "bfloat16"),
        ("gptq-desc-act", 1, "bfloat16"),
    ],
)
def test_logits_and_tokens_are_those_of_the_checkpoint(
    models: Callable[[str], Path], tmp_path: Path, name: str, num_ranks: int, dtype: str
) -> None:
    shards = write(models(name), tmp_path / "out", num_ranks, dtype)
    expected, found = run(models(name), num_ranks, dtype), run(tmp_path / "out", num_ranks)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert read_shards(tmp_path / "out") == shards
    # The dtype that it was written in may be named.
    assert run(tmp_path / "out", num_ranks, dtype)[1] == expected[1]


def test_a_rank_reads_its_file_and_no_more(bloom: Path) -> None:
    seen: list[tuple[int, int]] = []
    expected = [size for name, (_, size) in read_shards(bloom).files.items() if name.startswith("rank-")]
    run_ranks(2, lambda group: load_model(bloom, "bfloat16", group, lambda *at: seen.append(at)))
    done, total = seen[-1]
    assert done == total
    assert {total for _, total in seen} == set(expected)


def test_mapped_or_read_it_is_the_same(bloom: Path) -> None:
    description = describe(bloom, tokenizer=False)
    plan = shard_plan(description, 2)
    for rank in range(2):
        parts = [read_rank(description, plan, rank, mapped=mapped, num_threads=2) for mapped in (True, False)]
        (mapped, mapped_fields), (read, fields) = parts
        assert mapped.keys() == read.keys()
        assert all(torch.equal(mapped[field].memory, read[field].memory) for field in read)
        assert mapped_fields.keys() == fields.keys()
        assert all(torch.equal(mapped_fields[field], fields[field]) for field in fields)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_another_replaces_meanwhile_is_read_to_its_end(
    bloom: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    """Its header told where the tensors of the other file lie."""
    description = describe(bloom, tokenizer=False)
    plan = shard_plan(description, 2)
    expected, expected_fields = read_rank(description, plan, 0, mapped=False)
    find = shard_reading.rank_tensors

    def find_and_replace(*args: Any) -> Any:
        found = find(*args)
        path = bloom / "rank-00000-of-00002.safetensors"
        path.with_name("other").write_bytes(bytes(path.stat().st_size))
        path.with_name("other").replace(path)
        return found

    monkeypatch.setattr(shard_reading, "rank_tensors", find_and_replace)
    matrices, fields = read_rank(description, plan, 0, mapped=mapped)
    assert all(torch.equal(matrices[field].memory, expected[field].memory) for field in expected)
    assert all(torch.equal(fields[field], expected_fields[field]) for field in expected_fields)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_of_another_size_than_the_manifest_says_is_an_error(bloom: Path, mapped: bool) -> None:
    description = describe(bloom, tokenizer=False)
    path = bloom / "rank-00000-of-00002.safetensors"
    num_bytes = path.stat().st_size
    save_file(load_file(path), path, metadata={"written": "since"})
    with pytest.raises(ModelLoadError, match=rf"rank-00000-of-00002\.safetensors: expected {num_bytes} bytes, as"):
        read_rank(description, shard_plan(description, 2), 0, mapped=mapped)


def test_a_file_that_grows_or_shrinks_after_its_header_was_read_is_not_mapped(
    bloom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = describe(bloom, tokenizer=False)
    path = bloom / "rank-00000-of-00002.safetensors"
    num_bytes = path.stat().st_size
    find = shard_reading.rank_tensors

    def find_and_cut(*args: Any) -> Any:
        found = find(*args)
        os.truncate(path, 5000)
        return found

    monkeypatch.setattr(shard_reading, "rank_tensors", find_and_cut)
    with pytest.raises(ModelLoadError, match=rf"changed while it was read: expected {num_bytes} bytes, found 5000"):
        read_rank(description, shard_plan(description, 2), 0, mapped=True)


def test_with_several_memory_nodes_it_is_read(bloom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("mapped")

    description = describe(bloom, tokenizer=False)
    monkeypatch.setattr(shard_reading, "map_file", refuse)
    one = shard_reading.read_topology()
    with pytest.raises(AssertionError, match="mapped"):
        read_rank(description, shard_plan(description, 2), 0)
    two = dataclasses.replace(one, nodes=(*one.nodes, *one.nodes))
    monkeypatch.setattr(shard_reading, "read_topology", lambda: two)
    read_rank(description, shard_plan(description, 2), 0)


def test_a_large_file_in_small_pages_is_read(bloom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = describe(bloom, tokenizer=False)
    plan = shard_plan(description, 2)
    memory = dataclasses.replace(shard_reading.read_topology().memory, transparent_huge_pages="madvise")
    topology = dataclasses.replace(shard_reading.read_topology(), memory=memory)
    monkeypatch.setattr(shard_reading, "read_topology", lambda: topology)
    monkeypatch.setattr(shard_reading, "_SMALL_BYTES", 0)
    filled: list[object] = []
    fill = shard_reading._fill
    monkeypatch.setattr(shard_reading, "_fill", lambda *args: (filled.append(args), fill(*args)))
    for huge, reads in ((1 << 30, 0), (0, 1)):
        monkeypatch.setattr(shard_reading, "huge_bytes", lambda _, huge=huge: huge)
        read_rank(description, plan, 0)
        assert len(filled) == reads


def test_everything_a_model_directory_needs_is_there(models: Callable[[str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(models("bloom-tied"), tmp_path / "source"))
    (source / "tokenizer.json").write_text('{"model": {}}')
    write(source, tmp_path / "out", 2)
    assert describe(tmp_path / "out").num_layers == 2
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    verified = verify_manifest(tmp_path / "out")
    assert verified is not None
    assert verified.unlisted == ()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_there_and_whole_is_kept(models: Callable[[str], Path], bloom: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in bloom.iterdir()}
    description = describe(models("bloom-tied"), tokenizer=False)
    shards, written = write_shards(description, bloom, 2, "int4:g32")
    assert not written
    assert shards == read_shards(bloom)
    assert {path.name: path.stat().st_mtime_ns for path in bloom.iterdir()} == before
    assert write_shards(description, bloom, 2, "int4:g32", force=True)[1]


@pytest.mark.parametrize(("num_ranks", "dtype"), [(1, "int4:g32"), (2, "int4:g32:sym"), (2, "bfloat16")])
def test_what_is_there_and_different_is_kept_unless_forced(
    models: Callable[[str], Path], bloom: Path, num_ranks: int, dtype: str
) -> None:
    with pytest.raises(ConfigError, match=r"has bloom-tied as int4:g32:asym for 2 ranks, which is not what") as caught:
        write(models("bloom-tied"), bloom, num_ranks, dtype)
    assert caught.value.hint == "--force replaces it"
    assert write(models("bloom-tied"), bloom, num_ranks, dtype, force=True) == read_shards(bloom)
    assert run(bloom, num_ranks)[1] == run(models("bloom-tied"), num_ranks, dtype)[1]
    assert len(list(bloom.glob("rank-*"))) == num_ranks
    assert [path.name for path in bloom.parent.iterdir()] == [bloom.name]


def test_another_checkpoint_of_the_same_sizes_is_noticed(models: Callable[[str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(models("bloom-tied"), tmp_path / "source"))
    write(source, tmp_path / "out", 2)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(ConfigError, match="which is not what would be written"):
        write(source, tmp_path / "out", 2)


@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_replaced_that_something_else_wrote(
    models: Callable[[str], Path], tmp_path: Path, force: bool
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match="expected a new directory, found a directory that `corebound shard` did not"):
        write(models("bloom-tied"), tmp_path / "mine", 1, force=force)
    with pytest.raises(ConfigError, match="expected a new directory, found a file"):
        write(models("bloom-tied"), tmp_path / "mine" / "thesis.txt", 1, force=force)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    (tmp_path / "empty").mkdir()
    write(models("bloom-tied"), tmp_path / "empty", 1)


def test_a_failure_leaves_what_was_there(
    models: Callable[[str], Path], bloom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in bloom.iterdir()}

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_writing.os, "fsync", full)
    with pytest.raises(HostError, match=r"--output .*: cannot be written: No space left on device") as caught:
        write(models("bloom-tied"), bloom, 3, force=True)
    assert caught.value.exit_code == 3
    assert {path.name: path.read_bytes() for path in bloom.iterdir()} == before
    assert [path.name for path in bloom.parent.iterdir()] == [bloom.name]


def test_a_disk_that_is_too_small_is_refused_with_what_is_needed(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writing.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(HostError, match=r"too small: \d+\.\d MiB needed, 0\.0 MiB free"):
        write(models("bloom-tied"), tmp_path / "out", 1)
    assert list(tmp_path.iterdir()) == []


def test_the_need_for_room_is_what_is_written(models: Callable[[str], Path], tmp_path: Path) -> None:
    asked: list[int] = []
    check = shard_writing._check_room
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writing, "_check_room", lambda where, size: (asked.append(size), check(where, size)))
        shards = write(models("gptq"), tmp_path / "out", 2)
    assert 0 <= shards.num_bytes - asked[0] <= 2 * 8192  # headers


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_types_without_panels_are_refused(models: Callable[[str], Path], tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"dtype {dtype}: only bfloat16, int8 and int4"):
        write(models("bloom-tied"), tmp_path / "out", 1, dtype)


def test_a_packed_checkpoint_keeps_its_scheme(models: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the weights of gptq are gptq int4:g32:asym and cannot be int8:channel:sym"):
        write(models("gptq"), tmp_path / "out", 1, "int8")


def test_another_number_of_ranks_names_the_command(bloom: Path) -> None:
    with pytest.raises(ShardingError, match="written for 2 ranks, found a launch of 3 ranks") as caught:
        run_ranks(3, lambda collectives: load_model(bloom, "bfloat16", collectives))
    assert caught.value.exit_code == 6
    assert caught.value.hint == (
        f"--num_accelerators 2 starts 2 ranks; or write it for others: "
        f"`corebound shard --model {bloom} --output {bloom}-3 --num-ranks 3`"
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4:g32:sym"])
def test_another_dtype_is_refused(bloom: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match=rf"dtype {dtype}: .* was written with weights as int4:g32:asym"):
        run_ranks(2, lambda collectives: load_model(bloom, dtype, collectives))


def test_without_native_kernels_it_cannot_run(bloom: Path) -> None:
    with kernels.forced(mode="reference"), pytest.raises(KernelError, match="by native kernels only"):
        run_ranks(2, lambda collectives: load_model(bloom, "bfloat16", collectives))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((path / SHARDS_FILE).read_text())
    change(values)
    (path / SHARDS_FILE).write_text(json.dumps(values))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def plain_int8_embedding(path: Path) -> None:
    """Call the tied head of rank 0 int8, in manifest and file alike, of a size that fits."""
    rank = path / "rank-00000-of-00002.safetensors"
    tensors = load_file(rank)
    edit(path, lambda v: v["ranks"][0]["matrices"]["embedding_weight"].update(kind="int8"))
    stored = read_shards(path).ranks[0].matrices["embedding_weight"]
    size = PanelFormat(kind="int8").matrix_bytes(stored.outputs, stored.inputs)
    save_file(tensors | {"embedding_weight": torch.zeros(size, dtype=torch.uint8)}, rank)
    edit(path, lambda v: v["files"][rank.name].update(bytes=rank.stat().st_size))


def test_gates_that_the_manifest_denies_are_named(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(models("llama-biases"), tmp_path / "out", 1).path
    edit(path, lambda v: v["ranks"][0]["matrices"]["layers.0.mlp_in_weight"].update(gated=False))
    with pytest.raises(ModelLoadError, match=r"mlp_in_weight': gated: expected True from config\.json, found False"):
        run_ranks(1, lambda collectives: load_model(path, "bfloat16", collectives))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            lambda p: edit(p, lambda v: v.update(panel_layout=99)),
            r"json: panel_layout: expected 1, .* found 99",
        ),
        (lambda p: edit(p, lambda v: v.update(format_version=1)), r"format_version: expected 2, .* found 1"),
        (lambda p: edit(p, lambda v: v["ranks"].pop()), "ranks: expected 2 entries, as num_ranks says, found 1"),
        (lambda p: edit(p, lambda v: v.pop("weights")), "weights: expected a text, found null"),
        (lambda p: edit(p, lambda v: v["ranks"][1].update(file="../x")), r"ranks\[1\]\.file: expected a file name"),
        (
            lambda p: edit(p, lambda v: v["ranks"][0]["matrices"]["layers.0.qkv_weight"].update(kind="int2")),
            r"matrices\.layers\.0\.qkv_weight\.kind: expected one of bfloat16, int8, int4",
        ),
        (
            lambda p: edit(p, lambda v: v["ranks"][0]["matrices"]["layers.0.qkv_weight"].update(outputs=64)),
            r"rank-00000-of-00002\.safetensors: matrix 'layers\.0\.qkv_weight': expected \[72, 48\] from config\.json, "
            r"found \[64, 48\]",
        ),
        (
            lambda p: edit(p, lambda v: v["ranks"][0]["matrices"]["layers.0.qkv_weight"].update(kind="int8")),
            r"tensor 'layers\.0\.qkv_weight': expected U8 \[\d+\], found U8 \[\d+\]",
        ),
        (
            lambda p: edit(p, lambda v: v["ranks"][0]["matrices"]["layers.1.mlp_in_weight"].update(gated=True)),
            r"rank-00000-of-00002\.safetensors: matrix 'layers\.1\.mlp_in_weight': gated: expected False from "
            r"config\.json, found True",
        ),
        (plain_int8_embedding, r"matrix 'embedding_weight': kind: expected bfloat16, found int8"),
        (lambda p: (p / SHARDS_FILE).write_text("{"), r"shards\.json, line 1"),
        (lambda p: (p / "rank-00001-of-00002.safetensors").unlink(), r"rank-00001-of-00002\.safetensors: missing"),
        (
            lambda p: os.truncate(p / "rank-00001-of-00002.safetensors", 5000),
            r"rank-00001-of-00002\.safetensors: damaged or not copied completely: expected \d+ bytes, found 5000",
        ),
    ],
)
def test_damage_is_named(bloom: Path, damage: Callable[[Path], object], problem: str) -> None:
    damage(bloom)
    with pytest.raises(CoreboundError, match=problem) as caught:
        run_ranks(2, lambda collectives: load_model(bloom, "bfloat16", collectives))
    assert caught.value.exit_code == 6


def test_a_file_that_is_another_ranks_is_named(tmp_path: Path) -> None:
    """Of equal sizes: digests and sizes of both are right, and the model would have been another."""
    path = write(build_bloom(tmp_path / "even", vocab_size=102), tmp_path / "out", 2).path
    first, second = (rank.name for rank in read_shards(path).ranks)
    shutil.copyfile(path / first, path / second)
    edit(path, lambda v: v["files"][second].update(v["files"][first]))
    description = describe(path, tokenizer=False)
    with pytest.raises(ModelLoadError, match=r"json: rank: expected 0, as rank-00001-of-00002\.saf.* says, found 1"):
        read_rank(description, shard_plan(description, 2), 1)


def test_a_type_of_scales_of_the_same_size_is_named(bloom: Path) -> None:
    """bfloat16 scales read as float16 gave other weights, in silence."""
    edit(bloom, lambda v: v["ranks"][0]["matrices"]["layers.0.qkv_weight"].update(scale_kind="float16"))
    with pytest.raises(
        ModelLoadError,
        match=r"shards\.json: ranks\[0\]\.matrices\.layers\.0\.qkv_weight: expected .*bfloat16.* found .*float16",
    ):
        read_rank(describe(bloom, tokenizer=False), shard_plan(describe(bloom, tokenizer=False), 2), 0)


def test_whatever_is_changed_in_the_manifest_is_an_error_or_changes_no_weight(bloom: Path) -> None:
    manifest = bloom / SHARDS_FILE
    text = manifest.read_text()
    places = list(leaves(json.loads(text)))
    expected = weights_of(bloom)

    @settings(
        max_examples=60,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(strategies.sampled_from(places), strategies.data())
    def check(place: tuple[str | int, ...], data: strategies.DataObject) -> None:
        values = json.loads(text)
        *outer, last = place
        owner = functools.reduce(lambda found, key: found[key], outer, values)
        others = [functools.reduce(lambda found, key: found[key], other, values) for other in places]
        near = sorted({json.dumps(other) for other in others if type(other) is type(owner[last])})
        kinds = ["set", "type", "remove"]
        kind = data.draw(strategies.sampled_from(kinds))
        if kind == "remove":
            del owner[last]
        elif kind == "set":
            words = ["float32", "bfloat16", "float16", "int4", "int8", None, 32, 160, 2**70, True, False, "..", ""]
            near_values = strategies.sampled_from([json.loads(value) for value in near])
            owner[last] = data.draw(strategies.one_of(near_values, strategies.sampled_from(words)))
        else:
            owner[last] = data.draw(JSON_VALUES)
        manifest.write_text(json.dumps(values))
        try:
            found = weights_of(bloom)
        except ModelLoadError:
            return
        assert found == expected

    check()


JSON_VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text(),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3),
    max_leaves=5,
)


def leaves(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of everything in a JSON value, objects and lists included."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*place, key))


def weights_of(path: Path) -> list[tuple[Any, ...]]:
    """Return all that decides what the ranks of a written model compute with."""
    description = describe(path, tokenizer=False)
    assert description.shards is not None
    description.shards.require_ranks(2)
    plan = shard_plan(description, 2)
    found = []
    for rank in range(2):
        matrices, fields = read_rank(description, plan, rank, mapped=False)
        for field, matrix in sorted(matrices.items()):
            form = (matrix.form, matrix.outputs, matrix.inputs, matrix.gated)
            found.append((field, form, hashlib.sha256(matrix.memory.numpy().tobytes()).hexdigest()))
        found += [(field, tensor.float().tolist()) for field, tensor in sorted(fields.items())]
    return found


def test_a_flipped_bit_is_found_by_its_digest(models: Callable[[str], Path], bloom: Path) -> None:
    flip(bloom / "rank-00001-of-00002.safetensors")
    with pytest.raises(ModelLoadError, match=r"rank-00001-of-00002\.safetensors: damaged: expected SHA-256"):
        verify_manifest(bloom)
    # So it is where the same is asked for again.
    with pytest.raises(ModelLoadError, match=r"damaged: expected SHA-256") as caught:
        write(models("bloom-tied"), bloom, 2, "int4:g32")
    assert caught.value.hint == "--force writes it anew"
    write(models("bloom-tied"), bloom, 2, "int4:g32", force=True)
    verify_manifest(bloom)


def test_the_header_of_a_file_is_parsed_once(bloom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []
    parse = checkpoint._parse
    monkeypatch.setattr(checkpoint, "_parse", lambda path, *of: (parsed.append(path), parse(path, *of))[1])
    description = describe(bloom, tokenizer=False)
    read_rank(description, shard_plan(description, 2), 1)
    assert [path.name for path in parsed] == ["rank-00001-of-00002.safetensors"]
