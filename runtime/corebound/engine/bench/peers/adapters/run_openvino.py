"""OpenVINO GenAI, on a model that optimum-intel converted and, for int8 and int4, compressed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from protocol import BenchCase, BenchJob, BenchReport, CaseReport, StepClock, peak_rss_bytes, read_job
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
        run(pipeline, case.for_warm_up(), job.num_warm_up_tokens)
        cases.append(run(pipeline, case, case.num_new_tokens))
    BenchReport(
        num_threads=job.num_threads or 0,
        peak_rss_bytes=peak_rss_bytes(),
        cases=cases,
        weight_bytes_per_token=_weight_bytes(job, target),
        version=openvino_genai.__version__.split("-")[0],
    ).write(job.report_path)


def run(pipeline: Any, case: BenchCase, count: int) -> CaseReport:
    """Continue the prompts of a case by `count` tokens and return the times."""
    import numpy
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
    prompt = numpy.array(case.prompt_token_ids, dtype=numpy.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(prompt), openvino.Tensor(numpy.ones_like(prompt)))
    clock = StepClock()
    if case.batch_size == 1:

        def on_token(_: Any) -> Any:
            clock.tick()
            return openvino_genai.StreamingStatus.RUNNING

        out = pipeline.generate(inputs, config, _streamer(on_token))
        return clock.report(list(out.tokens[0]))
    # A batch has no streamer; its own record says how long each step took.
    started_s = time.perf_counter()
    out = pipeline.generate(inputs, config)
    elapsed_s = time.perf_counter() - started_s
    steps = [1e-3 * us for us in out.perf_metrics.raw_metrics.token_infer_durations]
    first_ms = float(out.perf_metrics.get_ttft().mean)
    return CaseReport(first_token_ms=first_ms, step_ms=steps[1:], elapsed_s=elapsed_s, token_ids=list(out.tokens[0]))


def _streamer(on_token: Any) -> Any:
    import openvino_genai

    class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def write(self, token: Any) -> Any:
            for _ in token if isinstance(token, list) else [token]:
                status = on_token(token)
            return status

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


def main() -> int:
    """Do the job and return the exit code."""
    job = read_job()
    target = Path(job.converted_dir or "")
    if job.action == "convert":
        convert(job, target)
    else:
        measure(job, target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
