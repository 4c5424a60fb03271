"""Runs on every rank: generates each case of the file in argv[1], checks that ranks agree, rank 0 writes argv[2]."""

import json
import sys
from pathlib import Path

from corebound import LLM, init_distributed, logs
from corebound.engine import SamplingParams


def main() -> None:
    logs.setup("info")
    cases = json.loads(Path(sys.argv[1]).read_text())
    collectives = init_distributed()
    results = []
    for case in cases:
        with LLM(case["model"], dtype=case.get("dtype", "float32"), collectives=collectives, **case["options"]) as llm:
            # Only rank 0's arguments count: the others deliberately bring different ones.
            prompts = case["prompts"] if collectives.rank == 0 else [[5]]
            outputs = llm.generate(prompts, SamplingParams.from_json(case["params"]))
            tokens = [list(output.token_ids) for output in outputs]
            for rank in range(collectives.size):
                assert collectives.broadcast_object(tokens, root=rank) == tokens, f"rank {rank} has other outputs"
            results.append([output.to_json() for output in outputs])
    if collectives.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    collectives.close()


main()
