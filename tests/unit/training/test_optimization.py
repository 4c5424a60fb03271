"""corebound.optimize: what it refuses, and what it does to a module where no native library is needed."""

from __future__ import annotations

import copy
import importlib.metadata
from typing import Any

import pytest
import torch
from torch import nn

import corebound
from corebound.errors import ConfigError, HostError, ModelError
from corebound.quantization import parse_scheme
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from corebound.training import ipex_backend
from corebound.training.linear import NativeLinear


class Small(nn.Module):
    """A tied head, a layer used twice, a computed table, one layer with a hook and one of a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8, bias=False)
        self.again = self.up
        self.hooked = nn.Linear(8, 8)
        self.special = Special(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 2)
        self.register_buffer("table", torch.arange(8.0) / 3, persistent=False)
        self.register_buffer("scale", torch.full((8,), 1 / 3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) * self.scale
        x = x + self.down(torch.relu(self.up(x))) + self.down(torch.relu(self.again(x)))
        return self.head(self.special(self.hooked(x)))


class Special(nn.Linear):
    """Computes something that only its class knows."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


IDS = torch.tensor([[1, 5, 3], [2, 7, 10]])


@pytest.fixture(autouse=True)
def reference_kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plain-torch operators, so that these tests need no native library."""
    from corebound import kernels

    with kernels.forced(mode="reference"):
        monkeypatch.setattr(
            kernels,
            "table",
            lambda: [{"op": "linear", "implementation": "reference", "variant": "reference", "reason": "test"}],
        )
        yield


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def test_float32_results_stay_and_the_weights_are_the_same_tensors(small: nn.Module) -> None:
    names, pointers = set(small.state_dict()), {name: t.data_ptr() for name, t in small.state_dict().items()}
    with torch.no_grad():
        expected = small(IDS)
        optimized = corebound.optimize(small, dtype=torch.float32)
        torch.testing.assert_close(optimized(IDS), expected, rtol=0, atol=0)
    assert optimized is small
    assert set(small.state_dict()) == names
    assert {name: t.data_ptr() for name, t in small.state_dict().items()} == pointers
    assert isinstance(small.up, NativeLinear)
    assert small.again is small.up
    assert small.head.weight is small.embed.weight


def test_conversion_reaches_what_is_stored_and_leaves_computed_tables(small: nn.Module) -> None:
    corebound.optimize(small)
    assert {t.dtype for t in small.state_dict().values()} == {torch.bfloat16}
    assert small.table.dtype == torch.float32
    assert small.head.weight is small.embed.weight
    assert small(IDS).dtype == torch.bfloat16


def test_the_report_names_what_was_replaced_and_what_was_kept_and_why(small: nn.Module) -> None:
    report = corebound.optimization_report(corebound.optimize(small))
    assert {c.name for c in report.replaced} == {"up", "down", "again", "head"}
    assert {(c.name, c.before): c.reason for c in report.kept} == {
        ("hooked", "Linear"): "it has hooks",
        ("special", "Special"): "a class of its own, which may compute something else",
    }
    text = str(report)
    assert "optimized by backend native for bfloat16" in text
    assert "4 x Linear -> NativeLinear" in text
    assert "kept hooked (Linear): it has hooks" in text
    assert "linear runs on reference" in text
    assert report.to_json()["backend"] == "native"


def test_the_report_of_a_module_that_was_not_optimized_is_an_error(small: nn.Module) -> None:
    with pytest.raises(ConfigError, match="this Small was not optimized"):
        corebound.optimization_report(small)


def test_a_linear_layer_alone_is_replaced_and_returned() -> None:
    layer = nn.Linear(4, 3).eval()
    optimized = corebound.optimize(layer, dtype=torch.float32)
    assert isinstance(optimized, NativeLinear)
    assert optimized.weight is layer.weight
    assert not optimized.training


def test_a_module_without_linear_layers_is_returned_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    optimized = corebound.optimize(nn.Sequential(nn.ReLU()).eval())
    assert corebound.optimization_report(optimized).changes == ()
    assert "Sequential has no torch.nn.Linear that can be replaced" in caplog.text


def test_calls_that_need_gradients_get_them(small: nn.Module) -> None:
    plain = copy.deepcopy(small)
    plain(IDS).sum().backward()
    optimized = corebound.optimize(small, dtype=torch.float32)
    optimized(IDS).sum().backward()
    torch.testing.assert_close(optimized.up.weight.grad, plain.up.weight.grad)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_own_type(weights: torch.dtype) -> None:
    layer = corebound.optimize(nn.Linear(8, 4).eval(), dtype=weights)
    x = torch.randn(3, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(x)
        expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert result.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected)


def test_types_that_differ_are_torchs_own_error() -> None:
    layer = corebound.optimize(nn.Linear(8, 4).eval())
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        layer(torch.randn(3, 8))


def test_a_second_time_is_refused(small: nn.Module) -> None:
    corebound.optimize(small)
    with pytest.raises(ConfigError, match="optimized before, by backend native for bfloat16"):
        corebound.optimize(small, backend="ipex")


def test_an_optimizer_is_refused_because_training_is_not_there_yet(small: nn.Module) -> None:
    with pytest.raises(ConfigError, match="optimizer is SGD, but only inference") as caught:
        corebound.optimize(small, torch.optim.SGD(small.parameters(), lr=0.1))
    assert "later release" in str(caught.value.hint)


def test_training_mode_is_refused(small: nn.Module) -> None:
    with pytest.raises(ConfigError, match="training mode") as caught:
        corebound.optimize(small.train())
    assert "eval()" in str(caught.value.hint)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float64, "bfloat16", None])
def test_an_unknown_dtype_is_refused_with_the_choices(small: nn.Module, dtype: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected one of torch\.float32, torch\.bfloat16, torch\.float16"):
        corebound.optimize(small, dtype=dtype)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": "int4:g48"}, "quantization scheme 'int4:g48': unknown part 'g48'"),
        ({"dtype": "int8", "weights_prepack": False}, "quantized weights are always packed"),
        ({"dtype": torch.float32, "weights_prepack": True}, "weights_prepack=True needs bfloat16 or a scheme"),
        ({"dtype": "int8", "backend": "ipex"}, "quantization, weights_prepack and fuse are for backend native"),
        ({"fuse": False, "backend": "ipex"}, "quantization, weights_prepack and fuse are for backend native"),
    ],
)
def test_options_that_do_not_go_together_are_refused(small: nn.Module, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        corebound.optimize(small, **options)
    assert problem in caught.value.message


def test_without_native_kernels_weights_are_rounded_and_kept_in_full(
    small: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    scheme = parse_scheme("int8:g32:asym")
    before = small.up.weight.detach().clone()
    optimized = corebound.optimize(small, dtype=scheme)
    assert isinstance(optimized.up, NativeLinear) and optimized.up.weight.dtype == torch.bfloat16
    matrix = quantize(before.bfloat16(), scheme)
    torch.testing.assert_close(optimized.up.weight, dequantize(matrix, torch.bfloat16), rtol=0, atol=0)
    assert "int8:g32:asym weights are rounded and kept as bfloat16: native kernels are off" in caplog.text
    assert torch.equal(optimized.head.weight, optimized.embed.weight)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.LayerNorm(8, eps=0.1), nn.RMSNorm(8, eps=1e-6)])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 0, 8), (2, 3, 8)])
def test_norms_are_those_of_torch_with_the_same_parameters(norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    plain = copy.deepcopy(norm).eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    optimized = corebound.optimize(nn.Sequential(copy.deepcopy(plain)).eval(), dtype=torch.float32)
    assert type(optimized[0]).__name__ in ("NativeLayerNorm", "NativeRmsNorm")
    assert optimized.state_dict().keys() == {f"0.{name}" for name in plain.state_dict()}
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(optimized(x), plain(x))
    # With gradients, and under autocast, which keeps norms in float32, it is torch.
    optimized(x).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert optimized(x).dtype == plain(x).dtype


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm((2, 4)), nn.LayerNorm(8, bias=False), nn.LayerNorm(8, elementwise_affine=False)]
)
def test_norms_that_the_operators_cannot_compute_stay(norm: nn.Module) -> None:
    assert corebound.optimize(nn.Sequential(norm).eval())[0] is norm


def test_without_fusion_norms_stay() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)).eval()
    assert isinstance(corebound.optimize(model, fuse=False)[0], nn.LayerNorm)


def test_the_name_of_the_extensions_function_is_there_too() -> None:
    assert corebound.llm.optimize is corebound.optimize


def test_an_unknown_backend_is_refused_with_the_nearest(small: nn.Module) -> None:
    with pytest.raises(ConfigError, match="unknown backend in optimize: 'ipx'") as caught:
        corebound.optimize(small, backend="ipx")
    assert "did you mean `ipex`" in str(caught.value.hint)


def test_what_is_no_module_or_compiled_already_is_refused(small: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"expected a torch\.nn\.Module, found str"):
        corebound.optimize("model")  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ConfigError, match="compiled already"):
        corebound.optimize(torch.compile(small))
    with pytest.raises(ConfigError, match="compiled already"):
        corebound.optimize(torch.jit.trace(nn.Linear(2, 2).eval(), torch.zeros(1, 2)))


def test_weights_that_are_not_floating_point_on_the_cpu_are_named() -> None:
    with pytest.raises(ConfigError, match=r"parameter weight: expected .* found torch.float32 on meta"):
        corebound.optimize(nn.Linear(2, 2, device="meta").eval())
    packed = nn.Module()
    packed.weight = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"parameter weight: expected .* found torch.int8"):
        corebound.optimize(packed.eval())


@pytest.mark.parametrize(
    ("installed", "message"),
    [(None, "is not installed here"), ("2.8.0", r"2\.8\.0 needs torch 2\.8, found torch")],
)
def test_without_a_fitting_extension_the_ipex_backend_names_the_role_and_why_it_is_off(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch, installed: str | None, message: str
) -> None:
    def version(name: str) -> str:
        assert name == "intel_extension_for_pytorch"
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with pytest.raises(HostError, match=message) as caught:
        corebound.optimize(small, backend="ipex")
    for words in ("role `ipex`", "archived upstream on 30 March 2026", "2.8.0", "docs/ipex.md"):
        assert words in str(caught.value.hint)


class FakeExtension:
    """Stands for the extension: replaces a layer, or nothing."""

    __version__ = "2.8.0"

    def __init__(self, *, changes: bool = True) -> None:
        self._changes = changes

    def optimize(self, model: nn.Module, dtype: torch.dtype, inplace: bool) -> nn.Module:
        assert inplace
        if self._changes:
            model.up = nn.Identity()
        return model


def test_the_ipex_backend_reports_what_the_extension_replaced(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipex_backend, "_extension", FakeExtension)
    report = corebound.optimization_report(corebound.optimize(small, backend="ipex"))
    assert ("up", "Linear", "Identity") in {(c.name, c.before, c.after) for c in report.replaced}
    assert "by ipex.optimize 2.8.0" in report.notes


def test_an_extension_that_changes_nothing_is_an_error(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipex_backend, "_extension", lambda: FakeExtension(changes=False))
    with pytest.raises(ModelError, match="changed nothing in Small"):
        corebound.optimize(small, backend="ipex")


def test_a_config_without_architectures_is_named_before_the_extension_trips_over_it(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config:
        architectures = None

    small.config = Config()
    monkeypatch.setattr(ipex_backend, "_extension", FakeExtension)
    with pytest.raises(ConfigError, match=r"model\.config\.architectures is empty"):
        corebound.optimize(small, backend="ipex")
