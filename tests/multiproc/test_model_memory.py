"""Loading: the peak memory of a rank is its shard and a small constant, and it reads no more than its shard."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from corebound.launcher import LaunchSpec, launch
from corebound.models.config_reader import ConfigReader
from corebound.models.families import ARCHITECTURES
from corebound.sharding.plan import model_parameters

pytestmark = [pytest.mark.multiproc, pytest.mark.slow, pytest.mark.timeout(300)]

WORKER = Path(__file__).with_name("model_worker.py")
TESTS = Path(__file__).parents[1]
MIB = 2**20

# The reader's buffer (4 MiB), code of libraries that loading touches first (3 MiB), Python's own objects, huge pages at
# the ends of the mapping.
CONSTANT_BYTES = 16 * MIB

# Half a row of the narrowest matrix that is cut by columns is 4 KiB in bfloat16: what is narrower is read whole.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 16001,
    "hidden_size": 4096,
    "intermediate_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def write_model(path: Path, dtype: torch.dtype) -> int:
    """Write random weights in two files with an index and return their bytes."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    model = ARCHITECTURES["LlamaForCausalLM"](ConfigReader(path / "config.json", CONFIG), "large")
    noise = torch.randn(4 * MIB, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for index, parameter in enumerate(model_parameters(model)):
        num_weights = torch.Size(parameter.shape).numel()
        repeats = -(-num_weights // noise.numel())
        parts[index % 2][parameter.name] = noise.repeat(repeats)[:num_weights].view(parameter.shape)
    files = [f"model-{part + 1:05}-of-00002.safetensors" for part in range(2)]
    for file, tensors in zip(files, parts, strict=True):
        save_file(tensors, path / file)
    weight_map = {name: file for file, tensors in zip(files, parts, strict=True) for name in tensors}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum((path / file).stat().st_size for file in files)


@pytest.mark.parametrize(("stored", "wanted"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_peak_memory_is_the_shard_and_a_small_constant(tmp_path: Path, stored: str, wanted: str) -> None:
    dtype = getattr(torch, stored)
    file_bytes = write_model(tmp_path / "model", dtype)
    assert file_bytes > 300 * MIB
    task = {"do": "memory", "model": str(tmp_path / "model"), "dtype": wanted, "output": str(tmp_path / "report")}
    (tmp_path / "task.json").write_text(json.dumps(task))
    spec = LaunchSpec(
        command=(sys.executable, str(WORKER)),
        arguments=(str(tmp_path / "task.json"),),
        num_accelerators=2,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent / 'runtime'}:{TESTS}"},
    )
    assert launch(spec) == 0
    shutil.rmtree(tmp_path / "model")  # pytest would keep it
    reports = [json.loads((tmp_path / f"report.{rank}").read_text()) for rank in range(2)]
    for rank, report in enumerate(reports):
        print(f"rank {rank}:", {name: f"{value / MIB:.1f} MiB" for name, value in report.items()})
        assert report["peak_bytes"] < report["weight_bytes"] + CONSTANT_BYTES
        source_bytes = report["weight_bytes"] * dtype.itemsize // torch.bfloat16.itemsize
        # Panels are padded to 64 outputs: 63 rows of 4096 inputs of the head are in memory and in no file.
        padding_bytes = 63 * CONFIG["hidden_size"] * dtype.itemsize
        assert source_bytes - padding_bytes <= report["read_bytes"] < source_bytes + MIB
    # Both together hold the model once, but for the norms.
    assert sum(report["weight_bytes"] for report in reports) * dtype.itemsize // 2 < 1.01 * file_bytes
