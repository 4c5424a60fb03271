"""`corebound bench quality`: what int8 and int4 weights cost in perplexity and logits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click
import torch

from corebound.cli.bench_model import benchmark_model_dir
from corebound.cli.tables import render_table
from corebound.engine.bench.quality import (
    HELD_OUT_FILE,
    Quality,
    QualityMeter,
    bits_per_weight,
    encode_texts,
    random_texts,
)
from corebound.engine.bench.shapes import SHAPES
from corebound.errors import ConfigError
from corebound.models import describe
from corebound.quantization import parse_scheme

ALL_SCHEMES = tuple(
    parse_scheme(":".join(parts))
    for parts in itertools.product(("int8", "int4"), ("channel", "g128", "g64", "g32"), ("sym", "asym"))
)
_FLOATS = (("float32", 32.0, torch.float32), ("bfloat16", 16.0, torch.bfloat16))
# What `--dtype` names, and the scheme that it stands for.
_COMPUTED = (("bfloat16", None), ("int8", parse_scheme("int8")), ("int4", parse_scheme("int4")))
_COLUMNS = (
    ("weights", "scheme", None),
    ("bits", "bits_per_weight", 2),
    ("perplexity", "perplexity", 4),
    ("logits error", "logits_error", 5),
    ("same top token", "same_top_token", 4),
)


@click.command()
@click.option("--model", metavar="DIR|ID", help="Directory of a Hugging Face model, an id of the hub, or `demo`.")
@click.option("--shape", metavar=f"{{{','.join(SHAPES)}}}", help="A random model of this shape, written once.")
@click.option(
    "--scheme", "schemes", multiple=True, metavar="SCHEME", help="Such as int4:g64:sym; repeatable. Default: all."
)
@click.option(
    "--quantize-head", is_flag=True, help="Quantize the head too, and with it an embedding that it is tied to."
)
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="Held-out text, a text a line.")
@click.option("--num-texts", type=click.IntRange(1), metavar="N", help="Use the first N texts only.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where models of a shape are kept.", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def quality(
    model: str | None,
    shape: str | None,
    schemes: tuple[str, ...],
    quantize_head: bool,
    text: Path | None,
    num_texts: int | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure what weights as whole numbers cost: perplexity of held-out text, and how far logits move.

    The matrices of the layers are quantized by rounding to nearest, turned back, and computed with in float32, so the
    figures show the scheme and no kernel. Without --scheme every scheme is measured, and the model as --dtype computes
    it here, with what kernels round; a model that is packed already is measured as it is.

    The default text is what the demo model was never trained on. A model of a shape is random and has no tokenizer: its
    texts are random tokens, and only its logits are compared.

    \b
    Examples:
      corebound bench quality --model demo
      corebound bench quality --model demo --scheme int4 --scheme int4:g32 --quantize-head
      corebound bench quality --shape llama-tiny --json
    """  # noqa: D301  click reads the \b
    chosen = [parse_scheme(name) for name in schemes]
    description = describe(benchmark_model_dir(model, shape, cache_dir), tokenizer=shape is None)
    if description.shards is not None:
        raise ConfigError(f"{description.path}: was written for ranks", hint="measure the checkpoint it was made of")
    if shape is None:
        texts = encode_texts(description, _read_texts(text or HELD_OUT_FILE)[:num_texts])
    else:
        texts = random_texts(description)[:num_texts]
    meter = QualityMeter(description, texts, is_text=shape is None)
    rows = [_row(name, bits, meter.measure(None, dtype=dtype)) for name, bits, dtype in _FLOATS]
    # What is packed already is measured as it is.
    for scheme in chosen or (ALL_SCHEMES if description.packed is None else ()):
        click.echo(f"measuring {scheme.name}", err=True)
        rows.append(_row(scheme.name, bits_per_weight(scheme, description), meter.measure(scheme, head=quantize_head)))
    if not chosen and not quantize_head:
        for dtype, stands_for in _COMPUTED[: 1 if description.packed else None]:
            name = f"{dtype}, computed here"
            click.echo(f"measuring {name}", err=True)
            bits = 16.0 if stands_for is None else bits_per_weight(stands_for, description)
            rows.append(_row(name, bits, meter.measure_computed(dtype)))
    result = {
        "model": description.name,
        "packed": None if description.packed is None else description.packed.name,
        "quantized_head": quantize_head,
        "num_texts": len(texts),
        "num_tokens": sum(map(len, texts)),
        "rows": rows,
    }
    click.echo(json.dumps(result, indent=2) if as_json else _table(result))


def _read_texts(path: Path) -> list[str]:
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"--text {path}: {reason}") from error
    if not texts:
        raise ConfigError(f"--text {path}: expected a text a line, found none")
    return texts


def _row(name: str, bits: float, figures: Quality) -> dict[str, Any]:
    perplexity = figures.perplexity
    return {
        "scheme": name,
        "bits_per_weight": round(bits, 3),
        "perplexity": None if perplexity is None else round(perplexity, 5),
        "logits_error": round(figures.logits_error, 6),
        "same_top_token": round(figures.same_top_token, 5),
    }


def _table(result: dict[str, Any]) -> str:
    columns = [column for column in _COLUMNS if result["rows"][0][column[1]] is not None]
    cells = [
        [row[key] if digits is None else round(row[key], digits) for _, key, digits in columns]
        for row in result["rows"]
    ]
    stored = f", packed as {result['packed']}" if result["packed"] else ""
    head = ", head quantized too" if result["quantized_head"] else ""
    title = f"{result['model']}{stored}: {result['num_texts']} texts, {result['num_tokens']} tokens{head}"
    return f"{title}\n{render_table([title for title, _, _ in columns], cells)}"
