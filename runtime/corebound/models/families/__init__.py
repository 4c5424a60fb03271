"""The families: how each one's config.json describes the decoder. Adding one is described in docs/models.md."""

from __future__ import annotations

from collections.abc import Callable

from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families import (
    bloom,
    falcon,
    gemma,
    gpt_neox,
    gptj,
    granite,
    llama,
    mistral,
    mixtral,
    opt,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    stablelm,
    starcoder2,
)

# By the name in the field `architectures` of config.json; never guessed from any other text.
ARCHITECTURES: dict[str, Callable[[ConfigReader, str], Architecture]] = {
    "BloomForCausalLM": bloom.architecture,
    "FalconForCausalLM": falcon.architecture,
    "GPTJForCausalLM": gptj.architecture,
    "GPTNeoXForCausalLM": gpt_neox.architecture,
    "GemmaForCausalLM": gemma.architecture,
    "GraniteForCausalLM": granite.architecture,
    "LlamaForCausalLM": llama.architecture,
    "MistralForCausalLM": mistral.architecture,
    "MixtralForCausalLM": mixtral.architecture,
    "OPTForCausalLM": opt.architecture,
    "Phi3ForCausalLM": phi3.architecture,
    "Qwen2ForCausalLM": qwen2.architecture,
    "Qwen2MoeForCausalLM": qwen2_moe.architecture,
    "Qwen3ForCausalLM": qwen3.architecture,
    "Qwen3MoeForCausalLM": qwen3_moe.architecture,
    "StableLmForCausalLM": stablelm.architecture,
    "Starcoder2ForCausalLM": starcoder2.architecture,
}

# Models that look like one of these and are not: why they are refused.
NOT_COMPUTED: dict[str, str] = {
    "Gemma2ForCausalLM": "norms after attention and MLP, and soft caps of scores and logits, are not computed",
    "Gemma3ForCausalLM": "norms after attention and MLP, and rotary settings by layer, are not computed",
    "Olmo2ForCausalLM": "norms over all heads of q and k, and norms after attention and MLP, are not computed",
    "Phi3SmallForCausalLM": "blocksparse attention is not computed",
    "PhiMoEForCausalLM": "its router (SparseMixer) and norms with biases are not computed",
}
