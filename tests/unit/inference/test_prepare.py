"""Making a model ready when it cannot be: refused before it is changed, or said to be changed halfway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import corebound
from corebound.errors import ConfigError, HostError, KernelError
from corebound.inference import prepare
from fixtures.engines import on_ranks
from fixtures.families import FAMILIES

PROMPT = torch.tensor([[5, 6, 7, 8]])


def test_blocks_that_cannot_be_replaced_are_refused_before_the_model_is_changed() -> None:
    models = [FAMILIES["gemma2"].build() for _ in range(2)]
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    with pytest.raises(KernelError, match="soft-capped attention scores"):
        on_ranks(2, lambda engine: None, models=list(models), replace_with_kernel_inject=True, dtype="bf16")
    for model, weights in zip(models, before, strict=True):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    expected = FAMILIES["gemma2"].build().generate(PROMPT, max_new_tokens=4).tolist()
    # Without it, the same model can still be made ready.
    answers = on_ranks(2, lambda engine: engine.generate(PROMPT, max_new_tokens=4).tolist(), models=list(models))
    assert answers == [expected] * 2


def test_another_transformers_is_refused_before_the_model_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    from corebound.models.injection import inject

    model = FAMILIES["llama"].build()
    with monkeypatch.context() as patch:
        patch.setattr(inject.transformers, "__version__", "4.51.3")
        with pytest.raises(KernelError, match="expected transformers 5"):
            corebound.init_inference(model, dtype="bf16", replace_with_kernel_inject=True)
    assert next(model.parameters()).dtype == torch.float32
    corebound.init_inference(model, dtype="bf16", replace_with_kernel_inject=True)


def test_a_model_that_was_changed_halfway_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise HostError("no space is left")

    model = FAMILIES["llama"].build()
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "save_ranks", full)
        with pytest.raises(HostError, match="no space"):
            corebound.init_inference(model, dtype="bf16", save_mp_checkpoint_path=str(tmp_path))
    with pytest.raises(ConfigError, match="LlamaForCausalLM was changed halfway by a call that failed"):
        corebound.init_inference(model, dtype="bf16")


def test_a_call_that_changed_nothing_can_be_made_again() -> None:
    model = FAMILIES["llama"].build()
    with pytest.raises(ConfigError, match="has weights already"):
        corebound.init_inference(model, dtype="fp32", checkpoint="/somewhere")
    corebound.init_inference(model, dtype="fp32")
