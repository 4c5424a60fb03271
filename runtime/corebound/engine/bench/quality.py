"""What quantization costs in quality: perplexity of held-out text, and how far logits move.

A scheme is measured by the decoder with its reference operators on the values that the codes stand for, so that its
figures have no kernel in them; what is computed here is measured as `--dtype` runs it, with all that kernels round.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from corebound import kernels
from corebound.comm.single import SingleCollectives
from corebound.engine.bench.dequantized import write_dequantized
from corebound.engine.kv_cache import allocate_kv_cache
from corebound.engine.step import SamplingRow, StepInput, decode_step, encode_step
from corebound.engine.text import HuggingFaceTokenizer
from corebound.models import Decoder, ModelDescription, load_model
from corebound.models.native_decoder import NativeDecoder
from corebound.quantization.scheme import Scheme

HELD_OUT_FILE = Path(__file__).with_name("held_out.txt")

_BLOCK_SIZE = 16
_MAX_STEP_TOKENS = 2048
# Logits of the plain model that are kept for comparison, 128 MiB of float32.
_MAX_KEPT_LOGITS = 1 << 25
_MAX_STEP_LOGITS = 1 << 24
_NUM_RANDOM_TEXTS, _NUM_RANDOM_TOKENS = 16, 64


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of one scheme. `perplexity` is per token after the first of each text, None for random texts.

    `logits_error` is the root mean square of the change of the logits over that of the logits, both without the mean
    of each position, which no probability depends on; `same_top_token` is the share of positions whose most likely
    token stays. Both are against float32.
    """

    perplexity: float | None
    logits_error: float
    same_top_token: float


def encode_texts(description: ModelDescription, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts, each with the token that ends one, shortest first as for training."""
    tokenizer = HuggingFaceTokenizer(description.path)
    end = list(description.eos_token_ids[:1])
    return sorted((tokenizer.encode(text) + end for text in texts), key=len)


def random_texts(description: ModelDescription) -> list[list[int]]:
    """Return seeded random token ids, for a model without a tokenizer."""
    generator = torch.Generator().manual_seed(0)
    shape = (_NUM_RANDOM_TEXTS, _NUM_RANDOM_TOKENS)
    ids: list[list[int]] = torch.randint(0, description.vocab_size, shape, generator=generator).tolist()
    return ids


def bits_per_weight(scheme: Scheme, description: ModelDescription) -> float:
    """Return the bits that a weight takes with its share of a 16-bit scale and, if asymmetric, a zero."""
    num_inputs = scheme.group_size or description.hidden_size
    return scheme.bits + (16 + (0 if scheme.symmetric else scheme.bits)) / num_inputs


class QualityMeter:
    """Compares ways to store one model on the same texts."""

    def __init__(self, description: ModelDescription, texts: Sequence[Sequence[int]], *, is_text: bool) -> None:
        self._description, self._texts, self._is_text = description, texts, is_text
        self._kept: list[Tensor] = []
        num_kept = 0
        for logits, _ in self._run(None, torch.float32, head=False):
            num_kept += logits.numel()
            if num_kept > _MAX_KEPT_LOGITS and self._kept:
                break
            self._kept.append(logits)

    def measure(self, scheme: Scheme | None, *, head: bool = False, dtype: torch.dtype = torch.float32) -> Quality:
        """Return the figures of a scheme (None leaves the weights as they are), computed in `dtype`."""
        return self._figures(self._run(scheme, dtype, head=head))

    def measure_computed(self, dtype: str) -> Quality:
        """Return the figures of the model as it runs here with `--dtype`, many tokens a step."""
        return self._figures(self._computed(dtype))

    def _figures(self, steps: Iterable[tuple[Tensor, Sequence[Sequence[int]]]]) -> Quality:
        loss, num_targets = 0.0, 0
        change, size, num_same, num_compared = 0.0, 0.0, 0, 0
        for index, (logits, texts) in enumerate(steps):
            loss += _loss(logits, texts)
            num_targets += sum(len(text) - 1 for text in texts)
            if index < len(self._kept):
                plain = self._kept[index]
                change += float((_centred(logits) - _centred(plain)).square().sum(dtype=torch.float64))
                size += float(_centred(plain).square().sum(dtype=torch.float64))
                num_same += int((logits.argmax(1) == plain.argmax(1)).sum())
                num_compared += len(plain)
            elif not self._is_text:
                break
        return Quality(
            perplexity=math.exp(loss / num_targets) if self._is_text else None,
            logits_error=math.sqrt(change / size),
            same_top_token=num_same / num_compared,
        )

    @torch.inference_mode()
    def _run(
        self, scheme: Scheme | None, dtype: torch.dtype, *, head: bool
    ) -> Iterator[tuple[Tensor, Sequence[Sequence[int]]]]:
        """Yield the logits of the positions of some texts, and these, until all texts have been."""
        with tempfile.TemporaryDirectory(prefix="corebound-quality-") as directory:
            target = Path(directory) / self._description.name  # the log names the model by it
            target.mkdir()
            write_dequantized(self._description, target, scheme, head=head)
            with kernels.forced(mode="reference"):
                decoder = load_model(target, str(dtype).removeprefix("torch."), SingleCollectives())
        assert isinstance(decoder, Decoder), "the reference operators make the plain decoder"
        with kernels.forced(mode="reference"):
            for texts in _steps(self._texts, self._description.vocab_size):
                yield _logits(decoder, texts), texts

    @torch.inference_mode()
    def _computed(self, dtype: str) -> Iterator[tuple[Tensor, Sequence[Sequence[int]]]]:
        decoder = load_model(self._description.path, dtype, SingleCollectives())
        for texts in _steps(self._texts, self._description.vocab_size):
            yield _logits(decoder, texts), texts


def _steps(texts: Sequence[Sequence[int]], vocab_size: int) -> Iterator[list[Sequence[int]]]:
    """Yield texts in parts whose tokens and logits stay small."""
    most = min(_MAX_STEP_TOKENS, _MAX_STEP_LOGITS // vocab_size)
    part: list[Sequence[int]] = []
    for text in texts:
        if part and sum(map(len, part)) + len(text) > most:
            yield part
            part = []
        part.append(text)
    if part:
        yield part


def _logits(decoder: Decoder | NativeDecoder, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits of every position of the texts. Shapes: [tokens of all texts, vocabulary]."""
    inputs, num_blocks = [], 0
    for text in texts:
        needed = -(-len(text) // _BLOCK_SIZE)
        inputs.append(StepInput(list(text), 0, list(range(num_blocks, num_blocks + needed)), SamplingRow()))
        num_blocks += needed
    cache = allocate_kv_cache(
        num_blocks=num_blocks,
        num_layers=decoder.num_layers,
        num_kv_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        block_size=_BLOCK_SIZE,
        dtype=decoder.dtype,
    )
    batch = decode_step(encode_step(inputs, _BLOCK_SIZE)).batch
    return decoder.forward(batch.with_logits_rows(range(batch.num_tokens)), cache)


def _loss(logits: Tensor, texts: Sequence[Sequence[int]]) -> float:
    """Return the summed cross-entropy of all tokens after the first of each text, in nats."""
    total = 0.0
    for text, rows in zip(texts, logits.split([len(text) for text in texts]), strict=True):
        targets = torch.tensor(text[1:])
        total += float(torch.nn.functional.cross_entropy(rows[:-1], targets, reduction="sum"))
    return total


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)
