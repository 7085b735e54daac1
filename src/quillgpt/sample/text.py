"""From tokens to text that can be shown at once: complete characters, and nothing that may become a stop string."""

import codecs
from collections.abc import Sequence

from quillgpt.tokenizer import Tokenizer


class TextStream:
    """The text of one sample while its tokens arrive; the pieces together are the full text.

    The first bytes of an incomplete character, and characters that may start a stop string, are withheld. Bytes that
    are not UTF-8 become U+FFFD, as in `Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.is_finished = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._withheld = ""

    def feed(self, token: int) -> str:
        """Take the next token; return the text that is now certain, none once the stream is finished.

        The end-of-text token and a stop string finish the stream.
        """
        if self.is_finished or token == self._tokenizer.end_of_text:
            return self.finish()
        return self._advance(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """Return the withheld text, none if the stream is finished already; it is finished now."""
        if self.is_finished:
            return ""
        piece = self._advance(self._decoder.decode(b"", final=True))
        rest = "" if self.is_finished else self._withheld
        self.is_finished = True
        return piece + rest

    def _advance(self, text: str) -> str:
        text = self._withheld + text
        found = first_stop(text, self._stop)
        if found is not None:
            self.is_finished = True
            return text[:found]
        shown = len(text) - possible_stop(text, self._stop)
        self._withheld = text[shown:]
        return text[:shown]


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """The index of the stop string that ends first, or None; of two that end together, the longer one.

    The end decides, so that the result does not depend on how the text is split into tokens.
    """
    starts = [(text.find(string), string) for string in stop]
    found = [(start + len(string), start) for start, string in starts if start >= 0]
    return min(found)[1] if found else None


def possible_stop(text: str, stop: Sequence[str]) -> int:
    """The number of characters at the end of the text that are the beginning of a stop string."""
    longest = max(map(len, stop), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((length for length in lengths if any(string.startswith(text[-length:]) for string in stop)), 0)
