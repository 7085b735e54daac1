"""Streamed text: complete characters, stop strings however they are split, and nothing lost."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from quillgpt.sample.text import TextStream


class Pieces:
    """A tokenizer whose tokens are the given bytes; token -1 is end of text."""

    end_of_text = -1

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, token):
        return self.pieces[token]


def streamed(pieces, stop=()):
    """What a stream returns for each of the pieces, until it finishes, and at the end."""
    stream = TextStream(Pieces(pieces), stop)
    shown = []
    for token in range(len(pieces)):
        shown.append(stream.feed(token))
        if stream.is_finished:
            return shown
    return [*shown, stream.finish()]


def before_stop(text, stop):
    """The definition, a character at a time: the text is read until it ends in a stop string, which is removed."""
    for end in range(1, len(text) + 1):
        endings = [string for string in stop if text[:end].endswith(string)]
        if endings:
            return text[: end - max(map(len, endings))]
    return text


def split(content, places):
    """The bytes, split at the given places."""
    edges = [0, *sorted({place % (len(content) + 1) for place in places}), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(edges)]


PLACES = st.lists(st.integers(0, 200), max_size=30)
FEW_LETTERS = st.text(alphabet="abé🙂", max_size=12)
STOPS = st.lists(st.text(alphabet="abé🙂", min_size=1, max_size=4), max_size=3)


@given(st.text().map(str.encode) | st.binary(max_size=40), PLACES)
def test_the_pieces_together_are_the_decoded_bytes(content, places):
    assert "".join(streamed(split(content, places))) == content.decode(errors="replace")


@given(FEW_LETTERS, STOPS, PLACES)
def test_a_stop_string_ends_the_text_however_it_is_split(text, stop, places):
    pieces = split(text.encode(), places)
    assert "".join(streamed(pieces, stop)) == before_stop(text, stop)
    stream, read = TextStream(Pieces(pieces), stop), b""
    for token, piece in enumerate(pieces):
        read += piece
        stream.feed(token)
        complete = read.decode(errors="ignore")
        assert stream.is_finished == any(string in complete for string in stop)
        if stream.is_finished:
            break


def test_text_is_returned_as_soon_as_it_is_certain():
    for character in ("é", "漢", "🙂"):
        assert streamed([character.encode()[:1], character.encode()[1:]]) == ["", character, ""]
    assert streamed([b"a", "é".encode()[:1]]) == ["a", "", "\ufffd"]
    assert streamed([b"one\n", b"\n", b"two"], ["\n\n\n"]) == ["one", "", "\n\ntwo", ""]
    assert streamed([b"one\n"], ["\n\n"]) == ["one", "\n"]
    assert streamed([b"one STOP two"], ["STOP"]) == ["one "]


def test_the_stop_string_that_is_complete_first_counts():
    for pieces in ([b"abcd"], [b"abc", b"d"], [b"a", b"b", b"c", b"d"]):
        assert "".join(streamed(pieces, ["abcd", "bc"])) == "a"


def test_end_of_text_finishes_the_stream_and_returns_the_withheld_text():
    stream = TextStream(Pieces([b"one\n"]), ["\n\n"])
    assert stream.feed(0) == "one"
    assert stream.feed(-1) == "\n"
    assert stream.is_finished


def test_a_finished_stream_returns_nothing_more():
    stream = TextStream(Pieces([b"one\n\nx", b"more"]), ["\n\n"])
    assert [stream.feed(0), stream.feed(1), stream.feed(-1), stream.finish()] == ["one", "", "", ""]
