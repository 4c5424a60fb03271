"""init_inference on one rank and on ranks that are threads: tokens of transformers, weights from files, and errors."""

from __future__ import annotations

import io
import itertools
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, pipeline

import corebound
from corebound.accelerator.cpu import CpuAccelerator
from corebound.engine import progress
from corebound.errors import ConfigError, HostError, ModelLoadError, RequestError, ShardingError
from corebound.inference import InferenceEngine, OnDevice
from corebound.inference.agreement import share_random_state
from corebound.inference.configuration import InferenceConfig
from corebound.inference.prepare import prepare_module
from fixtures.families import FAMILIES
from fixtures.thread_group import run_ranks
from fixtures.tiny_models import build_bloom, build_llama

PADDED = torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 5, 9, 11, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
PLAIN = torch.tensor([[5, 6, 7, 8, 9, 10], [12, 14, 5, 9, 11, 3]])
CALLS: dict[str, dict[str, Any]] = {
    "plain": {"input_ids": PLAIN},
    "padded": {"input_ids": PADDED, "attention_mask": MASK},
    "beams": {"input_ids": PADDED, "attention_mask": MASK, "num_beams": 4},
}
MAX_NEW = 10


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"bloom": build_bloom(root / "bloom", tokenizer=True), "llama": build_llama(root / "llama")}


def loaded(path: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model


def empty(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    with OnDevice(dtype=dtype, device="meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    return model


def call(generate: Callable[..., Any], name: str = "plain", **more: Any) -> list[list[int]]:
    tokens: torch.Tensor = generate(**CALLS[name], max_new_tokens=MAX_NEW, pad_token_id=0, **more)
    return tokens.tolist()


def on_ranks(
    num_ranks: int, make: Callable[[], torch.nn.Module], use: Callable[[InferenceEngine], Any], **keywords: Any
) -> list[Any]:
    """What `use` returns on each rank of a model that all make and share."""
    config = InferenceConfig.read({"dtype": "fp32", **keywords})
    # Made one after the other: transformers changes its own classes while it loads, which threads must not do at once.
    models = [make() for _ in range(num_ranks)]

    def work(collectives: Any) -> Any:
        module = models[collectives.rank]
        return use(InferenceEngine(prepare_module(module, config, collectives), config, collectives))

    return run_ranks(num_ranks, work)


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> dict[tuple[str, str], list[list[int]]]:
    found = {}
    for family, path in models.items():
        plain = loaded(path)
        found |= {(family, name): call(plain.generate, name) for name in CALLS}
    return found


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_module_and_engine_give_the_tokens_of_transformers_with_padding_and_beams(
    family: str, num_ranks: int, models: dict[str, Path], expected: Any
) -> None:
    """DeepSpeed #2113, #2233, #2293, #2184, #3960: "garbage text after init_inference (mask/padding/alibi/dtype)"."""

    def use(engine: InferenceEngine) -> Any:
        return {name: (call(engine.module.generate, name), call(engine.generate, name)) for name in CALLS}

    for answers in on_ranks(num_ranks, lambda: loaded(models[family]), use):
        for name, (module, own) in answers.items():
            assert module == expected[family, name], (name, "module")
            assert own == expected[family, name], (name, "engine")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_engine_gives_the_tokens_of_every_familys_module_whoever_computes_them(family: str) -> None:
    expected = call(FAMILIES[family].build().generate)
    for answer in on_ranks(2, FAMILIES[family].build, lambda engine: call(engine.generate)):
        assert answer == expected


def test_beams_work_on_the_engine_itself(models: dict[str, Path], expected: Any) -> None:
    """DeepSpeed #2506: "generate with num_beams > 1 -> NotImplementedError"."""
    (own,) = on_ranks(1, lambda: loaded(models["bloom"]), lambda engine: call(engine.generate, "beams"))
    assert own == expected["bloom", "beams"]


def test_right_padding_continues_the_prompt_and_not_the_padding(models: dict[str, Path]) -> None:
    """DeepSpeed #3960: "wrong results with padding"."""
    ids, mask = torch.tensor([[5, 9, 11, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])

    def use(engine: InferenceEngine) -> Any:
        padded = engine.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, pad_token_id=0)
        alone = engine.generate(input_ids=ids[:, :4], max_new_tokens=6, pad_token_id=0)
        return padded[0, 6:].tolist(), alone[0, 4:].tolist()

    ((padded, alone),) = on_ranks(1, lambda: loaded(models["llama"]), use)
    assert padded == alone


def test_sampled_tokens_of_the_engine_are_those_of_rank_0_on_all_ranks(models: dict[str, Path]) -> None:
    """DeepSpeed: "broadcasts RNG state so sampling agrees"; here at every call. Threads share torch's generator, so the
    module's own sampling is seen in processes only."""

    def use(engine: InferenceEngine) -> Any:
        return [call(engine.generate, do_sample=True, top_k=20) for _ in range(3)]

    first, second = on_ranks(2, lambda: loaded(models["bloom"]), use)
    assert first == second


def test_sampling_follows_the_seed(models: dict[str, Path]) -> None:
    engine = corebound.init_inference(loaded(models["bloom"]), dtype="fp32")
    answers = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        answers.append(call(engine.generate, do_sample=True, top_k=20))
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("size", [1, 2])
def test_random_state_is_given_on_as_it_was(size: int) -> None:
    torch.manual_seed(11)
    expected = torch.get_rng_state()
    run_ranks(size, share_random_state)
    assert torch.equal(torch.get_rng_state(), expected)


def test_different_inputs_on_ranks_that_share_a_model_are_an_error_on_all(models: dict[str, Path]) -> None:
    """DeepSpeed #7278: "different prompts per rank -> garbage"."""

    def use(engine: InferenceEngine) -> Any:
        ids = PLAIN + engine.collectives.rank
        said = []
        for generate in (engine.generate, engine.module.generate):
            with pytest.raises(RequestError, match="those of rank 0 are not those of rank 1") as caught:
                generate(input_ids=ids, max_new_tokens=2)
            said.append(caught.value.message)
        return len(said), call(engine.generate)

    first, second = on_ranks(2, lambda: loaded(models["llama"]), use)
    assert first == second and first[0] == 2


def test_a_clock_must_not_end_a_generation_of_several_ranks(models: dict[str, Path]) -> None:
    def use(engine: InferenceEngine) -> None:
        with pytest.raises(RequestError, match="max_time on several ranks"):
            engine.module.generate(input_ids=PLAIN, max_time=1.0)

    on_ranks(2, lambda: loaded(models["llama"]), use)


def test_two_models_in_one_process_do_not_touch_each_other(models: dict[str, Path], expected: Any) -> None:
    """DeepSpeed #8316: "loading a second model in the process corrupted the first"."""
    config = InferenceConfig.read({"dtype": "fp32"})
    families = ("bloom", "llama", "bloom")
    made = [[loaded(models[family]) for family in families] for _ in range(2)]

    def work(collectives: Any) -> Any:
        engines = [
            InferenceEngine(prepare_module(model, config, collectives), config, collectives)
            for model in made[collectives.rank]
        ]
        return [call(engine.module.generate) for engine in engines] + [call(engine.generate) for engine in engines]

    names = families * 2
    for answers in run_ranks(2, work):
        assert answers == [expected[name, "plain"] for name in names]


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_a_model_on_the_meta_device_is_filled_from_its_checkpoint(
    family: str, num_ranks: int, models: dict[str, Path], expected: Any
) -> None:
    """DeepSpeed #3217: "BLOOM from checkpoint JSON with kernel injection off failed to load (meta tensors left)"."""
    files = [str(path) for path in sorted(models[family].glob("*.safetensors"))]

    def use(engine: InferenceEngine) -> Any:
        return call(engine.module.generate), call(engine.generate, "padded")

    checkpoint = {"type": "BLOOM", "checkpoints": files, "version": 1.0}
    answers = on_ranks(num_ranks, lambda: empty(models[family], torch.bfloat16), use, checkpoint=checkpoint)
    assert answers == [(expected[family, "plain"], expected[family, "padded"])] * num_ranks


def test_each_rank_reads_only_its_part_of_the_checkpoint(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed #3644, #3192, #6617: "each rank reads the full model"."""
    from corebound.inference import stored

    read: list[int] = []
    original = stored.read_rectangle

    def counting(descriptor: int, entry: Any, target: torch.Tensor, first_row: int, columns: range) -> None:
        read.append(target.nbytes)
        original(descriptor, entry, target, first_row, columns)

    monkeypatch.setattr(stored, "read_rectangle", counting)
    path = models["bloom"]
    held = on_ranks(
        2,
        lambda: empty(path),
        lambda engine: sum(parameter.nbytes for parameter in engine.module.parameters()),
        checkpoint=str(path),
    )
    assert sum(read) == sum(held) < 1.2 * sum(file.stat().st_size for file in path.glob("*.safetensors"))


def test_a_model_without_weights_is_an_error_that_names_them(models: dict[str, Path]) -> None:
    """DeepSpeed #3217: "meta tensors left"."""
    with pytest.raises(ModelLoadError, match=r"transformer\.word_embeddings\.weight") as caught:
        corebound.init_inference(empty(models["bloom"]))
    assert "checkpoint=" in str(caught.value.hint)


def test_a_checkpoint_for_a_model_with_weights_is_an_error(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="the model has weights already"):
        corebound.init_inference(loaded(models["bloom"]), checkpoint=str(models["bloom"]))


def test_a_checkpoint_of_another_model_is_an_error_that_names_the_tensor(models: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match=r"model\.embed_tokens\.weight"):
        corebound.init_inference(empty(models["llama"]), checkpoint=str(models["bloom"]))


@pytest.mark.parametrize("family", ["bloom", "llama"])
@pytest.mark.parametrize(("writers", "readers"), [(1, 2), (2, 2), (2, 1), (3, 2)])
def test_written_shards_are_read_back_at_any_number_of_ranks(
    family: str, writers: int, readers: int, models: dict[str, Path], expected: Any, tmp_path: Path
) -> None:
    """DeepSpeed #2918, #2379: "keep a pre-sharded checkpoint"."""
    on_ranks(
        writers, lambda: loaded(models[family]), lambda engine: None, save_mp_checkpoint_path=str(tmp_path / "out")
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == writers
    assert not list((tmp_path / "out").glob(".*"))

    def use(engine: InferenceEngine) -> Any:
        return call(engine.module.generate)

    answers = on_ranks(readers, lambda: empty(models[family]), use, checkpoint=str(tmp_path / "out"))
    assert answers == [expected[family, "plain"]] * readers


@pytest.mark.parametrize("family", ["olmo2", "stablelm-parallel", "mixtral"])
def test_shards_of_families_with_norms_over_heads_or_experts_are_read_back(family: str, tmp_path: Path) -> None:
    expected = call(FAMILIES[family].build().generate)
    on_ranks(2, FAMILIES[family].build, lambda engine: None, save_mp_checkpoint_path=str(tmp_path))

    def make() -> PreTrainedModel:
        with OnDevice(torch.float32):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(FAMILIES[family].config())
        return model

    for num_ranks in (1, 2):
        answers = on_ranks(num_ranks, make, lambda engine: call(engine.module.generate), checkpoint=str(tmp_path))
        assert answers == [expected] * num_ranks


def test_a_damaged_manifest_is_an_error_that_names_it(models: dict[str, Path], tmp_path: Path) -> None:
    on_ranks(2, lambda: loaded(models["bloom"]), lambda engine: None, save_mp_checkpoint_path=str(tmp_path))
    manifest = tmp_path / "ds_inference_config.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(ModelLoadError, match=r"ds_inference_config\.json: expected type"):
        corebound.init_inference(empty(models["bloom"]), checkpoint=str(tmp_path))


def test_a_request_beyond_max_out_tokens_makes_more_room_and_says_so_once(
    models: dict[str, Path], expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """DeepSpeed: "prompt longer than max_out_tokens -> RuntimeError"."""

    def use(engine: InferenceEngine) -> Any:
        return [call(engine.generate) for _ in range(3)]

    with caplog.at_level(logging.WARNING, logger="corebound"):
        (answers,) = on_ranks(1, lambda: loaded(models["bloom"]), use, max_out_tokens=4)
    assert answers == [expected["bloom", "plain"]] * 3
    said = [record.getMessage() for record in caplog.records if "max_out_tokens" in record.getMessage()]
    assert said == ["max_out_tokens 4 is too small for 16 tokens of prompt and continuation: it is raised"]


def test_min_out_tokens_that_do_not_fit_are_an_error_before_anything_runs(models: dict[str, Path]) -> None:
    with pytest.raises(HostError, match="min_out_tokens is 1000000000000000, but"):
        corebound.init_inference(loaded(models["bloom"]), min_out_tokens=10**15)


def test_more_ranks_than_were_launched_name_the_command(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/chat.py"])
    with pytest.raises(ConfigError, match="tp_size is 2, but this script was not started by a launcher") as caught:
        corebound.init_inference(loaded(models["bloom"]), mp_size=2)
    assert caught.value.hint == "run it as corebound run --num_accelerators 2 chat.py"


@pytest.mark.parametrize("mp_size", [0, 1])
def test_a_script_without_launcher_runs_alone(mp_size: int, models: dict[str, Path], expected: Any) -> None:
    """The blog's `int(os.getenv('WORLD_SIZE', '0'))` is 0 there."""
    engine = corebound.init_inference(loaded(models["bloom"]), mp_size=mp_size, dtype="fp32")
    assert call(engine.generate) == expected["bloom", "plain"]


def test_a_policy_names_layers_by_class_by_name_or_for_all_blocks(models: dict[str, Path], expected: Any) -> None:
    """DeepSpeed #3174, #3628: "no policy for this model"."""
    from transformers.models.bloom.modeling_bloom import BloomBlock

    layers = ("self_attention.dense", "mlp.dense_4h_to_h")
    for given in ({"injection_policy": {BloomBlock: layers}}, {"injection_policy": {"BloomBlock": layers}}):
        answers = on_ranks(2, lambda: loaded(models["bloom"]), lambda engine: call(engine.module.generate), **given)
        assert answers == [expected["bloom", "plain"]] * 2
    answers = on_ranks(
        2,
        lambda: loaded(models["bloom"]),
        lambda engine: call(engine.module.generate),
        injection_policy_tuple=layers,
    )
    assert answers == [expected["bloom", "plain"]] * 2
    with pytest.raises(ConfigError, match="no block of class Bloomblock"):
        on_ranks(2, lambda: loaded(models["bloom"]), lambda engine: None, injection_policy={"Bloomblock": layers})


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_injected_kernels_give_the_same_tokens(
    family: str, num_ranks: int, models: dict[str, Path], expected: Any
) -> None:
    """DeepSpeed #4180: "kernel injection on CPU" is dead."""

    def use(engine: InferenceEngine) -> Any:
        assert engine.injection_report is not None
        return {name: (call(engine.module.generate, name), call(engine.generate, name)) for name in CALLS}

    for answers in on_ranks(num_ranks, lambda: loaded(models[family]), use, replace_with_kernel_inject=True):
        assert answers == {name: (expected[family, name],) * 2 for name in CALLS}


def test_a_call_that_the_engine_lacks_goes_to_the_module_and_says_why(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    def use(engine: InferenceEngine) -> Any:
        more = {"no_repeat_ngram_size": 2}
        return [(call(engine.generate, **more), call(engine.module.generate, **more)) for _ in range(2)]

    with caplog.at_level(logging.INFO, logger="corebound"):
        (answers,) = on_ranks(1, lambda: loaded(models["bloom"]), use)
    assert all(own == module for own, module in answers)
    said = [record.getMessage() for record in caplog.records if "no_repeat_ngram_size" in record.getMessage()]
    assert said == ["generate: the module's own, because Corebound's engine lacks: no_repeat_ngram_size"]


def test_a_model_that_is_no_language_model_runs_whole_on_one_rank_and_cannot_be_split() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    engine = corebound.init_inference(model, dtype="bf16")
    assert engine(torch.ones(1, 4, dtype=torch.bfloat16)).shape == (1, 4)
    with pytest.raises(ConfigError, match="Sequential cannot be split over 2 ranks"):
        on_ranks(2, lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)), lambda engine: None)


def test_more_ranks_than_heads_are_an_error_that_says_which_numbers_work(models: dict[str, Path]) -> None:
    with pytest.raises(ShardingError, match="7 ranks"):
        on_ranks(7, lambda: loaded(models["bloom"]), lambda engine: None)


def test_a_model_is_made_ready_only_once(models: dict[str, Path]) -> None:
    model = loaded(models["bloom"])
    corebound.init_inference(model)
    with pytest.raises(ConfigError, match="ready already"):
        corebound.init_inference(model)


def test_forward_passes_through_and_its_times_are_measured_when_asked_for(models: dict[str, Path]) -> None:
    engine = corebound.init_inference(loaded(models["bloom"]), dtype="fp32")
    with pytest.raises(ConfigError, match=r"profile_model_time\(\) first|nothing is measured"):
        engine.model_times()
    assert torch.equal(engine(PLAIN).logits, engine.module(PLAIN).logits)
    engine.profile_model_time()
    engine(PLAIN)
    call(engine.generate)
    times = engine.model_times()
    assert len(times) == 1 + MAX_NEW and all(time > 0 for time in times)
    assert engine.model_times() == []


def test_tables_that_are_computed_keep_their_precision(models: dict[str, Path]) -> None:
    """DeepSpeed #2184: half precision everywhere; rotary frequencies in bfloat16 give other tokens."""
    engine = corebound.init_inference(loaded(models["llama"]), dtype="bf16")
    rotary = engine.module.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    assert {parameter.dtype for parameter in engine.module.parameters()} == {torch.bfloat16}
    made = corebound.init_inference(empty(models["llama"]), dtype="bf16", checkpoint=str(models["llama"]))
    assert torch.equal(made.module.model.rotary_emb.inv_freq, rotary.inv_freq)


def test_the_engine_stands_for_the_model_in_a_pipeline_of_transformers(models: dict[str, Path]) -> None:
    pipe = pipeline("text-generation", model=str(models["bloom"]), dtype=torch.float32)
    asked = {"max_new_tokens": MAX_NEW, "do_sample": False}
    expected = pipe("abc", **asked)
    pipe.model = corebound.init_inference(pipe.model, dtype="fp32")
    assert pipe("abc", **asked) == expected
    assert pipe.model.generation_config is pipe.model.module.generation_config
    assert not hasattr(pipe.model, "no_such_attribute")


def test_what_is_optimized_afterwards_gives_the_same_tokens(models: dict[str, Path]) -> None:
    """The blog's second listing: the module of the engine is optimized by the extension for PyTorch, here by ours."""
    engine = corebound.init_inference(loaded(models["llama"]), dtype="fp32")
    before = call(engine.module.generate)
    assert call(corebound.optimize(engine.module, dtype=torch.float32).generate) == before


def test_float16_warns_where_the_processor_does_not_multiply_it(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for supported in (True, False):
        caplog.clear()
        monkeypatch.setattr(CpuAccelerator, "is_fp16_supported", lambda self, answer=supported: answer)
        engine = corebound.init_inference(loaded(models["bloom"]), dtype="half")
        assert engine(PLAIN).logits.dtype == torch.float16
        assert ("no products of float16" in caplog.text) is not supported


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_reading_a_checkpoint_shows_its_progress_once(
    num_ranks: int, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A minute without a word: nobody knew whether it read or hung."""
    ticks = itertools.count(step=20.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    path = models["llama"]

    def load() -> str:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream := Terminal())
            on_ranks(num_ranks, lambda: empty(path), lambda _: None, checkpoint=str(path))
        return stream.getvalue()

    with caplog.at_level(logging.INFO, logger="corebound"):
        shown = load()
    lines = [line for line in shown.split("\r\x1b[K") if line]
    assert re.fullmatch(rf"init_inference: loading {path} +\d+%, 0\.0 of 0\.0 GB, .* left", lines[0])
    shares = [int(line.split("%")[0].split()[-1]) for line in lines]
    # One rank tells, so they only rise; matrices that ranks hold in part are counted so from the start.
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert shown.endswith("\r\x1b[K")
    with caplog.at_level(logging.WARNING, logger="corebound"):
        assert load() == ""


def test_progress_goes_to_the_log_where_there_is_no_terminal(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = itertools.count(step=20.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    with caplog.at_level(logging.INFO, logger="corebound"):
        on_ranks(1, lambda: empty(models["bloom"]), lambda _: None, checkpoint=str(models["bloom"]))
    told = [record for record in caplog.records if "init_inference: loading" in record.message]
    assert told
    assert {record.name for record in told} == {"corebound.engine.progress"}
