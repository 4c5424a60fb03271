"""Compares the tokens of different runs of the same greedy prompt. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from smoke.checks import Check, failed, judged, parse_success
from smoke.node import Answer


def tokens_of(answer: Answer) -> list[int] | None:
    """Return the tokens that the first prompt was continued with, None where the run has none."""
    outputs = (parse_success(answer) or {}).get("outputs") or []
    return list(outputs[0]["token_ids"]) if outputs else None


def reference(tokens: Mapping[str, Sequence[int] | None]) -> tuple[str, list[int]] | None:
    """Return the tokens of one rank that most nodes agree on, and the first node that has them; None without any."""
    there = {host: tuple(found) for host, found in tokens.items() if found}
    if not there:
        return None
    counts = Counter(there.values())
    # Of equally frequent ones, those of the first node.
    best = max(counts.values())
    host = next(host for host, found in there.items() if counts[found] == best)
    return host, list(there[host])


def judge_tokens(
    host: str, name: str, found: Sequence[int] | None, expected: Sequence[int], *, strict: bool, answer: Answer
) -> Check:
    """Return whether the tokens are the expected ones; `strict` False makes a difference a warning."""
    if not found:
        return failed(host, "tokens", name, answer)
    if list(found) == list(expected):
        return judged(host, "tokens", name, True, f"{len(found)} tokens are equal")
    pairs = list(zip(found, expected, strict=False))
    place = next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
    detail = f"token {place + 1} of {len(expected)} differs: expected {_around(expected, place)}, found "
    detail += _around(found, place)
    if strict:
        return judged(host, "tokens", name, False, detail, answer)
    detail += "; another number of ranks sums in another order, so this is no proof of a fault"
    return Check(host=host, group="tokens", name=name, status="warn", detail=detail)


def _around(tokens: Sequence[int], place: int) -> str:
    return " ".join(map(str, tokens[place : place + 3])) or "the end"
