"""What the user says stands above the family's table, and what nobody says is an error."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1DecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

from corebound.errors import ConfigError, ShardingError
from corebound.sharding.modules import LinearSpec, Policy, shard_module
from fixtures.families import FAMILIES, Family, llama_like
from fixtures.module_parity import SHORT, answer, differences, quiet_transformers
from fixtures.thread_group import ThreadCollectives, run_ranks

HUNYUAN = llama_like("hunyuan_v1_dense", "HunYuanDenseV1", head_dim=8)
ROWS = ("self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_transformers():
        yield


def _same(family: Family, policy, num_ranks: int = 2):
    def shard(model, group: ThreadCollectives):
        return shard_module(model, group, policy)

    for difference in differences(family, num_ranks, (SHORT,), shard):
        assert difference.same_tokens, difference
        assert difference.logit_error < 2e-5, difference


def _report(model, policy=None, num_ranks: int = 2):
    return run_ranks(num_ranks, lambda group: shard_module(model if group.rank == 0 else _copy(model), group, policy))[
        0
    ]


def _copy(model):
    return type(model)(model.config).eval()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_policy_in_deepspeeds_form_splits_a_model_without_a_table(num_ranks):
    """#3174, #3628: a model without a policy."""
    _same(HUNYUAN, {HunYuanDenseV1DecoderLayer: ROWS}, num_ranks)


def test_a_policy_in_deepspeeds_form_takes_short_names_and_the_layouts_of_a_table():
    _same(FAMILIES["phi3"], {Phi3DecoderLayer: ("o_proj", "down_proj")})


def test_ordered_specs_split_a_model_without_a_table():
    specs = [LinearSpec("o_proj|down_proj", "row"), LinearSpec(".*", "column")]
    _same(HUNYUAN, specs)


def test_of_ordered_specs_the_first_that_matches_counts():
    policy = Policy((LinearSpec("mlp.(gate|up|down)_proj", "skip"), LinearSpec("mlp.down_proj", "row", "even")))
    report = _report(FAMILIES["llama"].build(), policy)
    actions = {split.name.rpartition(".")[2]: (split.action, split.origin) for split in report.splits}
    assert actions["down_proj"] == actions["gate_proj"] == ("replicate", "policy")
    assert actions["o_proj"] == ("split_inputs", "table")


@pytest.mark.parametrize("name", ["bloom", "mpt", "phi3", "olmo2", "gptj", "codegen", "falcon-rw"])
def test_an_attention_that_the_policy_keeps_whole_still_computes(name):
    attention = {"bloom": "self_attention", "falcon-rw": "self_attention", "mpt": "attn", "gptj": "attn"}
    attention |= {"codegen": "attn"}
    _same(FAMILIES[name], LinearSpec(rf"{attention.get(name, 'self_attn')}\.\w+", "skip"))


def test_a_layout_of_the_user_splits_a_fused_projection():
    specs = [
        LinearSpec("qkv_proj", "column", ("heads", "kv_heads", "kv_heads")),
        LinearSpec("gate_up_proj", "column", ("even", "even")),
        LinearSpec("o_proj|down_proj", "row"),
    ]
    _same(FAMILIES["phi3"], specs)


def test_gathered_outputs_and_cut_inputs_leave_the_attention_whole():
    specs = [
        LinearSpec("[qkv]_proj", "column", "even", whole_activation=True),
        LinearSpec("o_proj", "row", "even", whole_activation=True),
    ]
    _same(FAMILIES["llama"], specs, 3)


def test_gathered_outputs_and_cut_inputs_of_no_stated_layout_are_even():
    """Taken for heads, which 3 ranks get 3, 3 and 2 of, they were put together at the cuts of equal columns."""
    specs = [
        LinearSpec("[qkv]_proj", "column", whole_activation=True),
        LinearSpec("o_proj", "row", whole_activation=True),
    ]
    for changes in ({"num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 24}, {}):
        family = llama_like("llama", "Llama", **changes)
        _same(family, specs, 3)
        layouts = {split.layout for split in _report(family.build(), specs, 3).splits if "self_attn" in split.name}
        assert layouts == {"even"}


@pytest.mark.parametrize("layout", ["heads", "aligned", ("even", "even")])
@pytest.mark.parametrize(("name", "partition"), [("q_proj", "column"), ("o_proj", "row")])
def test_a_whole_activation_of_another_layout_is_an_error_that_names_the_layer(name, partition, layout):
    with pytest.raises(ShardingError, match=rf"self_attn\.{name}: whole_activation: expected the layout 'even', found"):
        _report(FAMILIES["llama"].build(), LinearSpec(name, partition, layout, whole_activation=True), num_ranks=1)


def test_a_whole_activation_of_what_is_no_linear_layer_is_an_error_that_names_it():
    with pytest.raises(ShardingError, match=r"mlp\.experts\.down_proj: whole_activation is of linear layers only"):
        _report(FAMILIES["mixtral"].build(), LinearSpec("down_proj", "column", whole_activation=True), num_ranks=1)


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4", "olmo3", "cohere2"])
def test_a_model_without_a_table_is_split_by_its_own_plan(name):
    """qwen3_moe has experts and a router, glm4 a fused MLP, olmo3 norms over all heads, cohere2 a parallel residual."""
    classes = {"qwen3_moe": "Qwen3Moe", "glm4": "Glm4", "olmo3": "Olmo3", "cohere2": "Cohere2"}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
    settings = {"qwen3_moe": {**experts, "head_dim": 8}, "glm4": {"head_dim": 8}}
    family = llama_like(name, classes[name], **settings.get(name, {}))
    _same(family, None, 3)
    report = _report(family.build())
    assert {split.origin for split in report.splits} - {"model", "tied"} == {"tp_plan"}


def test_a_linear_layer_that_nothing_covers_is_an_error_that_names_it():
    model = HUNYUAN.build()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ShardingError, match=r"model\.layers\.0\.self_attn\.q_proj \(Linear, \[48, 48\]\)") as raised:
        _report(model, num_ranks=1)
    assert "LinearSpec('q_proj'" in raised.value.hint
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_matrix_that_is_no_linear_layer_and_that_nothing_covers_is_an_error_that_names_it():
    """gpt2 keeps its matrices transposed in a class of its own."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=101, n_embd=48, n_layer=1, n_head=6))
    with pytest.raises(ShardingError, match=r"transformer\.h\.0\.attn\.c_attn\.weight \(Conv1D"):
        _report(model, num_ranks=1)


def test_a_fused_projection_of_unknown_layout_is_an_error_that_names_it():
    """An unknown class got BLOOM's rule with a warning, and silently wrong numbers."""
    model = FAMILIES["phi3"].build()
    model.config.model_type = "unheard_of"
    with pytest.raises(ShardingError, match=r"layers\.0\.self_attn\.qkv_proj: unknown fused layout: 80 outputs"):
        _report(model, {Phi3DecoderLayer: ("o_proj", "down_proj")}, num_ranks=1)


def test_an_attention_split_in_part_is_an_error_that_names_both_layers():
    with pytest.raises(ShardingError, match=r"q_proj is split by heads, but .*self_attn\.o_proj .*stays whole"):
        _report(FAMILIES["llama"].build(), LinearSpec("o_proj", "skip"), num_ranks=1)


def test_a_fused_mlp_of_unknown_layout_is_an_error_that_names_it():
    """Cut in one piece, half of the ranks would have held gates and the others ups."""
    model = FAMILIES["phi3"].build()
    model.config.model_type = "unheard_of"
    specs = [
        LinearSpec("qkv_proj", "column", ("heads", "kv_heads", "kv_heads")),
        LinearSpec("gate_up_proj", "column"),
        LinearSpec("o_proj|down_proj", "row"),
    ]
    with pytest.raises(ShardingError, match=r"gate_up_proj: unknown fused layout: 200 outputs, where .* 100 inputs"):
        _report(model, specs, num_ranks=1)


def test_a_norm_over_all_heads_that_no_table_knows_is_an_error_that_names_it():
    model = FAMILIES["olmo2"].build()
    model.config.model_type = "unheard_of"
    with pytest.raises(
        ShardingError, match=r"layers\.0\.self_attn\.[qk]_norm\.weight: a vector of (48|16) over all heads"
    ):
        _report(model, {Olmo2DecoderLayer: ROWS}, num_ranks=1)


def test_columns_without_rows_are_an_error_that_names_them():
    with pytest.raises(ShardingError, match="gate_proj is split by columns, but no layer is row-parallel"):
        _report(HUNYUAN.build(), [LinearSpec("gate_proj", "column"), LinearSpec(".*", "skip")], num_ranks=1)


def test_a_layer_of_codes_is_an_error_that_names_it():
    model = FAMILIES["llama"].build()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.zeros(100, 24, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ShardingError, match=r"layers\.0\.mlp\.up_proj: Linear holds torch\.uint8 \[100, 24\]"):
        _report(model, num_ranks=1)


def test_a_model_that_is_split_already_is_an_error():
    model = FAMILIES["llama"].build()
    _report(model, num_ranks=1)
    with pytest.raises(ShardingError, match="this LlamaForCausalLM is already split"):
        _report(model, num_ranks=1)


def test_a_product_that_nothing_sums_is_an_error_that_names_it():
    with pytest.raises(ShardingError, match="down_proj: its product is to be summed later, but no module"):
        _report(HUNYUAN.build(), [LinearSpec("down_proj", "row", summed_later=True), LinearSpec(".*", "skip")], 1)


def test_a_style_of_a_models_own_plan_that_is_not_known_is_an_error_that_names_it():
    model = FAMILIES["llama"].build()
    model.config.model_type = "unheard_of"
    model._tp_plan = {"model.layers.*.self_attn.q_proj": "packed_rowwise"}
    with pytest.raises(ShardingError, match=r"q_proj: .* style 'packed_rowwise', which is not known here"):
        _report(model, num_ranks=1)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({LlamaDecoderLayer: ("self_attn.dense",)}, "LlamaDecoderLayer has no linear layer 'self_attn.dense'"),
        ({Phi3DecoderLayer: ("o_proj",)}, "the model has no block of class Phi3DecoderLayer"),
        ({"LlamaDecoderLayer": ("o_proj",)}, "expected the class of a block as key"),
        ({LlamaDecoderLayer: ()}, "expected names of row-parallel layers"),
        ("o_proj", "expected a Policy"),
        (LinearSpec("out_proj", "row"), "'out_proj' matches no matrix"),
        (LinearSpec("lm_head", "skip"), "'lm_head' matches no matrix"),
    ],
)
def test_a_policy_that_does_not_fit_is_an_error_that_says_why(policy, message):
    with pytest.raises(ConfigError, match=message):
        _report(FAMILIES["llama"].build(), policy, num_ranks=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("o_proj", "diagonal"), "partition must be one of column, row, skip"),
        (("o_proj", "row", "sideways"), "unknown layout 'sideways'"),
        (("o_proj(", "row"), "no regular expression"),
    ],
)
def test_a_spec_that_makes_no_sense_is_an_error(arguments, message):
    with pytest.raises(ConfigError, match=message):
        LinearSpec(*arguments)


def test_a_report_says_what_each_rank_holds_and_who_said_so():
    text = str(_report(FAMILIES["llama"].build()))
    assert "llama: rank 0 of 2: query heads 0 to 2, kv heads 0; " in text
    assert "model.layers.0.self_attn.k_proj: split_outputs kv_heads (table), [16, 48] to [8, 48]" in text


def test_a_whole_model_is_unchanged_by_one_rank():
    model = FAMILIES["llama"].build()
    want = answer(FAMILIES["llama"].build(), SHORT)
    run_ranks(1, lambda group: shard_module(model, group))
    assert torch.equal(answer(model, SHORT).tokens, want.tokens)
