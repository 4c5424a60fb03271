"""Bytes of a checkpoint at a dtype, of a prompt's cache, and of the caches that some cores have."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from corebound.engine.bench.shapes import SHAPES
from corebound.engine.bench.targets.sizes import checkpoint_bytes, last_level_bytes, prompt_cache_bytes
from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader
from corebound.models.families import ARCHITECTURES
from corebound.topology import read_topology
from fixtures.topology_trees import shared_machine


def architecture(**config: object) -> Architecture:
    config = SHAPES["llama-tiny"] | config
    return ARCHITECTURES[config["architectures"][0]](ConfigReader(Path("x"), dict(config)), "x")


ATTENTION, MLP, HEAD = 2 * 512 * 512 + 2 * 512 * 256, 3 * 512 * 1408, 4000 * 512
NORMS = (2 * 4 + 1) * 512 * 2


def test_an_untied_head_never_has_less_than_eight_bits() -> None:
    found = checkpoint_bytes(architecture(), ["bfloat16", "int8", "int4"])
    layers = 4 * (ATTENTION + MLP)
    padded_head = math.ceil(4000 / 64) * 64 * 512  # panels have 64 outputs
    assert found["bfloat16"] == 2 * (layers + padded_head + HEAD) + NORMS
    # Of int4 each group of 128 has a scale of 16 bits and 8 of a zero point; of an int8 row there is one scale.
    grouped = layers // 2 + layers // 128 * 3
    assert found["int4"] == grouped + padded_head + padded_head // 512 * 2 + 2 * HEAD + NORMS
    assert layers + padded_head < found["int8"] - 2 * HEAD - NORMS < 1.01 * (layers + padded_head)


def test_routers_of_experts_stay_plain() -> None:
    config = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 64,
        "num_experts_per_tok": 2,
    }
    found = checkpoint_bytes(architecture(**config), ["bfloat16", "int4"])
    one_expert = checkpoint_bytes(architecture(**config | {"num_local_experts": 8}), ["bfloat16", "int4"])
    experts = 4 * 56 * MLP
    routers = 4 * 56 * 512
    # A router of 8 experts fills a panel of 64 outputs as one of 64 does.
    assert found["int4"] - one_expert["int4"] == experts // 2 + experts // 128 * 3
    assert 0 <= found["bfloat16"] - one_expert["bfloat16"] - 2 * experts <= 2 * routers


def test_a_cache_is_counted_in_whole_blocks() -> None:
    block = 32 * 2 * 4 * 4 * 64 * 2
    assert [prompt_cache_bytes(architecture(), length) for length in (1, 32, 33)] == [block, block, 2 * block]


@pytest.mark.parametrize("name", ["vm", "xeon-2s-ht", "epyc-nps4", "adjacent-smt"])
def test_only_the_caches_that_hold_the_cores_count(name: str) -> None:
    topology = read_topology(shared_machine(name))
    last = max(cache.level for cache in topology.caches)
    caches = [cache for cache in topology.caches if cache.level == last]
    first = topology.physical_cores()[0].cpus[0]
    (own,) = [cache for cache in caches if first in cache.cpus]
    assert last_level_bytes(topology, (first,)) == own.size_bytes
    assert last_level_bytes(topology, own.cpus) == own.size_bytes
    others = [cache for cache in caches if cache is not own]
    if others:
        assert last_level_bytes(topology, (first, others[-1].cpus[0])) == own.size_bytes + others[-1].size_bytes
    assert last_level_bytes(topology, topology.online_cpus) == sum(cache.size_bytes for cache in caches)
    assert last_level_bytes(topology, ()) == 0
