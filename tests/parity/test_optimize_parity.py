"""corebound.optimize with the native operators: the shipped model stays a transformers model and says the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import corebound
from corebound.training.linear import NativeLinear

pytestmark = pytest.mark.native

DEMO_DIR = Path(corebound.__file__).parent / "demo"
GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "demo_model_golden.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small only loses by a second thread, above all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def demo(dtype: torch.dtype) -> Any:
    # `torch_dtype` is the one spelling that transformers 4.51, of the IPEX flavour, and 5 both take.
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_DIR, local_files_only=True, torch_dtype=dtype).eval()


def continuation(model: Any, prompt: str, num_beams: int = 1) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_DIR, local_files_only=True)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        new = model.generate(ids, max_new_tokens=110, do_sample=False, num_beams=num_beams)[0][ids.shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def test_the_shipped_model_says_the_golden_text_in_every_variant(variant: str) -> None:
    model = corebound.optimize(demo(torch.float32), dtype=torch.float32)
    report = corebound.optimization_report(model)
    # Four products and two norms a layer; the norms of the embedding and of the end; the head.
    assert len(report.replaced) == 6 * model.config.n_layer + 3
    assert report.kept == ()
    prompt = sorted(GOLDEN)[0]
    assert continuation(model, prompt) == GOLDEN[prompt]


def test_beams_of_transformers_give_the_text_of_the_plain_model() -> None:
    prompt = sorted(GOLDEN)[1]
    expected = continuation(demo(torch.float32), prompt, num_beams=3)
    assert continuation(corebound.optimize(demo(torch.float32), dtype=torch.float32), prompt, num_beams=3) == expected


def test_the_native_operator_runs_where_few_rows_come(monkeypatch: pytest.MonkeyPatch) -> None:
    from corebound import kernels

    layer = corebound.optimize(torch.nn.Linear(64, 32).eval(), weights_prepack=False)
    assert isinstance(layer, NativeLinear)
    calls: list[int] = []
    real = torch.ops.corebound.linear.default
    with kernels.forced(mode="native"):
        native_linear = kernels.selection.active.linear
        monkeypatch.setattr(
            kernels.selection.active,
            "linear",
            lambda x, w, b: calls.append(x.shape[0]) or native_linear(x, w, b),
        )
        with torch.no_grad():
            x = torch.randn(2, 3, 64, dtype=torch.bfloat16)
            result = layer(x)
            expected = real(x.view(6, 64), layer.weight, layer.bias).view(2, 3, 32)
        monkeypatch.undo()
    assert calls == [6]
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_the_optimized_model_compiles_into_one_graph() -> None:
    model = corebound.optimize(
        torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)).eval(),
        dtype=torch.float32,
    )
    x = torch.randn(2, 16)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_a_bfloat16_model_under_autocast_gives_the_tokens_of_one_without() -> None:
    prompt = sorted(GOLDEN)[0]
    model = corebound.optimize(demo(torch.bfloat16))
    expected = continuation(model, prompt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert continuation(model, prompt)[:20] == expected[:20]


def test_the_shipped_model_loses_no_more_than_its_types_and_schemes_cost() -> None:
    prompt = sorted(GOLDEN)[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_DIR, local_files_only=True)
    ids = tokenizer(prompt + GOLDEN[prompt], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        exact = demo(torch.float64)(ids).logits

        def error(model: Any) -> float:
            found = model(ids).logits.double()
            return float((found - exact).norm() / (exact - exact.mean(-1, keepdim=True)).norm())

        plain = error(demo(torch.bfloat16))
        assert error(corebound.optimize(demo(torch.float32), dtype=torch.float32)) < 1e-5
        assert error(corebound.optimize(demo(torch.bfloat16))) < 1.2 * plain
        # docs/quantization.md has what rounding alone costs: 0.7 % and 9.7 %, of another text.
        assert error(corebound.optimize(demo(torch.bfloat16), dtype="int8")) < 1.2 * plain + 0.012
        assert 1.2 * plain < error(corebound.optimize(demo(torch.bfloat16), dtype="int4")) < 0.16
