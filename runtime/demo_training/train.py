"""Trains the demo model: a small BLOOM and its tokenizer, from texts that corpus.py makes.

One thread, fixed seeds and a schedule in steps make a run repeatable on one kind of machine. README.md beside this
file says how it is run.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from corpus import texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import BloomConfig, BloomForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from corebound.models.manifest import write_manifest

log = logging.getLogger("demo_training")

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
BOS_ID, EOS_ID, PAD_ID = 1, 2, 3
IGNORED_LABEL = -100
# What the configuration states, as BLOOM's does; ALiBi itself sets no limit.
CONTEXT_TOKENS = 2048
HELD_OUT_SEED_OFFSET = 1_000_003
WRITTEN_BY_HAND = Path(__file__).resolve().parent / "held_out.txt"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides what a run produces."""

    seed: int = 7
    num_steps: int = 2700
    batch_texts: int = 24
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-4
    num_warmup_steps: int = 100
    weight_decay: float = 0.05
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 12
    vocab_size: int = 3072
    num_tokenizer_texts: int = 8000
    num_held_out_texts: int = 400


def train_tokenizer(settings: Settings) -> Tokenizer:
    """Returns a byte-level BPE tokenizer trained on the first texts of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(texts(settings.seed), settings.num_tokenizer_texts), trainer)
    return tokenizer


def new_model(settings: Settings) -> BloomForCausalLM:
    """Returns an untrained model of the shape that the settings ask for."""
    config = BloomConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        n_layer=settings.num_layers,
        n_head=settings.num_heads,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        seq_length=CONTEXT_TOKENS,
    )
    return BloomForCausalLM(config)


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns input ids and labels of rows padded on the right; padding is never a label."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [IGNORED_LABEL] * (width - len(row)) for row in rows])
    return ids, labels


def batches(settings: Settings, tokenizer: Tokenizer, excluded: frozenset[str]) -> Iterator[list[list[int]]]:
    """Returns an endless stream of batches; the texts of one batch have similar lengths, so little is padding.

    Every row is one text and its end token: the position a prompt starts from is the one that training knows.
    """
    rng = random.Random(settings.seed)  # noqa: S311
    stream = (text for text in texts(settings.seed) if text not in excluded)
    num_pooled = 32
    while True:
        pool = [[*tokenizer.encode(text).ids, EOS_ID] for text in islice(stream, num_pooled * settings.batch_texts)]
        pool.sort(key=len)
        groups = [pool[i : i + settings.batch_texts] for i in range(0, len(pool), settings.batch_texts)]
        rng.shuffle(groups)
        yield from groups


def loss_of(model: BloomForCausalLM, rows: list[list[int]]) -> tuple[torch.Tensor, int]:
    """Returns the summed cross-entropy of the rows' tokens after the first, and how many those are."""
    ids, labels = padded(rows)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:]
    total = cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total, int((targets != IGNORED_LABEL).sum())


@torch.inference_mode()
def mean_loss(model: BloomForCausalLM, rows: list[list[int]], batch_texts: int) -> float:
    """Returns the mean cross-entropy per token, in nats."""
    sums = [loss_of(model, rows[i : i + batch_texts]) for i in range(0, len(rows), batch_texts)]
    return sum(float(total) for total, _ in sums) / sum(count for _, count in sums)


def learning_rate_at(step: int, settings: Settings) -> float:
    """Returns the learning rate of a step: linear warm-up, then half a cosine down to the final rate."""
    if step < settings.num_warmup_steps:
        return settings.learning_rate * (step + 1) / settings.num_warmup_steps
    progress = (step - settings.num_warmup_steps) / max(1, settings.num_steps - settings.num_warmup_steps)
    span = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def optimizer_of(model: BloomForCausalLM, settings: Settings) -> torch.optim.Optimizer:
    """Returns AdamW that decays matrices only; norms and biases keep their size."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def train(settings: Settings, output: Path, checkpoint_every: int) -> dict[str, object]:
    """Trains tokenizer and model, writes the model directory and returns the figures of the run."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(settings.seed)
    started = time.monotonic()
    tokenizer = train_tokenizer(settings)
    held_out = list(islice(texts(settings.seed + HELD_OUT_SEED_OFFSET), settings.num_held_out_texts))
    held_out_rows = sorted(([*tokenizer.encode(text).ids, EOS_ID] for text in held_out), key=len)
    by_hand_rows = [[*tokenizer.encode(line).ids, EOS_ID] for line in WRITTEN_BY_HAND.read_text("utf-8").splitlines()]
    model = new_model(settings)
    optimizer = optimizer_of(model, settings)
    stream = batches(settings, tokenizer, frozenset(held_out))
    num_tokens, recent = 0, 0.0
    for step in range(settings.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        total, count = loss_of(model, next(stream))
        loss = total / count
        loss.backward()
        loss_value = loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += count
        recent = loss_value if step == 0 else 0.95 * recent + 0.05 * loss_value
        if (step + 1) % 50 == 0 or step + 1 == settings.num_steps:
            elapsed_s = time.monotonic() - started
            log.info(
                "step %d/%d loss %.3f tokens %d %.0f s", step + 1, settings.num_steps, recent, num_tokens, elapsed_s
            )
        if checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < settings.num_steps:
            save(model, tokenizer, output, {"settings": asdict(settings), "num_steps_done": step + 1})
    figures: dict[str, object] = {
        "settings": asdict(settings),
        "num_steps_done": settings.num_steps,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_training_tokens": num_tokens,
        "training_s": round(time.monotonic() - started),
        "training_loss": round(recent, 3),
        "torch": torch.__version__,
    }
    figures |= held_out_figures(model, held_out_rows, by_hand_rows, settings)
    save(model, tokenizer, output, figures)
    return figures


def held_out_figures(
    model: BloomForCausalLM, held_out_rows: list[list[int]], by_hand_rows: list[list[int]], settings: Settings
) -> dict[str, float]:
    """Returns perplexities per token on held-out text, before and after rounding the weights to bfloat16.

    The model's weights are rounded in place.
    """
    figures: dict[str, float] = {}
    for name in ("float32", "bfloat16"):
        if name == "bfloat16":
            model.to(torch.bfloat16).to(torch.float32)
        grammar_loss = mean_loss(model, held_out_rows, settings.batch_texts)
        figures[f"held_out_loss_{name}"] = round(grammar_loss, 4)
        figures[f"held_out_perplexity_{name}"] = round(math.exp(grammar_loss), 3)
        by_hand = mean_loss(model, by_hand_rows, settings.batch_texts)
        figures[f"written_by_hand_perplexity_{name}"] = round(math.exp(by_hand), 1)
    return figures


def save(model: BloomForCausalLM, tokenizer: Tokenizer, output: Path, figures: dict[str, Any]) -> None:
    """Writes the model directory: bfloat16 weights, tokenizer, configurations, the run's figures and the manifest."""
    output.mkdir(parents=True, exist_ok=True)
    rounded = new_model(Settings(**figures["settings"]))
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    rounded.save_pretrained(output)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(output)
    # The class that this version of transformers writes is unknown to older ones; the general name is known to all.
    # A largest length would only make the tokenizer warn of an end that ALiBi does not have.
    config_path = output / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key in ("backend", "model_max_length"):
        config.pop(key, None)
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (output / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    write_manifest(output)


def main() -> None:
    """Trains with the settings given on the command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.", allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="model directory to write")
    parser.add_argument("--checkpoint-every", type=int, default=0, metavar="STEPS", help="also write it this often")
    for name, value in asdict(Settings()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=f"default: {value}")
    options = vars(parser.parse_args())
    output, checkpoint_every = options.pop("output"), options.pop("checkpoint_every")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures = train(Settings(**options), output, checkpoint_every)
    log.info("%s", json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
