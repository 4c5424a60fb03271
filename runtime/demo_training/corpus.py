"""Returns short English texts, made from the grammar files beside this module; the same seed gives the same texts.

A grammar file is made of rules. A line `@name` begins one, every following line is one of its options:

- `{name}` stands for an option of rule `name`. It is chosen once per text: later uses repeat it. `{name2}` is a second,
  independent choice from the same rule.
- `[a|b|c]` stands for one of its alternatives, chosen afresh each time; alternatives may nest.
- The option `-` prints nothing.
- `{he}`, `{him}`, `{his}`, `{He}` follow the gender of the text's hero; `{male}` and `{female}` set it and print
  nothing. An option that ends in `~m` or `~f`, and every option of the rules `boy` and `girl`, sets it too.
- `@docs N` holds whole texts; N is their weight against the other files' texts.
- `@name lead` marks the rule that says what a text is about. Once it is chosen, each of its words prefers certain
  options everywhere: a fox meets an owl more often than a goat. That gives a model something to learn and keeps the
  best next word well ahead of the second best.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

GRAMMAR_DIR = Path(__file__).resolve().parent / "grammar"
# Share of the texts that begin at a later sentence, so that a model also meets such beginnings.
LATE_START_SHARE = 0.08
NOTHING = "-"
PRONOUNS = {
    "he": ("he", "she"),
    "him": ("him", "her"),
    "his": ("his", "her"),
    "He": ("He", "She"),
    "His": ("His", "Her"),
}
_HEADER = re.compile(r"@(\w+)(?: (lead|\d+))?$")
_PART = re.compile(r"\{(\w+)\}|\[")
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w+))")
_SENTENCE_START = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_SAID_WITH_CONSONANT = ("uni", "use", "one", "eur")


class GrammarError(Exception):
    """A grammar file says something that cannot be carried out; the text names file and line."""


@dataclass(frozen=True)
class Grammar:
    """The rules of every grammar file."""

    rules: dict[str, tuple[str, ...]]
    leads: frozenset[str]
    docs: tuple[str, ...]
    doc_weights: tuple[int, ...]


@dataclass
class _Text:
    """What has been decided about the text under way."""

    rng: random.Random
    bound: dict[str, str] = field(default_factory=dict)
    lead: str | None = None
    gender: str | None = None
    used: set[tuple[str, str]] = field(default_factory=set)


def read_grammar(directory: Path = GRAMMAR_DIR) -> Grammar:
    """Returns the rules of every .txt file in the directory.

    Raises:
        GrammarError: for a line outside a rule, a rule given twice, a rule without options or a name without a rule.
    """
    rules: dict[str, list[str]] = {}
    leads: set[str] = set()
    docs: list[str] = []
    weights: list[int] = []
    for path in sorted(directory.glob("*.txt")):
        current: list[str] | None = None
        weight = 0
        for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            header = _HEADER.match(line)
            if header:
                name, note = header.groups()
                weight = int(note) if name == "docs" else 0
                if name != "docs" and name in rules:
                    raise GrammarError(f"{path.name}:{number}: rule {name!r} is given twice")
                current = rules.setdefault(name, []) if name != "docs" else []
                if note == "lead":
                    leads.add(name)
            elif current is None:
                raise GrammarError(f"{path.name}:{number}: expected a rule (@name) before the first option")
            elif weight:
                docs.append(line)
                weights.append(weight)
            else:
                current.append(line)
    _check_names(rules, docs)
    return Grammar({k: tuple(v) for k, v in rules.items()}, frozenset(leads), tuple(docs), tuple(weights))


def _check_names(rules: dict[str, list[str]], docs: list[str]) -> None:
    for name, options in rules.items():
        if not options:
            raise GrammarError(f"rule {name!r} has no option")
    for line in [*docs, *(option for options in rules.values() for option in options)]:
        if line.count("[") != line.count("]") or line.count("{") != line.count("}"):
            raise GrammarError(f"unbalanced brackets in {line!r}")
        for key in re.findall(r"\{(\w+)\}", line):
            rule = key.rstrip("0123456789")
            if rule not in rules and rule not in PRONOUNS and rule not in ("male", "female", "name"):
                raise GrammarError(f"no rule named {rule!r}, used in {line!r}")


@cache
def _preferred_order(lead: str, slot: str, num_options: int) -> tuple[int, ...]:
    order = list(range(num_options))
    random.Random(zlib.crc32(f"{lead}|{slot}".encode())).shuffle(order)  # noqa: S311
    return tuple(order)


class TextMaker:
    """Makes texts, one after another, from a grammar and a seed."""

    def __init__(self, grammar: Grammar, seed: int) -> None:
        self._grammar = grammar
        self._rng = random.Random(seed)  # noqa: S311

    def make(self) -> str:
        """Returns the next text: one paragraph of plain English."""
        text = _Text(self._rng)
        template = self._rng.choices(self._grammar.docs, self._grammar.doc_weights)[0]
        paragraph = _tidy(self._expand(text, template))
        if self._rng.random() < LATE_START_SHARE:
            sentences = _SENTENCE_START.split(paragraph)
            if len(sentences) > 2:
                paragraph = " ".join(sentences[self._rng.randrange(1, len(sentences) - 1) :])
        return paragraph

    def _choose(self, text: _Text, slot: str, options: tuple[str, ...]) -> str:
        if text.lead is None:
            return text.rng.choice(options)
        order = _preferred_order(text.lead, slot, len(options))
        weights = [1.0 / (rank + 1) for rank in range(len(options))]
        return options[text.rng.choices(order, weights)[0]]

    def _expand(self, text: _Text, template: str) -> str:
        parts: list[str] = []
        position = 0
        while match := _PART.search(template, position):
            parts.append(template[position : match.start()])
            if match.group(1):
                parts.append(self._word(text, match.group(1)))
                position = match.end()
            else:
                alternatives, position = _alternatives(template, match.end())
                parts.append(self._expand(text, self._choose(text, template[match.start() : position], alternatives)))
        parts.append(template[position:])
        return "".join(parts)

    def _word(self, text: _Text, key: str) -> str:
        if key in ("male", "female"):
            text.gender = key[0]
            return ""
        if key in PRONOUNS:
            return PRONOUNS[key][self._gender(text) == "f"]
        if key not in text.bound:
            self._bind(text, key)
        return text.bound[key]

    def _gender(self, text: _Text) -> str:
        if text.gender is None:
            text.gender = text.rng.choice("mf")
        return text.gender

    def _bind(self, text: _Text, key: str) -> None:
        rule = key.rstrip("0123456789")
        if rule == "name":
            rule = "boy" if self._gender(text) == "m" else "girl"
        options = tuple(o for o in self._grammar.rules[rule] if (rule, o) not in text.used) or self._grammar.rules[rule]
        choice = self._choose(text, rule, options)
        text.used.add((rule, choice))
        option, _, gender = choice.partition(" ~")
        if gender:
            text.gender = gender
        text.bound[key] = "" if option == NOTHING else self._expand(text, option)
        if key in ("boy", "girl"):
            text.gender = "m" if key == "boy" else "f"
            text.bound.setdefault("name", text.bound[key])
        if key in self._grammar.leads:
            text.lead = text.bound[key]


def _alternatives(template: str, start: int) -> tuple[tuple[str, ...], int]:
    """Returns the alternatives of the bracket that opens just before `start`, and the position after its end."""
    depth, begin, found = 1, start, []
    for position in range(start, len(template)):
        character = template[position]
        depth += (character == "[") - (character == "]")
        if (character == "|" and depth == 1) or depth == 0:
            found.append(template[begin:position])
            begin = position + 1
        if depth == 0:
            return tuple(found), position + 1
    raise GrammarError(f"unbalanced brackets in {template!r}")


def _tidy(text: str) -> str:
    """Returns the text with the spaces of empty words removed and each indefinite article as its word wants it."""

    def article(match: re.Match[str]) -> str:
        word = match.group(2).lower()
        vowel = word[0] in "aeiou" and not word.startswith(_SAID_WITH_CONSONANT)
        return f"{match.group(1)}{'n' if vowel or word.startswith('hour') else ''} "

    single_spaced = re.sub(r" +(?=[ .,?!])", "", text).strip()
    return _ARTICLE.sub(article, single_spaced)


def texts(seed: int, directory: Path = GRAMMAR_DIR) -> Iterator[str]:
    """Returns an endless stream of texts; equal seeds give equal streams."""
    maker = TextMaker(read_grammar(directory), seed)
    while True:
        yield maker.make()


def main() -> None:
    """Prints texts, one a line."""
    parser = argparse.ArgumentParser(description="Print texts of the demo model's training corpus, one a line.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num-texts", type=int, default=20)
    options = parser.parse_args()
    stream = texts(options.seed)
    for _ in range(options.num_texts):
        sys.stdout.write(next(stream) + "\n")


if __name__ == "__main__":
    main()
