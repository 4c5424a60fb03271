"""Runs on every rank: splits transformers' models as argv[1] (JSON) asks and writes what it saw to <output>.<rank>."""

import hashlib
import json
import sys
from pathlib import Path

import torch
import transformers

from corebound import init_distributed
from corebound.models.injection import inject_kernels
from corebound.sharding.checkpoint import read_checkpoint
from corebound.sharding.modules import CheckpointSource, shard_module
from fixtures.families import FAMILIES
from fixtures.module_parity import SHORT, answer


def status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def split(task, model, collectives, **settings):
    shard_module(model, collectives, **settings)
    if task["inject"]:
        inject_kernels(model, collectives)


def tokens(task, collectives):
    """Generate with a model of each family in both types, and digest its logits."""
    reports = {"provider": collectives.name, "float32": {}, "bfloat16": {}}
    for name in task["families"]:
        for dtype in ("float32", "bfloat16"):
            model = FAMILIES[name].build().to(getattr(torch, dtype))
            split(task, model, collectives)
            found = answer(model, SHORT)
            digest = hashlib.sha256(found.logits.float().numpy().tobytes()).hexdigest()
            reports[dtype][name] = {"tokens": found.tokens.tolist(), "digest": digest}
    return reports


def memory(task, collectives):
    """Fill a model on the meta device and tell by how much the peak of the resident memory grew."""
    config = transformers.AutoConfig.from_pretrained(task["model"])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    torch.ones(8) @ torch.ones(8)
    source = CheckpointSource(model, read_checkpoint(Path(task["model"])))
    collectives.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = status_bytes("VmRSS")
    split(task, model, collectives, source=source)
    grown = status_bytes("VmHWM") - before
    collectives.barrier()
    return {"peak_bytes": grown, "shard_bytes": sum(parameter.nbytes for parameter in model.parameters())}


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    collectives = init_distributed()
    result = {"tokens": tokens, "memory": memory}[task["do"]](task, collectives)
    Path(f"{task['output']}.{collectives.rank}").write_text(json.dumps(result))
    collectives.close()


main()
