"""Text to token ids and back, also token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from corebound.errors import ModelLoadError, RequestError

_INCOMPLETE = "\ufffd"
# Tokens before the continuation that are decoded with it: what a token reads like can depend on its left neighbours.
_NUM_CONTEXT_TOKENS = 6


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt, with the special tokens that the model expects."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""


class HuggingFaceTokenizer:
    """The tokenizer files of a model directory, read by transformers."""

    def __init__(self, model_dir: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)
        # transformers raises whatever its readers raise; all of it means that these files cannot be used.
        except Exception as error:
            raise ModelLoadError(
                f"tokenizer of {model_dir}: {type(error).__name__}: {error}",
                hint="the directory needs tokenizer.json, or the files that its tokenizer_config.json names",
            ) from error

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt, with the special tokens that the model expects."""
        return list(self._tokenizer(text)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens, spaces as the model wrote them."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


class NoTokenizer:
    """Stands in for the tokenizer of a model that is only given token ids."""

    def encode(self, text: str) -> list[int]:
        """Refuse: there is nothing to read text with. Raises: RequestError."""
        raise RequestError("a prompt is text, but this model was loaded without its tokenizer", hint="pass token ids")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return no text."""
        return ""


class TextStream:
    """The text of one continuation as it grows, cut at stop strings.

    Characters are given out when they are whole (one may span several tokens) and cannot be part of a stop string.
    Leading spaces are kept.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        # Decoding starts at `_window[0]`; everything up to `_num_read` tokens of it is already in `text`.
        self._window = list(prompt_token_ids[-_NUM_CONTEXT_TOKENS:])
        self._num_read = len(self._window)
        self._num_given = 0
        self.text = ""
        self.is_stopped = False

    def add(self, token_id: int) -> None:
        """Take the next token; afterwards `text` is longer, or `is_stopped` is true."""
        self._window.append(token_id)
        self._grow(is_last=False)

    def take(self, *, is_last: bool = False) -> str:
        """Return the characters that are certain and were not returned before; all of them if `is_last`."""
        if is_last and not self.is_stopped:
            self._grow(is_last=True)
        held = 0 if is_last or self.is_stopped else self._num_held_back()
        new = self.text[self._num_given : len(self.text) - held]
        self._num_given += len(new)
        return new

    def _grow(self, *, is_last: bool) -> None:
        if self._num_read == len(self._window):
            return
        before = self._tokenizer.decode(self._window[: self._num_read])
        after = self._tokenizer.decode(self._window)
        if after.endswith(_INCOMPLETE) and not is_last:
            return
        previous_length = len(self.text)
        self.text += after[len(before) :]
        self._window = self._window[max(0, self._num_read - _NUM_CONTEXT_TOKENS) :]
        self._num_read = len(self._window)
        self._find_stop(previous_length)

    def _find_stop(self, previous_length: int) -> None:
        ends = []
        for stop in self._stop:
            where = self.text.find(stop, max(0, previous_length - len(stop) + 1))
            if where >= 0:
                ends.append(where)
        if ends:
            self.text = self.text[: min(ends)]
            self.is_stopped = True

    def _num_held_back(self) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
