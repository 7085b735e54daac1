"""The process that `encode.py` starts: text comes in on standard input, tokens go out on standard output."""

import signal
import sys
from pathlib import Path

from quillgpt.data.encode import OK, encode_piece, receive, send
from quillgpt.errors import DataError
from quillgpt.tokenizer import load_tokenizer


def main() -> None:
    """Encode until standard input ends; the tokenizer.json is the last argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    tokenizer = load_tokenizer(Path(sys.argv[-1]))
    while (message := receive(sys.stdin.buffer)) is not None:
        ends, *contents = message
        try:
            tokens = [encode_piece(tokenizer, content, bool(end)) for content, end in zip(contents, ends, strict=True)]
        except DataError as error:
            send(sys.stdout.buffer, str(error).encode())
            continue
        send(sys.stdout.buffer, OK, *(array.tobytes() for array in tokens))
