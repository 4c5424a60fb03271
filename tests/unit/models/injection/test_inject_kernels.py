"""Injected models against transformers' own blocks: token for token in float32, bounded in bfloat16."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from corebound import kernels
from corebound.comm.single import SingleCollectives
from corebound.errors import KernelError
from corebound.models.injection import describe_block, inject_kernels
from corebound.models.injection.block import InjectedBlock
from corebound.sharding.modules import LinearSpec, shard_module
from fixtures.families import FAMILIES
from fixtures.injectable import MODELS, build, generate, padded, prompts
from fixtures.thread_group import ThreadCollectives, run_ranks

# 64 roundings of logits of up to four.
LOGITS_BOUND = 64 * 4 * 2.0**-23


def injected(name: str, **settings: Any) -> Any:
    """Return the model with its blocks replaced."""
    model = build(name, **settings)
    inject_kernels(model, SingleCollectives())
    return model


@torch.no_grad()
def logits(model: Any, side: str = "none", **settings: Any) -> torch.Tensor:
    """Return the logits of the prompts' tokens that are not padding."""
    ids, mask = padded(side)
    out: torch.Tensor = model(ids, attention_mask=mask, **settings).logits[mask.bool()].float()
    return out


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", MODELS)
def test_a_family_generates_the_tokens_of_transformers_from_a_padded_batch(name: str) -> None:
    """Symptom: `replace_with_kernel_inject=True` raises "not implemented on CPU backend" for every model (#4180)."""
    plain, model = build(name), injected(name)
    assert generate(model, "left") == generate(plain, "left")
    assert (logits(model) - logits(plain)).abs().max() < LOGITS_BOUND


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("name", ["bloom", "llama", "mpt", "mistral"])
def test_padding_and_beams_give_the_tokens_of_transformers(name: str, num_beams: int, side: str) -> None:
    """Symptoms: wrong output for padded batches after injection (#3960: the alibi tensor is laid out batch first, and a
    slice of its first axis by heads is right only for one sequence), garbage with num_beams (#2506).
    """
    assert generate(injected(name), side, num_beams=num_beams) == generate(build(name), side, num_beams=num_beams)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_ranks_generate_the_tokens_of_one_whole_model(name: str, num_ranks: int) -> None:
    """Symptoms: alibi slopes computed from a rank's own number of heads (#7239), kv heads fewer than ranks (#7259)."""

    def work(collectives: ThreadCollectives) -> list[Any]:
        model = build(name)
        shard_module(model, collectives)
        inject_kernels(model, collectives)
        return [generate(model, "left"), generate(model, "left", num_beams=4)]

    plain = build(name)
    expected = [generate(plain, "left"), generate(plain, "left", num_beams=4)]
    assert run_ranks(num_ranks, work) == [expected] * num_ranks


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_plain_torch_throughout_gives_the_same_tokens(name: str) -> None:
    """Symptom: the fallback of injected modules exists for some operators only, and computes other activations."""
    model = injected(name)
    expected = generate(build(name), "left")
    with kernels.forced(mode="reference"):
        assert generate(model, "left") == expected


@pytest.mark.native
@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_each_operator_falls_back_alone_and_the_report_says_which(name: str) -> None:
    plain = build(name)
    expected = generate(plain, "left", num_tokens=4)
    for op in describe_block(plain.config).ops:
        with kernels.forced(missing={op}):
            model = build(name)
            report = inject_kernels(model, SingleCollectives())
            assert {row["op"] for row in report.ops if row["implementation"] == "reference"} == {op}
            assert f"{op}: reference" in str(report)
            assert generate(model, "left", num_tokens=4) == expected


@pytest.mark.parametrize("name", ["gptj", "falcon-40b", "cohere"])
def test_branches_in_parallel_meet_in_one_sum(name: str) -> None:
    """Fact: a block that adds attention and MLP of the same input needs one all-reduce, not two (7.4)."""

    def work(collectives: ThreadCollectives) -> tuple[int, list[Any]]:
        model = build(name)
        shard_module(model, collectives)
        inject_kernels(model, collectives)
        with torch.no_grad():
            model(prompts())
        num_sums = collectives.num_all_reduces
        return num_sums, generate(model, "left")

    num_layers = 2
    assert run_ranks(2, work) == [(1 + num_layers, generate(build(name), "left"))] * 2


def test_only_the_mlp_of_a_block_may_be_split() -> None:
    policy = [
        LinearSpec("self_attn.*", "skip"),
        LinearSpec("mlp.(fc1|gate_proj|up_proj)", "column"),
        LinearSpec("mlp.*", "row"),
    ]
    for name in ("llama", "phi-plain"):

        def work(collectives: ThreadCollectives, name: str = name) -> list[Any]:
            model = build(name)
            shard_module(model, collectives, policy)
            inject_kernels(model, collectives)
            return generate(model, "left")

        assert run_ranks(2, work) == [generate(build(name), "left")] * 2


def test_two_injected_models_of_one_process_do_not_touch_each_other() -> None:
    """Symptom: layer counters, workspace and context are global: two injected models interfere (5.1, #8316)."""
    first, second = injected("bloom"), injected("llama", seed=3)
    expected = generate(build("bloom"), "left"), generate(build("llama", seed=3), "right")
    ids = prompts()
    caches = DynamicCache(config=first.config), DynamicCache(config=second.config)
    steps: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for column in range(ids.shape[1]):
            for at, (model, cache) in enumerate(zip((first, second), caches, strict=True)):
                steps[at].append(model(ids[:, column : column + 1], past_key_values=cache).logits)
    for at, model in enumerate((build("bloom"), build("llama", seed=3))):
        with torch.no_grad():
            whole = model(ids).logits
        assert (torch.cat(steps[at], 1) - whole).abs().max() < LOGITS_BOUND
    assert (generate(first, "left"), generate(second, "right")) == expected


@pytest.mark.parametrize("name", ["bloom", "gptj", "llama", "mistral"])
def test_a_prompt_may_come_in_pieces_after_a_cache_exists(name: str) -> None:
    plain, model, ids = build(name), injected(name), prompts()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in ids.split([4, 1, 4], 1)]
        whole = plain(ids).logits
    assert (torch.cat(parts, 1) - whole).abs().max() < LOGITS_BOUND


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_a_cache_filled_by_the_original_blocks_is_continued(name: str) -> None:
    plain, model, ids = build(name), injected(name), prompts()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        plain(ids[:, :5], past_key_values=cache)
        rest = model(ids[:, 5:], past_key_values=cache).logits
        whole = plain(ids).logits[:, 5:]
    assert (rest - whole).abs().max() < LOGITS_BOUND


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_copy_of_a_cache_goes_on_by_itself(name: str) -> None:
    plain, model, ids = build(name), injected(name), prompts()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :5], past_key_values=cache)
        other = copy.deepcopy(cache)
        model(prompts(seed=2)[:, :3], past_key_values=cache)
        rest = model(ids[:, 5:], past_key_values=other).logits
        whole = plain(ids).logits[:, 5:]
    assert (rest - whole).abs().max() < LOGITS_BOUND


def test_what_blocks_note_for_a_step_is_forgotten_at_the_next() -> None:
    model = injected("mistral")
    generate(model, "left")
    blocks = [module for module in model.modules() if isinstance(module, InjectedBlock)]
    assert {id(block._notes) for block in blocks} == {id(blocks[0]._notes)}
    assert blocks[0]._notes.num_notes <= 2


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_static_cache_gives_the_tokens_of_transformers(name: str) -> None:
    settings = {"cache_implementation": "static", "disable_compile": True}
    assert generate(injected(name), "left", **settings) == generate(build(name), "left")


def test_a_mask_of_the_callers_own_runs_in_plain_torch_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    plain, model, ids = build("llama"), injected("llama"), prompts()
    order = torch.arange(ids.shape[1])
    visible = (order <= order.unsqueeze(1)) & ((order.unsqueeze(1) - order) % 3 != 1)
    mask = visible.expand(ids.shape[0], 1, -1, -1)
    with torch.no_grad():
        for _ in range(2):
            difference = model(ids, attention_mask=mask).logits - plain(ids, attention_mask=mask).logits
    assert difference.abs().max() < LOGITS_BOUND
    said = [record.message for record in caplog.records if "plain torch" in record.message]
    assert len(said) == 1
    assert said[0].startswith(
        "llama: attention in plain torch in place of the operator: the attention mask hides keys between"
    )


def test_a_prompt_longer_than_the_window_stays_on_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    assert generate(injected("mistral"), "left", num_beams=2) == generate(build("mistral"), "left", num_beams=2)
    assert [record.message for record in caplog.records if "plain torch" in record.message] == []


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_either_kind_of_mask_is_understood(implementation: str) -> None:
    plain, model = build("llama"), injected("llama")
    for each in (plain, model):
        each.set_attn_implementation(implementation)
    assert generate(model, "left") == generate(plain, "left")


@pytest.mark.parametrize("name", ["bloom", "llama", "gpt_neox", "gemma", "olmo2"])
def test_bfloat16_loses_about_what_transformers_loses(name: str) -> None:
    exact, ids = build(name), prompts(length=20)
    with torch.no_grad():
        expected = exact(ids).logits
        theirs = build(name, dtype=torch.bfloat16)(ids).logits.float() - expected
        ours = injected(name, dtype=torch.bfloat16)(ids).logits.float() - expected
    assert ours.square().mean().sqrt() < 1.3 * theirs.square().mean().sqrt()


def test_the_original_weights_are_freed_and_none_is_held_twice() -> None:
    model = build("llama")
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    originals = [weakref.ref(parameter) for parameter in model.model.layers.parameters()]
    inject_kernels(model, SingleCollectives())
    gc.collect()
    assert [ref for ref in originals if ref() is not None] == []
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes() for parameter in model.parameters()
    }
    assert sum(storages.values()) == 4 * num_elements


def test_hidden_states_can_be_asked_for_as_before() -> None:
    for name in ("bloom", "llama"):
        ids, model = prompts(), injected(name)
        with torch.no_grad():
            ours, theirs = (each(ids, output_hidden_states=True).hidden_states for each in (model, build(name)))
        assert len(ours) == len(theirs) == 3
        assert all((a - b).abs().max() < LOGITS_BOUND for a, b in zip(ours, theirs, strict=True))


def test_inference_mode_once_and_no_grad_later_share_a_cache() -> None:
    plain, model, ids = build("llama"), injected("llama"), prompts()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids[:, :5], past_key_values=cache)
    rest = model(ids[:, 5:], past_key_values=cache).logits
    with torch.no_grad():
        assert (rest - plain(ids).logits[:, 5:]).abs().max() < LOGITS_BOUND


def test_the_report_names_blocks_operators_and_what_stayed() -> None:
    model = build("llama")
    text = str(inject_kernels(model, SingleCollectives()))
    assert text.startswith("llama: replaced 2 blocks of class LlamaDecoderLayer\n")
    assert "\n  attention: " in text
    assert "\n  kept: model.embed_tokens (Embedding)" in text
    assert "layers" not in text


@pytest.mark.parametrize(
    ("name", "changes", "lacks"),
    [
        ("gemma2", {}, "soft-capped attention scores"),
        ("falcon-rw", {}, "alibi=true: its biases are rounded to bfloat16 in every precision"),
        ("phi", {"hidden_act": "quick_gelu"}, "the activation quick_gelu"),
        ("llama", {"model_type": "unheard_of"}, r"this family: it has no description \(there are bloom, "),
    ],
)
def test_what_a_block_lacks_is_named_and_nothing_is_changed(name: str, changes: dict[str, Any], lacks: str) -> None:
    model: Any = FAMILIES[name].build(**changes)
    before = [type(module) for module in model.modules()]
    with pytest.raises(KernelError, match=f"kernel injection cannot express {lacks}"):
        inject_kernels(model, SingleCollectives())
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize(
    "settings",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"do_sample": True, "top_k": 5, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 3, "output_hidden_states": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("name", ["bloom", "mistral"])
def test_other_ways_to_generate_are_those_of_transformers(name: str, settings: dict[str, Any]) -> None:
    found = []
    for model in (build(name), injected(name)):
        torch.manual_seed(0)
        ids, mask = padded("left")
        found.append(model.generate(ids, attention_mask=mask, max_new_tokens=6, **{"do_sample": False, **settings}))
    assert torch.equal(*found)


def test_an_older_transformers_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corebound.models.injection.inject.transformers.__version__", "4.51.3")
    with pytest.raises(KernelError, match=r"expected transformers 5, found 4\.51\.3"):
        inject_kernels(build("llama"), SingleCollectives())


def test_wrong_uses_are_errors() -> None:
    model = injected("bloom")
    with pytest.raises(KernelError, match="replaced already"):
        inject_kernels(model, SingleCollectives())
    with pytest.raises(KernelError, match="never makes attention weights"):
        model(prompts(), output_attentions=True)
    with pytest.raises(KernelError, match="for inference"):
        model.train()(prompts())
    with pytest.raises(KernelError, match="expected a model of transformers"):
        inject_kernels(torch.nn.Linear(2, 2), SingleCollectives())


def test_a_layer_that_is_no_plain_linear_is_an_error_that_names_it() -> None:
    model = build("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(model.model.layers[1].mlp.up_proj)
    with pytest.raises(
        KernelError, match=r"model\.layers\.1\.mlp\.up_proj: expected a plain linear layer, found a Sequential"
    ):
        inject_kernels(model, SingleCollectives())
