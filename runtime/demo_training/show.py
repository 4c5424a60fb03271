"""Prints what a model makes of a fixed set of prompts, for judging it by reading; --golden records it for a test."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
    "The old ship",
    "Once upon a time",
    "In the morning",
    "A server with two sockets",
    "The small garden",
    "It was a dark night",
    "The engineer",
    "My grandmother",
    "The rain",
    "Hello, my name is",
    "What is a socket?",
    "The capital of France is",
    "DeepSpeed is a machine learning framework",
    "Corebound is",
    "Deep learning is",
    "The little robot",
    "Yesterday I bought a new car",
    "There was a purple dinosaur",
)


def continuations(directory: Path, prompts: tuple[str, ...], max_new_tokens: int) -> dict[str, str]:
    """Returns the greedy float32 continuation of each prompt, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    texts = {}
    for prompt in prompts:
        encoded = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**encoded, max_new_tokens=max_new_tokens, do_sample=False)[0]
        texts[prompt] = tokenizer.decode(ids[encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def main() -> None:
    """Prints, or records, the continuations."""
    parser = argparse.ArgumentParser(description="Print greedy continuations of a fixed set of prompts.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--prompt", action="append", help="instead of the fixed set; may be repeated")
    parser.add_argument("--max-new-tokens", type=int, default=110)
    parser.add_argument("--golden", type=Path, help="also write them to this JSON file")
    options = parser.parse_args()
    texts = continuations(options.directory, tuple(options.prompt or PROMPTS), options.max_new_tokens)
    for prompt, text in texts.items():
        sys.stdout.write(f"{prompt} |{text}\n\n")
    if options.golden is not None:
        options.golden.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
