"""Streamed text: whole characters, stop strings however they are cut, and nothing lost."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillgpt.sample.text import TextStream


class Pieces:
    """A tokenizer whose tokens are the given bytes; token -1 is the end of text."""

    end_of_text = -1

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, token):
        return self.pieces[token]


def streamed(pieces, stop=()):
    """What a stream shows for each of the pieces, up to where it finishes, and at the end."""
    stream = TextStream(Pieces(pieces), stop)
    shown = []
    for token in range(len(pieces)):
        shown.append(stream.feed(token))
        if stream.is_finished:
            return shown
    return [*shown, stream.finish()]


def before_stop(text, stop):
    """The definition, a character at a time: the text is read until it ends in a stop string, which is cut off."""
    for end in range(1, len(text) + 1):
        endings = [string for string in stop if text[:end].endswith(string)]
        if endings:
            return text[: end - max(map(len, endings))]
    return text


def cut(content, places):
    """The bytes cut at the given places."""
    edges = [0, *sorted({place % (len(content) + 1) for place in places}), len(content)]
    return [content[begin:end] for begin, end in itertools.pairwise(edges)]


PLACES = st.lists(st.integers(0, 200), max_size=30)
FEW_LETTERS = st.text(alphabet="abé🙂", max_size=12)
STOPS = st.lists(st.text(alphabet="abé🙂", min_size=1, max_size=4), max_size=3)


@given(st.text(), PLACES)
def test_the_pieces_together_are_the_text(text, places):
    assert "".join(streamed(cut(text.encode(), places))) == text


@given(st.binary(max_size=40), PLACES)
def test_bytes_that_are_not_utf8_become_replacement_characters_as_in_decode(content, places):
    assert "".join(streamed(cut(content, places))) == content.decode(errors="replace")


@given(FEW_LETTERS, STOPS, PLACES)
def test_a_stop_string_ends_the_text_however_it_is_cut_into_tokens(text, stop, places):
    assert "".join(streamed(cut(text.encode(), places), stop)) == before_stop(text, stop)


@given(FEW_LETTERS, STOPS, PLACES)
def test_a_stream_finishes_only_at_a_stop_string_or_the_end(text, stop, places):
    pieces = cut(text.encode(), places)
    stream = TextStream(Pieces(pieces), stop)
    read = b""
    for token, piece in enumerate(pieces):
        read += piece
        stream.feed(token)
        whole = read.decode(errors="ignore")
        assert stream.is_finished == any(string in whole for string in stop)
        if stream.is_finished:
            break


@pytest.mark.parametrize("character", ["é", "漢", "🙂"])
def test_a_character_is_shown_when_its_last_byte_is_there(character):
    content = character.encode()
    shown = streamed([content[:1], content[1:]])
    assert shown == ["", character, ""]


def test_an_unfinished_character_at_the_end_is_shown_as_a_replacement():
    assert "".join(streamed([b"a", "é".encode()[:1]])) == "a\ufffd"


def test_a_possible_stop_is_held_back_and_shown_when_it_is_none():
    assert streamed([b"one\n", b"\n", b"two"], ["\n\n\n"]) == ["one", "", "\n\ntwo", ""]


def test_a_possible_stop_at_the_end_is_shown():
    assert "".join(streamed([b"one\n"], ["\n\n"])) == "one\n"


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"abc", b"d"], [b"a", b"b", b"c", b"d"]])
def test_the_stop_string_that_is_complete_first_counts(pieces):
    assert "".join(streamed(pieces, ["abcd", "bc"])) == "a"


def test_text_after_a_stop_in_the_same_token_is_not_shown():
    assert streamed([b"one STOP two"], ["STOP"]) == ["one "]


def test_end_of_text_finishes_and_shows_what_was_held_back():
    stream = TextStream(Pieces([b"one\n"]), ["\n\n"])
    assert stream.feed(0) == "one"
    assert stream.feed(-1) == "\n"
    assert stream.is_finished


def test_a_finished_stream_adds_nothing():
    stream = TextStream(Pieces([b"one\n\nx"]), ["\n\n"])
    assert stream.feed(0) == "one"
    assert stream.finish() == ""
