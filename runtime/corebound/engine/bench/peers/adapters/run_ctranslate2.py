"""CTranslate2's generator, on a model that its own converter wrote."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from protocol import (
    BenchCase,
    BenchJob,
    BenchReport,
    CaseReport,
    StepClock,
    between_lines,
    convert_or_measure,
    peak_rss_bytes,
)
from tokenizer import word, write_tokenizer

_TYPES = {"bfloat16": "bfloat16", "float32": "float32", "int8": "int8"}


def convert(job: BenchJob, target: Path) -> None:
    """Write the model as CTranslate2's; its converter wants a tokenizer beside the checkpoint."""
    shutil.rmtree(target, ignore_errors=True)
    import ctranslate2
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for file in Path(job.model_dir).iterdir():
            (Path(scratch) / file.name).symlink_to(file)
        write_tokenizer(Path(scratch), AutoConfig.from_pretrained(job.model_dir).vocab_size)
        converter = ctranslate2.converters.TransformersConverter(scratch, load_as_float16=False)
        converter.convert(str(target), quantization=_TYPES[job.dtype], force=True)


def measure(job: BenchJob, target: Path) -> None:
    """Measure and write the report."""
    import ctranslate2

    found = ctranslate2.get_supported_compute_types("cpu")
    if _TYPES[job.dtype] not in found:
        raise SystemExit(f"this processor has no {job.dtype} in CTranslate2, only {', '.join(sorted(found))}")
    threads = {} if job.num_threads is None else {"intra_threads": job.num_threads}
    generator = ctranslate2.Generator(str(target), device="cpu", compute_type=_TYPES[job.dtype], **threads)
    cases = []
    for case in job.cases:
        run(generator, case.for_warm_up(), job.num_warm_up_tokens)
        cases.append(between_lines(job, case, run, generator, case, case.num_new_tokens))
    BenchReport(
        num_threads=job.num_threads or 0,
        peak_rss_bytes=peak_rss_bytes(),
        cases=cases,
        version=ctranslate2.__version__,
    ).write(job.report_path)


def run(generator: Any, case: BenchCase, count: int) -> CaseReport:
    """Continue the prompts of a case by `count` tokens and return the times."""
    clock = StepClock()

    def on_token(step: Any) -> bool:
        if step.batch_id == case.batch_size - 1:
            clock.tick()
        return False

    results = generator.generate_batch(
        [[word(token) for token in prompt] for prompt in case.prompt_token_ids],
        max_length=count,
        min_length=count,
        sampling_topk=1,
        include_prompt_in_result=False,
        callback=on_token,
    )
    return clock.report([int(token[1:]) for token in results[0].sequences[0]])


if __name__ == "__main__":
    raise SystemExit(convert_or_measure(convert, measure))
