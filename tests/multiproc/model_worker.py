"""Runs on every rank: does what argv[1] (JSON) asks with a model and writes what it saw to <output>.<rank>."""

import gc
import hashlib
import json
import sys
from pathlib import Path

import torch

from corebound import init_distributed
from corebound.models import load_model
from fixtures.decoding import Runner


def status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def greedy(task, collectives):
    """Generate, and digest every normalised state that ranks must hold alike."""
    runner = Runner(Path(task["model"]), collectives, task["dtype"])
    decoder = runner.decoder
    digest, normalise = hashlib.sha256(), decoder._normalise

    def recorded(x, residual, norm):
        normed, stream = normalise(x, residual, norm)
        for tensor in (normed, stream):
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return normed, stream

    decoder._normalise = recorded
    tokens = runner.greedy(task["prompts"], task["num_new_tokens"])
    return {"tokens": tokens, "digest": digest.hexdigest(), "provider": collectives.name}


def tokens(task, collectives):
    """Generate with each of several models, and digest the logits of its prompts."""
    reports = []
    for model, dtype in task["models"]:
        runner = Runner(Path(model), collectives, dtype)
        logits = torch.cat(runner.logits(task["prompts"]))
        digest = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
        reports.append({"tokens": runner.greedy(task["prompts"], task["num_new_tokens"]), "digest": digest})
    return {"models": reports, "provider": collectives.name}


def together(task, collectives):
    """Generate with each model step by step, in one call, and with a token whose embedding is not a number."""
    reports = []
    for model in task["models"]:
        runner = Runner(Path(model), collectives, "bfloat16")
        report = {"tokens": runner.greedy(task["prompts"], task["num_new_tokens"])}
        report["together"] = runner.greedy_together(task["prompts"], task["num_new_tokens"])
        known = {token for prompt in task["prompts"] for token in prompt}
        report["poison"] = next(token for token in report["tokens"][1][3:] if token not in known)
        decoder = runner.decoder
        if decoder.vocab_start <= report["poison"] < decoder.vocab_stop:
            decoder.weights.embedding[report["poison"] - decoder.vocab_start] = float("nan")
        report["broken"] = runner.greedy_together(task["prompts"], task["num_new_tokens"])
        reports.append(report)
    return {"models": reports, "provider": collectives.name}


def memory(task, collectives):
    """Load models one after the other and tell for each how the peak of the memory grew and how much was read."""
    torch.ones(8) @ torch.ones(8)
    return [memory_of(model, dtype, collectives) for model, dtype in task["models"]]


def memory_of(model, dtype, collectives):
    gc.collect()
    collectives.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before, read_before = status_bytes("VmRSS"), read_bytes()
    decoder = load_model(model, dtype, collectives)
    grown, num_read = status_bytes("VmHWM") - before, read_bytes() - read_before
    collectives.barrier()
    weights = decoder.weight_bytes_per_token
    if decoder.weights.embedding is not None:
        weights += decoder.weights.embedding.nbytes
    return {"peak_bytes": grown, "read_bytes": num_read, "weight_bytes": weights}


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    collectives = init_distributed()
    result = {"greedy": greedy, "memory": memory, "together": together, "tokens": tokens}[task["do"]](task, collectives)
    Path(f"{task['output']}.{collectives.rank}").write_text(json.dumps(result))
    collectives.close()


main()
