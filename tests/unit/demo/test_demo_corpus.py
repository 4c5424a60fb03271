"""The corpus of the demo model: the same seed gives the same text, and the text is English a reader would accept."""

import hashlib
import json
import re
from itertools import islice
from pathlib import Path

import pytest

import corebound
from demo_training import corpus

NUM_TEXTS = 1500
DIGEST_OF_THE_FIRST_300_TEXTS_OF_SEED_7 = "beb3d2d4ea06d061dfdec2cd71b24cd3e2bc65d1e5d418dbecc79a9b6584e1b8"


def sample(seed: int, num_texts: int = NUM_TEXTS) -> list[str]:
    return list(islice(corpus.texts(seed), num_texts))


def write_grammar(directory: Path, text: str) -> Path:
    (directory / "one.txt").write_text(text, encoding="utf-8")
    return directory


def test_equal_seeds_give_equal_texts_and_other_seeds_do_not() -> None:
    assert sample(11, 200) == sample(11, 200)
    assert sample(11, 200) != sample(12, 200)


def test_the_corpus_is_the_one_that_the_shipped_weights_were_made_from() -> None:
    # A change here means that training does not give the shipped weights any more.
    digest = hashlib.sha256("\n".join(sample(7, 300)).encode()).hexdigest()
    assert digest == DIGEST_OF_THE_FIRST_300_TEXTS_OF_SEED_7


def test_texts_are_varied() -> None:
    assert len(set(sample(1))) > 0.9 * NUM_TEXTS


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ("markup left over", r"[{}\[\]|~]"),
        ("a sentence begins in lower case", r"[.!?] [a-z]"),
        ("spacing", r" {2}| [,.]|^ | $"),
        ("a before a vowel", r"\b[Aa] (?!uni|use|one|eur)[aeiou]\w"),
        ("an before a consonant", r"\b[Aa]n (?!hour)[^aeiouAEIOU]"),
        ("a word twice", r"\b(?!had\b|that\b|far\b)([a-z]+) \1\b"),
    ],
)
def test_no_text_has_a_fault_of_writing(fault: str, pattern: str) -> None:
    found = [text for text in sample(2) if re.search(pattern, text)]
    assert not found, f"{fault}: {found[:3]}"


def test_every_text_begins_and_ends_like_a_paragraph() -> None:
    for text in sample(3):
        assert re.match(r'["A-Z1]', text), text
        assert re.search(r'[.!?]"?$', text), text


def test_a_name_keeps_its_value_and_a_numbered_name_differs(tmp_path: Path) -> None:
    grammar = "@docs 1\n{animal} {animal} {animal2}\n\n@animal\nfox\nowl\n"
    for text in islice(corpus.texts(1, write_grammar(tmp_path, grammar)), 50):
        first, again, other = text.split()
        assert first == again
        assert first != other


def test_pronouns_follow_the_name(tmp_path: Path) -> None:
    grammar = "@docs 1\n{name} said that {he} and {his} dog\n\n@girl\nAnna\n\n@boy\nTom\n"
    seen = set(islice(corpus.texts(1, write_grammar(tmp_path, grammar)), 60))
    assert "Anna said that she and her dog" in seen
    assert "Tom said that he and his dog" in seen
    assert not any(text.startswith(("Anna said that he", "Tom said that she")) for text in seen)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fox\n", "one.txt:1: expected a rule"),
        ("@animal\nfox\n\n@animal\nowl\n", "one.txt:4: rule 'animal' is given twice"),
        ("@docs 1\nA {anmal}\n\n@animal\nfox\n", "no rule named 'anmal'"),
        ("@animal\n\n@docs 1\nA {animal}\n", "rule 'animal' has no option"),
        ("@docs 1\nA [fox|owl\n", "unbalanced brackets"),
    ],
)
def test_a_faulty_grammar_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(corpus.GrammarError, match=re.escape(complaint)):
        corpus.read_grammar(write_grammar(tmp_path, text))


def test_the_held_out_text_of_bench_quality_is_that_of_the_training_run() -> None:
    settings = json.loads((Path(corebound.__file__).parent / "demo" / "training.json").read_text())["settings"]
    held_out = islice(corpus.texts(settings["seed"] + 1_000_003), settings["num_held_out_texts"])
    shipped = Path(corebound.__file__).parent / "engine" / "bench" / "held_out.txt"
    assert shipped.read_text(encoding="utf-8").splitlines() == list(held_out)
