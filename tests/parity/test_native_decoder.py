"""Whole steps by the native decoder: every variant, teams of several sizes, quantized weights, and failures inside."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.synchronize
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from corebound.comm.single import SingleCollectives
from corebound.engine.step import SamplingRow, StepInput, decode_step, encode_step
from corebound.errors import CommError, KernelError
from corebound.models import loading, rope
from corebound.models.loading import load_model
from corebound.models.native_decoder import NativeDecoder
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import parse_scheme
from fixtures.decoding import Runner
from fixtures.thread_group import ThreadCollectives, run_ranks
from fixtures.tiny_models import NUM_LAYERS, VOCAB_SIZE, build_bloom, build_family, build_llama

pytestmark = pytest.mark.native

Builder = Callable[[Path], Path]
MODELS: dict[str, Builder] = {
    "bloom": lambda path: build_bloom(path, tied=True),
    "llama": lambda path: build_llama(path, num_kv_heads=2, tied=False),
    "llama-odd": lambda path: build_llama(path, num_heads=15, num_kv_heads=3, attention_bias=True, mlp_bias=True),
}
PROMPTS = [
    [int(token) for token in torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(length))]
    for length in (37, 1, 9, 16)
]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp(request.param) / request.param)


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes teams of the given size, more threads than CPUs if need be."""
    available = loading.team_cpus()

    def set_size(size: int) -> None:
        cpus = (available * size)[:size]
        monkeypatch.setattr(loading, "team_cpus", lambda: cpus)

    return set_size


def logits_of(path: Path, dtype: str = "bfloat16", prompts: Sequence[Sequence[int]] = PROMPTS) -> torch.Tensor:
    runner = Runner(path, SingleCollectives(), dtype)
    assert isinstance(runner.decoder, NativeDecoder)
    return torch.cat(runner.logits(prompts))


def exact_logits(path: Path, scheme: str | None = None, prompts: Sequence[Sequence[int]] = PROMPTS) -> torch.Tensor:
    """float32, with the weights that the scheme, or bfloat16, leaves; by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float()
    if scheme is not None:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
                module.weight.data = dequantize(quantize(module.weight.data, parse_scheme(scheme)))
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([prompt])).logits[0] for prompt in prompts])


def rms(x: torch.Tensor) -> float:
    return math.sqrt(float(x.square().mean()))


def bound_of(exact: torch.Tensor) -> float:
    """The root mean square error of bfloat16 activations, three times the expected one."""
    return 3 * 2**-9 * math.sqrt(8 * NUM_LAYERS + 4) * rms(exact)


def test_every_variant_gives_the_logits_of_bf16(variant: str, model: Path) -> None:
    exact = exact_logits(model)
    assert rms(logits_of(model) - exact) <= bound_of(exact)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_a_team_of_any_size_gives_the_same_bits(team: Callable[[int], None], model: Path, dtype: str) -> None:
    found = []
    for size in (1, 2, 5):
        team(size)
        found.append(torch.cat([logits_of(model, dtype), logits_of(model, dtype, [PROMPTS[0][:20]])]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def assert_best_words(decoder: NativeDecoder, logits: torch.Tensor) -> None:
    assert decoder.best_words is not None
    expected = logits.max(dim=1)
    values = torch.tensor(decoder.best_words.values.tolist())
    assert torch.equal(values.nan_to_num(7e9), expected.values.nan_to_num(7e9))
    numbers = ~expected.values.isnan()
    assert torch.equal(torch.tensor(decoder.best_words.words.tolist())[numbers], expected.indices[numbers])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_step_finds_the_best_word_of_every_row(team: Callable[[int], None], model: Path, size: int) -> None:
    team(size)
    runner = Runner(model, SingleCollectives(), "bfloat16")
    assert isinstance(runner.decoder, NativeDecoder)
    for num_rows in range(1, 18):
        logits = torch.cat(runner.logits([[3 + place for place in range(num_rows)]]))
        assert logits.shape == (num_rows, VOCAB_SIZE)
        assert_best_words(runner.decoder, logits)


def test_every_variant_finds_the_best_words(variant: str, model: Path) -> None:
    runner = Runner(model, SingleCollectives(), "bfloat16")
    assert_best_words(runner.decoder, torch.cat(runner.logits(PROMPTS)))
    assert_best_words(runner.decoder, torch.cat(runner.logits([[7]])))


def test_logits_that_are_divided_afterwards_have_no_best_words(tmp_path: Path) -> None:
    runner = Runner(build_family(tmp_path / "granite", "granite", logits_scaling=7.0), SingleCollectives(), "bfloat16")
    assert isinstance(runner.decoder, NativeDecoder)
    assert runner.decoder.description.logits_divisor == 7.0
    runner.logits(PROMPTS)
    assert runner.decoder.best_words is None


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_steps_in_one_call_give_the_tokens_of_single_ones(
    team: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, model: Path, size: int, dtype: str
) -> None:
    team(size)
    runner = Runner(model, SingleCollectives(), dtype)
    assert isinstance(runner.decoder, NativeDecoder)
    for num_new_tokens in (2, 3, 30):  # across the ends of blocks
        expected = runner.greedy(PROMPTS, num_new_tokens)
        assert runner.greedy_together(PROMPTS, num_new_tokens) == expected
    # Rotary angles for all steps are there before the first: those of the prompts are for 64 positions.
    monkeypatch.setattr(rope, "_FIRST_POSITIONS", 1)
    fresh = Runner(model, SingleCollectives(), dtype)
    assert fresh.greedy_together(PROMPTS, 60) == runner.greedy(PROMPTS, 60)


def test_steps_in_one_call_are_for_ranks_that_share_memory_and_logits_as_they_are_found(
    model: Path, tmp_path: Path
) -> None:
    divided = build_family(tmp_path / "granite", "granite", logits_scaling=7.0)
    assert Runner(divided, SingleCollectives(), "bfloat16").decoder.greedy_steps is None
    assert Runner(model, SingleCollectives(), "float32").decoder.greedy_steps is None

    def work(group: ThreadCollectives) -> bool:
        return Runner(model, group, "bfloat16").decoder.greedy_steps is None

    assert run_ranks(2, work) == [True, True]


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_steps_beyond_the_positions_of_a_model_or_of_several_tokens_are_refused(model: Path, tmp_path: Path) -> None:
    runner = Runner(model, SingleCollectives(), "bfloat16")
    steps = runner.decoder.greedy_steps
    assert steps is not None
    batch = decode_step(encode_step([StepInput([3, 4], 0, [0, 1], SamplingRow())], 8)).batch
    with pytest.raises(KernelError, match="one token of every sequence"):
        steps(batch, runner._cache, 2)
    learned = Runner(build_family(tmp_path / "opt", "opt"), SingleCollectives(), "bfloat16")
    longest = learned.decoder.description.max_positions
    assert longest is not None
    learned.greedy_together([[5] * (longest - 4)], 5)
    with pytest.raises(KernelError, match="positions, of which"):
        learned.greedy_together([[5] * (longest - 4)], 6)


def test_long_contexts_are_taken_in_parts_with_the_same_bits_for_a_team_of_any_size(
    team: Callable[[int], None], tmp_path: Path
) -> None:
    model = build_llama(tmp_path, num_kv_heads=2, max_position_embeddings=2048)
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, VOCAB_SIZE, (length,), generator=draw).tolist() for length in (1200, 513, 40)]
    exact = Runner(model, SingleCollectives(), "float32", num_blocks=224).logits(prompts)
    last = torch.stack([logits[-1] for logits in exact])
    found = []
    for size in (1, 2, 5):
        team(size)
        runner = Runner(model, SingleCollectives(), "bfloat16", num_blocks=224)
        assert isinstance(runner.decoder, NativeDecoder)
        found.append(runner.last_logits(prompts))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert rms(found[0] - last) <= bound_of(last)


# A tied embedding is in panels, where no test writes.
@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_logits_of_one_sequence_do_not_depend_on_a_broken_one(model: Path) -> None:
    whole = logits_of(model, prompts=PROMPTS[:2])
    decoder = Runner(model, SingleCollectives(), "bfloat16")
    embedding = decoder.decoder.weights.embedding
    assert embedding is not None
    embedding[PROMPTS[1][0]] = float("nan")
    first, second = decoder.logits(PROMPTS[:2])
    assert torch.equal(first, whole[: len(PROMPTS[0])])
    assert bool(second.isnan().all())
    assert_best_words(decoder.decoder, torch.cat([first, second]))


@pytest.mark.parametrize("scheme", ["int8", "int8:g32:asym", "int4", "int4:channel:sym"])
@pytest.mark.parametrize("batched", [True, False])
def test_quantized_logits_are_those_of_what_the_codes_mean(
    variant: str, tmp_path: Path, scheme: str, batched: bool
) -> None:
    path = build_llama(tmp_path / "llama", num_kv_heads=2, tied=True)
    exact = exact_logits(path, scheme)
    if batched:
        found = logits_of(path, scheme)
    else:
        found = torch.cat([logits_of(path, scheme, [prompt[:1]]) for prompt in PROMPTS])
        starts = torch.tensor([0, *(len(prompt) for prompt in PROMPTS[:-1])]).cumsum(0)
        exact = exact[starts]
    # AMX rounds weights with group scales to bf16 too, which doubles the square of the error.
    assert rms(found - exact) <= 1.5 * bound_of(exact)


@pytest.mark.parametrize("scheme", ["int8", "int8:g32:asym"])
def test_quantized_steps_of_more_than_64_tokens_are_what_the_codes_mean(
    variant: str, tmp_path: Path, scheme: str
) -> None:
    path = build_llama(tmp_path / "llama", num_kv_heads=2, tied=True)
    prompts = [*PROMPTS, PROMPTS[0][:20]]
    assert sum(map(len, prompts)) > 64
    exact = exact_logits(path, scheme, prompts)
    assert rms(logits_of(path, scheme, prompts) - exact) <= 1.5 * bound_of(exact)


def test_a_failing_sum_over_ranks_reaches_the_caller(model: Path) -> None:
    class Failing(ThreadCollectives):
        def all_reduce(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
            raise CommError("rank 1 is gone")

    def work(group: ThreadCollectives) -> str:
        runner = Runner(model, group, "bfloat16")
        group.__class__ = Failing
        with pytest.raises(CommError) as caught:
            runner.logits(PROMPTS)
        return caught.value.message

    assert run_ranks(2, work) == ["rank 1 is gone"] * 2


def test_an_interrupt_within_a_sum_over_ranks_reaches_the_caller(model: Path) -> None:
    class Interrupted(ThreadCollectives):
        def all_reduce(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
            raise KeyboardInterrupt

    def work(group: ThreadCollectives) -> bool:
        runner = Runner(model, group, "bfloat16")
        group.__class__ = Interrupted
        with pytest.raises(KeyboardInterrupt):
            runner.logits(PROMPTS)
        return True

    assert run_ranks(2, work) == [True, True]


def test_heads_that_attention_has_no_room_for_are_refused(tmp_path: Path) -> None:
    path = build_llama(tmp_path / "llama", num_kv_heads=2, tied=True, head_dim=576)
    with pytest.raises(KernelError, match="heads of 1 to 512 dimensions, found 576"):
        load_model(path, "bfloat16", SingleCollectives())


@pytest.mark.parametrize(
    ("num_cores", "num_threads", "local", "expected"),
    [
        (8, 4, None, [0, 1, 2, 3]),
        (8, 4, (1, 2), [4, 5, 6, 7]),
        (4, 4, (1, 2), [0, 1, 2, 3]),
        (4, 3, (1, 2), [-1, -1, -1]),
        (2, 4, None, [0, 1, 10, 11]),
    ],
)
def test_teams_of_ranks_that_are_not_bound_keep_apart(
    monkeypatch: pytest.MonkeyPatch,
    num_cores: int,
    num_threads: int,
    local: tuple[int, int] | None,
    expected: list[int],
) -> None:
    cores = [SimpleNamespace(cpus=(cpu, cpu + 10)) for cpu in range(num_cores)]
    allowed = [*range(num_cores), *range(10, 10 + num_cores)]
    monkeypatch.setattr(
        loading, "read_topology", lambda: SimpleNamespace(physical_cores=lambda: cores, allowed_cpus=allowed)
    )
    environment = SimpleNamespace(local_rank=local[0], local_size=local[1]) if local else None
    monkeypatch.setattr(loading, "rank_environment", lambda: environment)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    assert loading.team_cpus() == expected


@pytest.fixture
def free_tokens(model: Path) -> list[list[int]]:
    """The tokens that a team with its cores to itself finds."""
    return Runner(model, SingleCollectives(), "bfloat16").greedy(PROMPTS, 40)


def _spin(cpu: int, ready: multiprocessing.synchronize.Event) -> None:
    os.sched_setaffinity(0, {cpu})
    ready.set()
    while True:
        pass


@pytest.fixture
def busy_core() -> Iterator[None]:
    """Another process that never rests on the last CPU of the team."""
    ready = multiprocessing.Event()
    process = multiprocessing.Process(target=_spin, args=(loading.team_cpus()[-1], ready), daemon=True)
    process.start()
    assert ready.wait(30)
    yield
    process.kill()
    process.join()


def test_a_team_that_must_share_a_core_goes_on(
    model: Path, free_tokens: list[list[int]], request: pytest.FixtureRequest
) -> None:
    # With a member and without it, in turns: who is left out comes back after half a second and more.
    request.getfixturevalue("busy_core")
    runner = Runner(model, SingleCollectives(), "bfloat16")
    started_s = time.monotonic()
    while time.monotonic() - started_s < 5:
        assert runner.greedy(PROMPTS, 40) == free_tokens


def test_weights_are_in_memory_once(model: Path) -> None:
    decoder = load_model(model, "bfloat16", SingleCollectives())
    assert isinstance(decoder, NativeDecoder)
    smallest = 2 * decoder.description.num_parameters
    matrices = [decoder.weights.head, *(m for layer in decoder.weights.layers for m in layer.matrices())]
    assert all(matrix.num_bytes >= 2 * matrix.outputs * matrix.inputs for matrix in matrices)
    assert decoder.weight_bytes_per_token <= 3 * smallest  # these matrices are tiny: panels are 64 outputs by 32 inputs
