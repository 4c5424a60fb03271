"""A tokenizer for models that have none: one word for each token id. Some engines do not load without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def word(token_id: int) -> str:
    """Return the word that stands for a token id."""
    return f"t{token_id}"


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write the files of the tokenizer into a model's folder."""
    model = {
        "type": "WordLevel",
        "vocab": {word(token_id): token_id for token_id in range(vocab_size)},
        "unk_token": word(0),
    }
    whole: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": word(0),
        "bos_token": word(1),
        "eos_token": word(2),
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
