"""OpenVINO GenAI, on a model that optimum-intel converted and, for int8 and int4, compressed."""

from __future__ import annotations

import time
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
from tokenizer import write_tokenizer


def convert(job: BenchJob, target: Path) -> None:
    """Write the model as OpenVINO's, its weights in the job's dtype."""
    import openvino
    import openvino_tokenizers
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoConfig, AutoTokenizer

    settings: dict[str, dict[str, Any]] = {
        "bfloat16": {"load_in_8bit": False},
        "int8": {"quantization_config": OVWeightQuantizationConfig(bits=8)},
        "int4": {"quantization_config": OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0)},
    }
    model = OVModelForCausalLM.from_pretrained(job.model_dir, export=True, compile=False, **settings[job.dtype])
    model.save_pretrained(target)
    write_tokenizer(target, AutoConfig.from_pretrained(job.model_dir).vocab_size)
    parts = openvino_tokenizers.convert_tokenizer(AutoTokenizer.from_pretrained(target), with_detokenizer=True)
    for name, part in zip(("tokenizer", "detokenizer"), parts, strict=True):
        openvino.save_model(part, target / f"openvino_{name}.xml")


def measure(job: BenchJob, target: Path) -> None:
    """Measure and write the report."""
    import openvino_genai

    threads = {} if job.num_threads is None else {"INFERENCE_NUM_THREADS": job.num_threads}
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.LLMPipeline(str(target), "CPU", scheduler_config=scheduler, **threads)
    cases = []
    for case in job.cases:
        _generate(pipeline, case.for_warm_up(), job.num_warm_up_tokens, None)
        cases.append(between_lines(job, case, _single if case.batch_size == 1 else _batch, pipeline, case))
    BenchReport(
        num_threads=job.num_threads or 0,
        peak_rss_bytes=peak_rss_bytes(),
        cases=cases,
        weight_bytes_per_token=_weight_bytes(job, target),
        version=openvino_genai.__version__.split("-")[0],
    ).write(job.report_path)


def _generate(pipeline: Any, case: BenchCase, count: int, streamer: Any) -> Any:
    """Continue the prompts of a case by `count` tokens and return what the pipeline returns."""
    import numpy
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
    prompt = numpy.array(case.prompt_token_ids, dtype=numpy.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(prompt), openvino.Tensor(numpy.ones_like(prompt)))
    return pipeline.generate(inputs, config) if streamer is None else pipeline.generate(inputs, config, streamer)


def _single(pipeline: Any, case: BenchCase) -> CaseReport:
    clock = StepClock()
    out = _generate(pipeline, case, case.num_new_tokens, _streamer(clock))
    return clock.report(list(out.tokens[0]))


def _batch(pipeline: Any, case: BenchCase) -> CaseReport:
    """Return the times of a batch, which has no streamer, from the pipeline's own record of its steps.

    Prompts are prefilled one after the other while the first are continued already: what counts is from the first
    step that brought a token to every prompt to the last one that did.
    """
    started_s = time.perf_counter()
    out = _generate(pipeline, case, case.num_new_tokens, None)
    elapsed_s = time.perf_counter() - started_s
    record = out.perf_metrics.raw_metrics
    ends_ms, sizes = list(record.m_new_token_times), list(record.m_batch_sizes)
    full = [index for index, size in enumerate(sizes) if size == case.batch_size]
    if len(full) < 2:
        raise SystemExit(f"the {case.batch_size} prompts never ran together: more new tokens are needed")
    return CaseReport(
        first_token_ms=1e3 * elapsed_s - (ends_ms[-1] - ends_ms[full[0]]),
        step_ms=[ends_ms[i] - ends_ms[i - 1] for i in range(full[0] + 1, full[-1] + 1)],
        elapsed_s=elapsed_s,
        token_ids=list(out.tokens[0]),
    )


def _streamer(clock: StepClock) -> Any:
    import openvino_genai

    class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]  # it has no annotations
        def __init__(self) -> None:
            super().__init__()

        def write(self, _: Any) -> Any:
            clock.tick()
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            return None

    return Streamer()


def _weight_bytes(job: BenchJob, target: Path) -> int | None:
    """Return what a step reads: all constants but the embedding, of which it takes a row."""
    import openvino

    total = 0
    model = openvino.Core().read_model(str(target / "openvino_model.xml"))
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            consumers = {target.get_node().get_type_name() for target in op.output(0).get_target_inputs()}
            if "Gather" not in consumers and not _feeds_gather(op):
                total += op.get_byte_size()
    return total


def _feeds_gather(op: Any) -> bool:
    """Return whether a compressed constant becomes the table of a Gather after it has been unpacked."""
    nodes = [target.get_node() for target in op.output(0).get_target_inputs()]
    for _ in range(8):
        if any(node.get_type_name() == "Gather" for node in nodes):
            return True
        nodes = [
            after.get_node()
            for node in nodes
            if node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape")
            for output in node.outputs()
            for after in output.get_target_inputs()
        ]
    return False


if __name__ == "__main__":
    raise SystemExit(convert_or_measure(convert, measure))
