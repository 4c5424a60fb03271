"""Every family's modules on several ranks against the whole model; `make models-matrix` runs the whole matrix."""

import pytest
import torch

from corebound.errors import RequestError
from corebound.sharding.modules import shard_module
from corebound.sharding.modules.families import TABLES
from fixtures.families import FAMILIES
from fixtures.module_parity import LONG, RIGHT, SHORT, Case, differences, quiet_transformers
from fixtures.thread_group import ThreadCollectives, run_ranks

LOGIT_ERROR = 2e-5  # of the largest logit, in float32


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_transformers():
        yield


def _check(name: str, num_ranks: int, cases: tuple[Case, ...], **changes):
    for difference in differences(FAMILIES[name], num_ranks, cases, **changes):
        assert difference.same_tokens, difference
        assert difference.logit_error < LOGIT_ERROR, difference


def test_every_table_has_a_tiny_model():
    assert set(TABLES) <= {family.model_type for family in FAMILIES.values()}  # others are cut by their own plans


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_on_two_ranks_gives_the_tokens_and_logits_of_the_whole_model_with_padding_on_either_side(name):
    """#2113, #2233, #3960: garbage text after init_inference, from masks, padding and alibi."""
    _check(name, 2, (SHORT, RIGHT))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_on_three_ranks_gives_the_tokens_and_logits_of_the_whole_model(name):
    """#7259: fewer kv heads than ranks, which are 2 of them here in most families."""
    _check(name, 3, (SHORT,))


@pytest.mark.parametrize("name", ["llama", "falcon-7b", "falcon-40b", "phi3", "codegen", "gpt_neox"])
def test_heads_that_do_not_divide_are_dealt_unevenly_to_four_ranks(name):
    _check(name, 4, (SHORT,))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.window])
def test_a_context_past_the_sliding_window_is_the_same_on_ranks(name):
    _check(name, 2, (LONG,))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        ("phi3", {}),
        ("falcon-40b", {"num_kv_heads": 2}),
        ("olmo2", {}),
        ("cohere", {}),
        ("stablelm-parallel", {"num_key_value_heads": 2}),
    ],
)
def test_query_heads_that_would_share_kv_heads_in_unequal_groups_are_the_same_on_three_ranks(name, changes):
    """10 query heads and 2 kv heads on 3 ranks: the second rank reads one kv head once and the other twice."""
    _check(name, 3, (SHORT,), hidden_size=80, num_attention_heads=10, **changes)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "phi", "gptj", "gpt_neox", "cohere", "bloom"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_are_the_same_on_ranks(name, tied):
    _check(name, 3, (SHORT,), tie_word_embeddings=tied)


def test_a_tied_head_and_embedding_hold_one_tensor_after_the_split():
    model = FAMILIES["bloom"].build()
    run_ranks(1, lambda group: shard_module(model, group))
    assert model.lm_head.weight is model.transformer.word_embeddings.weight


@pytest.mark.parametrize(
    "name", ["gptj", "gpt_neox", "phi", "falcon-7b", "falcon-40b", "codegen", "cohere", "stablelm-parallel"]
)
def test_a_parallel_residual_needs_one_sum_a_layer(name):
    assert _num_sums(name) == 1 + FAMILIES[name].config().num_hidden_layers


@pytest.mark.parametrize("name", ["llama", "gpt_neox-serial", "mixtral", "qwen2_moe"])
def test_other_families_need_two_sums_a_layer(name):
    assert _num_sums(name) == 1 + 2 * FAMILIES[name].config().num_hidden_layers


def _num_sums(name: str) -> int:
    def work(group: ThreadCollectives) -> int:
        model = FAMILIES[name].build()
        shard_module(model, group)
        before = group.num_all_reduces
        with torch.no_grad():
            model(SHORT.ids)
        return group.num_all_reduces - before

    return run_ranks(2, work)[0]


def test_two_models_in_one_process_do_not_touch_each_other():
    """#8316: a second model in the process corrupted the first, through sizes that the module kept for all."""
    names = ("bloom", "llama", "mpt")
    sizes = ({}, {}, {})
    other = ({"n_head": 4, "hidden_size": 32}, {"num_attention_heads": 8, "hidden_size": 64}, {"n_heads": 3})

    def work(group: ThreadCollectives) -> list[torch.Tensor]:
        families = [FAMILIES[name] for name in names]
        models = [family.build(**change) for family, change in zip(families * 2, sizes + other, strict=True)]
        for model in models:
            shard_module(model, group)
        with torch.no_grad():
            return [model(SHORT.ids, attention_mask=SHORT.mask).logits for model in models]

    ranks = run_ranks(2, work)
    for index, (name, change) in enumerate(zip(names * 2, sizes + other, strict=True)):
        with torch.no_grad():
            want = FAMILIES[name].build(**change)(SHORT.ids, attention_mask=SHORT.mask).logits
        for logits in ranks:
            counted = SHORT.mask.bool()
            torch.testing.assert_close(
                logits[index][counted], want[counted], rtol=0, atol=2e-5 * float(want.abs().max())
            )


@pytest.mark.parametrize("name", ["llama", "falcon-40b", "mixtral"])
def test_all_ranks_hold_identical_logits(name):
    def work(group: ThreadCollectives) -> torch.Tensor:
        model = FAMILIES[name].build()
        shard_module(model, group)
        with torch.no_grad():
            return model(SHORT.ids).logits

    first, *others = run_ranks(3, work)
    assert all(torch.equal(first, logits) for logits in others)


def test_a_number_that_is_no_word_is_an_error():
    """The rank that would hold its row does not exist, so that it would have been a row of zeros."""
    model = FAMILIES["llama"].build()
    run_ranks(1, lambda group: shard_module(model, group))
    with pytest.raises(RequestError, match="word 101 is not in a vocabulary of 101 words"):
        model(torch.tensor([[5, 101]]))


@pytest.mark.parametrize("name", ["llama", "mistral", "falcon-40b"])
def test_a_static_cache_is_the_same_on_ranks(name):
    def tokens(model) -> torch.Tensor:
        return model.generate(
            SHORT.ids,
            attention_mask=SHORT.mask,
            cache_implementation="static",
            max_new_tokens=4,
            do_sample=False,
            disable_compile=True,
        )

    def work(group: ThreadCollectives) -> torch.Tensor:
        model = FAMILIES[name].build()
        shard_module(model, group)
        return tokens(model)

    want = tokens(FAMILIES[name].build())
    assert all(torch.equal(found, want) for found in run_ranks(3, work))


def test_beams_of_generate_are_the_same_on_ranks():
    """#2506: beams."""

    def beams(model) -> torch.Tensor:
        return model.generate(SHORT.ids, attention_mask=SHORT.mask, num_beams=3, max_new_tokens=5, do_sample=False)

    def work(group: ThreadCollectives) -> torch.Tensor:
        model = FAMILIES["llama"].build()
        shard_module(model, group)
        return beams(model)

    want = beams(FAMILIES["llama"].build())
    assert all(torch.equal(tokens, want) for tokens in run_ranks(2, work))
