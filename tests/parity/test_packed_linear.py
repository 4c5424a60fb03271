"""Layers with packed weights against float64, in every variant, by the bounds of the scheme and of number formats."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import corebound
from corebound.errors import KernelError
from corebound.kernels.packed import PackedShape, pack, pack_codes, packed_bias, packed_linear, unpack
from corebound.kernels.panel_format import PanelFormat
from corebound.quantization import parse_scheme
from corebound.quantization.reference import dequantize, error_bound
from corebound.quantization.rtn import quantize
from corebound.training.mlp import GATED_MLPS
from corebound.training.packed_linear import GatedMlp, PackedLinear

pytestmark = pytest.mark.native

# Odd in every way: below a panel, above one, inputs that are no multiple of anything, and one size of each.
SHAPES = [(1, 1), (5, 33), (64, 32), (130, 100), (257, 640)]
ROWS = (1, 3, 9, 33, 300)  # a product, a few, tiles, more than a tile, more than one part
SCHEMES = ("int8", "int8:g32:asym", "int4", "int4:g64:sym", "int4:channel:asym")
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)


def assert_product(result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, magnitude: Tensor) -> None:
    """`result` is x W^T + bias in float64, but for one rounding to bfloat16 of it, and of each term and input."""
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    # Panels of codes take inputs in 15 bits of the largest of their block; AMX takes weights in bfloat16.
    inputs = x.double().abs()
    terms = inputs @ magnitude.abs().t() + inputs.amax(1, keepdim=True) * magnitude.abs().sum(1) / 128
    bound = 2.0**-8 * exact.abs() + 2.0**-8 * terms + 1e-30
    error = (result.double() - exact).abs()
    assert result.dtype == BF16 and bool((error <= bound).all()), float((error / bound).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_panels_multiply_and_read_back(variant: str, shape: tuple[int, int]) -> None:
    weight, bias = torch.randn(shape).to(BF16), torch.randn(shape[0]).to(BF16)
    packed, panels = pack(weight)
    torch.testing.assert_close(unpack(panels, packed), weight.float(), rtol=0, atol=0)
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).to(BF16)
        result = packed_linear(x, panels, packed_bias(packed, bias), packed.numbers())
        assert result.shape == (rows, shape[0]) and result.is_contiguous()
        # Sums are float32: what is off beyond the last rounding is far below that of a bfloat16.
        exact = x.double() @ weight.double().t() + bias.double()
        sums = 2.0**-20 * (x.double().abs() @ weight.double().abs().t() + bias.double().abs())
        assert bool(((result.double() - exact).abs() <= 2.0**-8 * exact.abs() + sums).all())


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_multiply_and_read_back_as_the_scheme_says(variant: str, text: str, shape: tuple[int, int]) -> None:
    scheme, weight, bias = parse_scheme(text), torch.randn(shape).to(BF16), torch.randn(shape[0]).to(BF16)
    matrix = quantize(weight, scheme)
    packed, panels = pack_codes(matrix, scheme.group_size)
    values = dequantize(matrix)
    torch.testing.assert_close(unpack(panels, packed), values, rtol=0, atol=0)
    assert bool(((values - weight.float()).abs() <= error_bound(matrix)).all())
    # The zero point is taken off the sum, which can be larger than what remains.
    steps = dequantize(copy.copy(matrix)).abs() + matrix.scales.amax(1, keepdim=True) * 2 ** (scheme.bits - 1)
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).to(BF16)
        result = packed_linear(x, panels, packed_bias(packed, bias), packed.numbers())
        assert_product(result, x, values, bias, steps.double())


@pytest.mark.parametrize("text", [None, "int8", "int4:g32:asym"])
@pytest.mark.parametrize("half", [3, 32, 70])
def test_a_gated_pair_is_one_product(variant: str, text: str | None, half: int) -> None:
    gate, up = nn.Linear(48, half).to(BF16), nn.Linear(48, half).to(BF16)
    plain = {name: copy.deepcopy(layer) for name, layer in (("gate", gate), ("up", up))}
    scheme = None if text is None else parse_scheme(text)
    layer = PackedLinear([gate, up], scheme, ["gate.", "up."], gated=True)
    state = layer.state_dict()
    assert set(state) == {"gate.weight", "up.weight", "gate.bias", "up.bias"}
    for rows in (1, 6, 40):
        x = torch.randn(rows, 48).to(BF16)
        with torch.no_grad():
            result = layer(x)
        gate_of_x, up_of_x = (
            x.double() @ state[f"{name}.weight"].double().t() + plain[name].bias.double() for name in ("gate", "up")
        )
        expected = nn.functional.silu(gate_of_x) * up_of_x
        torch.testing.assert_close(result.double(), expected, rtol=0.03, atol=0.03)


def test_wrong_arguments_are_errors_that_name_them() -> None:
    from corebound.kernels import native

    native.load()
    weight = torch.randn(5, 33).to(BF16)
    packed, panels = pack(weight)
    x, long = torch.randn(2, 33).to(BF16), torch.randn(2, 400).to(BF16)
    numbers = packed.numbers()
    for arguments, words in (
        ((x.float(), panels, None, numbers), "x: expected bfloat16, found float32"),
        ((x[:, :32], panels, None, numbers), r"x: expected shape \[\*, 33\]"),
        ((x, panels[:-1], None, numbers), "panels: expected shape"),
        ((x, panels.clone()[1:], None, numbers), "panels: expected shape"),
        ((x, panels, torch.zeros(5, dtype=BF16), numbers), "bias: expected shape"),
        ((x, panels, None, packed.numbers("silu_gated")), "activation 2 does not go with a plain matrix"),
        ((x, panels, None, (5, 33, 7, 32, 0, False, False, 0)), "no such matrix"),
        ((x, panels, None, (5, 33, 0, 33, 0, False, False, 0)), "no such matrix"),
        ((long, panels, None, (5, 400, 1, 160, 0, False, False, 0)), "groups of up to 128 inputs .* found 160"),
        ((long, panels, None, (5, 400, 2, 192, 1, True, False, 0)), "groups of up to 128 inputs .* found 192"),
        # One group of any size, and groups of a multiple of 128, come as far as their panels.
        ((long, panels, None, (5, 400, 1, 416, 0, False, False, 0)), "panels: expected shape"),
        ((long, panels, None, (5, 400, 1, 256, 0, False, False, 0)), "panels: expected shape"),
    ):
        with pytest.raises(RuntimeError, match=words):
            packed_linear(*arguments)
    assert packed_linear(x[:0], panels, None, numbers).shape == (0, 5)


def test_a_packed_layer_is_a_module_that_answers_clearly() -> None:
    plain = nn.Sequential(nn.Linear(100, 70), nn.ReLU(), nn.Linear(70, 64, bias=False)).eval()
    names, first = set(plain.state_dict()), plain[0].weight.detach().clone()
    model = corebound.optimize(copy.deepcopy(plain), dtype="int8")
    assert set(model.state_dict()) == names
    matrix = quantize(first.to(BF16), parse_scheme("int8"))
    torch.testing.assert_close(model.state_dict()["0.weight"], dequantize(matrix, BF16), rtol=0, atol=0)
    torch.testing.assert_close(model[0].weight, model.state_dict()["0.weight"])
    plain.load_state_dict(model.state_dict())
    with pytest.raises(KernelError, match="packed and cannot be replaced") as caught:
        model.load_state_dict(plain.state_dict())
    assert "then call corebound.optimize" in str(caught.value.hint)
    assert "in_features=100, out_features=70, bias=True, weights=int8:channel:sym" in repr(model)
    again = copy.deepcopy(model)
    x = torch.randn(3, 2, 100).to(BF16)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    report = str(corebound.optimization_report(model))
    assert "2 x Linear -> PackedLinear" in report
    assert f"2 matrices packed, {2 * (100 * 70 + 70 * 64)} bytes of bfloat16 became" in report


def test_a_packed_layer_refuses_what_it_cannot_do_with_the_way_out() -> None:
    layer = corebound.optimize(nn.Linear(64, 64).eval(), dtype="int4")
    x = torch.randn(2, 64)
    with pytest.raises(KernelError, match=r"computes in bfloat16, found an input of torch\.float32"):
        layer(x)
    with pytest.raises(KernelError, match="computes no gradients"):
        layer(x.to(BF16).requires_grad_())
    # Nothing of the model asks for gradients, so that a plain call needs no guard.
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert layer(x.to(BF16)).dtype == BF16


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4:g32:asym"])
def test_autocast_and_compile_give_the_same(dtype: str) -> None:
    model = nn.Sequential(nn.Linear(96, 130), nn.LayerNorm(130), nn.SiLU(), nn.Linear(130, 64)).eval()
    model = corebound.optimize(model, dtype=BF16 if dtype == "bfloat16" else dtype)
    assert isinstance(model[0], PackedLinear)
    x = torch.randn(2, 5, 96).to(BF16)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=0)
        with torch.autocast("cpu", dtype=BF16):
            result = model(x.float())
            torch.testing.assert_close(compiled(x.float()), result, rtol=0, atol=0)
        torch.testing.assert_close(result, expected, rtol=0.05, atol=0.02)
        # torch's own norms refuse to mix types, so float16 is for the layer alone.
        with torch.autocast("cpu", dtype=torch.float16):
            assert model[0](x.float()).dtype == torch.float16


def test_the_weights_that_were_packed_are_let_go() -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128)).eval()
    held = [weakref.ref(layer.weight) for layer in model]
    model = corebound.optimize(model, dtype="int8")
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_tiny_matrices_that_would_be_padding_stay_plain_unless_asked() -> None:
    assert not isinstance(corebound.optimize(nn.Linear(8, 4).eval()), PackedLinear)
    assert isinstance(corebound.optimize(nn.Linear(8, 4).eval(), weights_prepack=True), PackedLinear)
    assert not isinstance(corebound.optimize(nn.Linear(256, 256).eval(), weights_prepack=False), PackedLinear)


def family_config(name: str) -> Any:
    import transformers

    config = getattr(transformers, f"{name.removesuffix('MLP')}Config")
    return config(
        hidden_size=64, intermediate_size=100, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=101, pad_token_id=0, hidden_act="silu",
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(GATED_MLPS))
def test_every_family_of_the_table_says_the_same_and_keeps_its_names(name: str) -> None:
    import transformers

    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(family_config(name)).eval()
    plain = copy.deepcopy(model).to(BF16)
    model = corebound.optimize(model)
    report = corebound.optimization_report(model)
    assert {change.before for change in report.replaced} >= {name, "Linear"}
    assert isinstance(model.get_submodule("model.layers.0.mlp"), GatedMlp)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)
    ids = torch.tensor([[1, 5, 9, 33, 77, 2, 3]])
    with torch.no_grad():
        wide = copy.deepcopy(plain).double()(ids).logits
        ours, torchs = model(ids).logits.double(), plain(ids).logits.double()
    # As close to float64 as the plain model in bfloat16, or closer.
    assert (ours - wide).norm() <= 1.2 * (torchs - wide).norm() + 1e-3 * wide.norm()


def test_an_optimized_model_can_be_saved_and_loaded_again(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(family_config("LlamaMLP")).eval()
    model = corebound.optimize(model, dtype="int8")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=BF16).eval()
    ids = torch.tensor([[1, 5, 9, 33]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0.1, atol=0.02)


def test_panels_of_another_scale_kind_are_read_back_too() -> None:
    weight = torch.randn(70, 64)
    matrix = quantize(weight, parse_scheme("int4:g32:asym"))
    matrix.scales.mul_(1.001)  # no bfloat16 any more
    packed, panels = pack_codes(matrix, 32)
    assert packed == PackedShape(70, 64, PanelFormat(kind="int4", group_size=32, asymmetric=True, scale_kind="float32"))
    torch.testing.assert_close(unpack(panels, packed), dequantize(matrix), rtol=0, atol=0)
