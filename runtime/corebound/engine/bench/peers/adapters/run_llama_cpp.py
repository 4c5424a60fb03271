"""llama.cpp, through the C interface that llama-cpp-python exposes, on a GGUF file written from the checkpoint."""

from __future__ import annotations

import ctypes
import json
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

_FILE = "model.gguf"
_MICRO_BATCH_TOKENS = 512
# Our dtypes and what llama.cpp calls the type of a whole file.
_FILE_TYPES = {"int8": "LLAMA_FTYPE_MOSTLY_Q8_0", "int4": "LLAMA_FTYPE_MOSTLY_Q4_0"}
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}


def convert(job: BenchJob, target: Path) -> None:
    """Write the model as GGUF in bfloat16 and, for int8 and int4, let llama.cpp quantise that as it does by default."""
    import llama_cpp

    if job.dtype not in _FILE_TYPES:
        _write_gguf(Path(job.model_dir), target / _FILE)
        return
    whole = target / "bf16.gguf"
    _write_gguf(Path(job.model_dir), whole)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, _FILE_TYPES[job.dtype])
    params.nthread = job.num_threads or 1
    code = llama_cpp.llama_model_quantize(str(whole).encode(), str(target / _FILE).encode(), ctypes.byref(params))
    whole.unlink()
    if code != 0:
        raise SystemExit(f"llama_model_quantize returned {code}")


def _write_gguf(model_dir: Path, path: Path) -> None:
    import gguf

    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise SystemExit(f"only LLaMA models are written as GGUF here, found {config['model_type']}")
    writer = gguf.GGUFWriter(str(path), "llama")
    num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(num_kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(config["hidden_size"] // num_heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, words in _tensors(model_dir / "model.safetensors"):
        heads = num_heads if "q_proj" in name else num_kv_heads if "k_proj" in name else 0
        words = _interleaved(words, heads) if heads else words
        target = _target_name(name)
        if words.ndim == 1:
            # llama.cpp wants norms in float32; a bfloat16 is the upper half of one.
            writer.add_tensor(target, (words.astype("uint32") << 16).view("float32"))
        else:
            writer.add_tensor(target, words.view("uint8"), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(path: Path) -> Any:
    """Yield name and 16-bit words of each bfloat16 tensor of a safetensors file, which numpy has no type for."""
    import numpy

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = numpy.memmap(path, dtype=numpy.uint8, mode="r", offset=8 + length)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{name}: expected BF16, found {entry['dtype']}")
        start, end = entry["data_offsets"]
        yield name, numpy.ascontiguousarray(data[start:end]).view(numpy.uint16).reshape(entry["shape"])


def _interleaved(words: Any, num_heads: int) -> Any:
    """Return the rows of a projection in llama.cpp's order: the two halves of a rotary head alternate."""
    rows, columns = words.shape
    halves = words.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns).copy()


def _target_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest]}"


def measure(job: BenchJob, target: Path) -> None:
    """Measure and write the report."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(target / _FILE).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp could not load {target / _FILE}")
    cases = []
    for case in job.cases:
        context = _context(model, job, case)
        run(context, case.for_warm_up(), job.num_warm_up_tokens)
        cases.append(between_lines(job, case, run, context, case, case.num_new_tokens))
        llama_cpp.llama_free(context)
    BenchReport(
        num_threads=job.num_threads or 0,
        peak_rss_bytes=peak_rss_bytes(),
        cases=cases,
        weight_bytes_per_token=_weight_bytes(target / _FILE),
        version=llama_cpp.__version__,
    ).write(job.report_path)


def _context(model: Any, job: BenchJob, case: BenchCase) -> Any:
    import llama_cpp

    params = llama_cpp.llama_context_default_params()
    params.n_seq_max = case.batch_size
    # The context is shared out evenly, in units that it rounds to.
    params.n_ctx = case.batch_size * (-(-(case.num_prompt_tokens + case.num_new_tokens) // 256) * 256)
    params.n_batch = max(_MICRO_BATCH_TOKENS, case.batch_size * case.num_prompt_tokens)
    params.n_ubatch = _MICRO_BATCH_TOKENS
    params.n_threads = params.n_threads_batch = job.num_threads or 1
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp could not make a context")
    return context


def run(context: Any, case: BenchCase, count: int) -> CaseReport:
    """Continue the prompts of a case by `count` tokens, the likeliest each time, and return the times."""
    import llama_cpp

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    sampler = llama_cpp.llama_sampler_init_greedy()
    batch = llama_cpp.llama_batch_init(case.batch_size * case.num_prompt_tokens, 0, 1)
    clock, first = StepClock(), []
    for row, prompt in enumerate(case.prompt_token_ids):
        for position, token in enumerate(prompt):
            _add(batch, token, position, row, wanted=position == case.num_prompt_tokens - 1)
    for step in range(count):
        code = llama_cpp.llama_decode(context, batch)
        if code != 0:
            raise SystemExit(f"llama_decode returned {code}")
        last = [i for i in range(batch.n_tokens) if batch.logits[i]]
        tokens = [llama_cpp.llama_sampler_sample(sampler, context, index) for index in last]
        clock.tick()
        first.append(tokens[0])
        batch.n_tokens = 0
        for row, token in enumerate(tokens):
            _add(batch, token, case.num_prompt_tokens + step, row, wanted=True)
    report = clock.report(first)
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_sampler_free(sampler)
    return report


def _add(batch: Any, token: int, position: int, row: int, *, wanted: bool) -> None:
    index = batch.n_tokens
    batch.token[index] = token
    batch.pos[index] = position
    batch.n_seq_id[index] = 1
    batch.seq_id[index][0] = row
    batch.logits[index] = wanted
    batch.n_tokens = index + 1


def _weight_bytes(path: Path) -> int:
    """Return what a step reads: all tensors but the embedding, of which it takes a row."""
    import gguf

    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(str(path)).tensors}
    if "output.weight" in tensors:
        del tensors["token_embd.weight"]
    return sum(tensors.values())


if __name__ == "__main__":
    raise SystemExit(convert_or_measure(convert, measure))
