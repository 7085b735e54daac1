"""From tokens to text that can be shown at once: whole characters only, and nothing that may become a stop string."""

import codecs
from collections.abc import Sequence

from quillgpt.tokenizer import Tokenizer


class TextStream:
    """The text of one sample while its tokens arrive; the pieces together are its whole text.

    Held back are the first bytes of an unfinished character, and characters that may be the beginning of a stop string.
    Bytes that are not UTF-8 become U+FFFD, as in `Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.is_finished = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, token: int) -> str:
        """Take the next token; return the text that is now certain. End of text and a stop string finish the stream."""
        if token == self._tokenizer.end_of_text:
            return self.finish()
        return self._advance(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """Return what was held back, unless the stream is finished already; no token follows."""
        if self.is_finished:
            return ""
        piece = self._advance(self._decoder.decode(b"", final=True))
        rest = "" if self.is_finished else self._held
        self.is_finished = True
        return piece + rest

    def _advance(self, text: str) -> str:
        text = self._held + text
        found = first_stop(text, self._stop)
        if found is not None:
            self.is_finished = True
            return text[:found]
        shown = len(text) - possible_stop(text, self._stop)
        self._held = text[shown:]
        return text[:shown]


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, or None; of two that end together, the longer one.

    By its end and not its beginning, so that the answer is the same however the text is cut into tokens.
    """
    begins = [(text.find(string), string) for string in stop]
    found = [(begin + len(string), begin) for begin, string in begins if begin >= 0]
    return min(found)[1] if found else None


def possible_stop(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of the text are the beginning of a stop string."""
    longest = max(map(len, stop), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((length for length in lengths if any(string.startswith(text[-length:]) for string in stop)), 0)
