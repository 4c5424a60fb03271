"""Text as it grows: whole characters, leading spaces, stop strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.engine.text import TextStream


class ByteTokenizer:
    """One byte per token, as byte-level BPE falls back to."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, token_ids):
        return bytes(token_ids).decode(errors="replace")


class SpaceStrippingTokenizer:
    """Words with a leading space that the first one loses, as SentencePiece decoders do."""

    words = ("▁the", "▁ship", "s", "▁sails")

    def decode(self, token_ids):
        return "".join(self.words[token] for token in token_ids).replace("▁", " ").removeprefix(" ")


def stream_of(text, prompt="", stop=()):
    """Return the pieces that were given out and the stream, fed until it stops."""
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer, tokenizer.encode(prompt), stop)
    pieces = []
    for token in tokenizer.encode(text):
        stream.add(token)
        pieces.append(stream.take(is_last=stream.is_stopped))
        if stream.is_stopped:
            return pieces, stream
    pieces.append(stream.take(is_last=True))
    return pieces, stream


@given(st.text(max_size=30), st.text(max_size=12))
def test_any_text_comes_out_as_it_went_in(text, prompt):
    pieces, stream = stream_of(text, prompt)
    assert "".join(pieces) == text == stream.text


def test_a_character_of_several_tokens_appears_once_it_is_whole():
    pieces, _ = stream_of("a€b")
    assert pieces == ["a", "", "", "€", "b", ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    stream = TextStream(ByteTokenizer(), [])
    stream.add(0xE2)
    assert stream.take() == ""
    assert stream.take(is_last=True) == "\ufffd"


def test_the_space_between_prompt_and_continuation_is_kept():
    stream = TextStream(SpaceStrippingTokenizer(), [0])
    for token in (1, 2, 3):
        stream.add(token)
    assert stream.take(is_last=True) == " ships sails"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "wo"), "one t"),
        ("aab", ("ab",), "a"),
        ("no end", ("END",), "no end"),
        ("half sto", ("stop",), "half sto"),
        ("x", ("x",), ""),
    ],
)
def test_text_ends_before_a_stop_string(text, stop, expected):
    pieces, stream = stream_of(text, stop=stop)
    assert "".join(pieces) == expected == stream.text


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_nothing_given_out_is_taken_back(text, stop):
    pieces, stream = stream_of(text, stop=tuple(stop))
    found = [text.find(item) for item in stop if item in text]
    # The first stop string to be completed counts; among those completed by one token, the one that begins first.
    ends = [(text.find(item) + len(item), text.find(item)) for item in stop if item in text]
    expected = text[: min(start for end, start in ends if end == min(ends)[0])] if found else text
    assert "".join(pieces) == expected == stream.text


def test_what_may_become_a_stop_string_is_held_back():
    pieces, _ = stream_of("a<b<end>", stop=("<end>",))
    assert pieces == ["a", "", "<b", "", "", "", "", ""]
