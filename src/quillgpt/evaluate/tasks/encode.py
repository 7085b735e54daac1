"""From texts to requests: where context and continuation are cut into tokens, together or apart."""

from quillgpt.evaluate.likelihood import Request
from quillgpt.tokenizer import Tokenizer


def encode_apart(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Each by itself, as build-nanogpt and llm.c do; end of text stands for an empty context."""
    tokens = tokenizer.encode(context) or [tokenizer.end_of_text]
    return Request(context=tuple(tokens), continuation=tuple(tokenizer.encode(continuation)))


def encode_joined(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """As lm-evaluation-harness: both are one text, and what is behind the tokens of the context is the continuation.

    Spaces at the end of the context belong to the continuation, because a word is a token with its space. End of text
    stands for an empty context. Where the end of the context became one token with all of the continuation, nothing
    would be left to score (the harness stops there): then each is encoded by itself.
    """
    text = context.rstrip()
    continuation = context[len(text) :] + continuation
    if not text:
        return encode_apart(tokenizer, "", continuation)
    tokens = tokenizer.encode(text)
    rest = tokenizer.encode(text + continuation)[len(tokens) :]
    if not rest:
        return encode_apart(tokenizer, text, continuation)
    return Request(context=tuple(tokens), continuation=tuple(rest))
