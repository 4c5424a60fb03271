"""Runs on every rank: generates each case of the file in argv[1], checks that ranks agree, rank 0 writes argv[2]."""

import hashlib
import json
import sys
from pathlib import Path

import torch

from corebound import LLM, init_distributed, logs
from corebound.engine import SamplingParams


def record_states(llm):
    """Return a digest that takes in every state that this rank computes for itself and all ranks must hold alike."""
    digest, decoder = hashlib.sha256(), llm._decoder
    normalise = decoder._normalise

    def recorded(*arguments):
        results = normalise(*arguments)
        for tensor in results:
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return results

    decoder._normalise = recorded
    return digest


def main() -> None:
    logs.setup("info")
    cases = json.loads(Path(sys.argv[1]).read_text())
    collectives = init_distributed()
    results = []
    for case in cases:
        with LLM(case["model"], dtype=case.get("dtype", "float32"), collectives=collectives, **case["options"]) as llm:
            states = record_states(llm)
            # Only rank 0's arguments count: the others deliberately bring different ones.
            prompts = case["prompts"] if collectives.rank == 0 else [[5]]
            outputs = llm.generate(prompts, SamplingParams.from_json(case["params"]))
            own = states.hexdigest()
            assert own != hashlib.sha256().hexdigest(), "no state was computed"
            for rank in range(collectives.size):
                theirs = collectives.broadcast_object(own, root=rank)
                assert theirs == own, f"rank {rank} computed other states than rank {collectives.rank}"
            results.append([output.to_json() for output in outputs])
    if collectives.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    collectives.close()


main()
