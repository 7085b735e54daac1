"""Entry `byte`: a token for each byte of UTF-8, whose id is its value, and end of text: 257 tokens, no training."""

import numpy as np

from quillgpt.tokenizer.base import Tokenizer, TokenizerKind
from quillgpt.tokenizer.tokenizer_json import byte_level_json

VOCABULARY = [*(bytes([value]) for value in range(256)), b""]


class ByteTokenizer(Tokenizer):
    """One token for each byte of the UTF-8 text."""

    def __init__(self) -> None:
        super().__init__("byte", VOCABULARY, end_of_text=256, scheme="byte")

    def _encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def to_json(self) -> str:
        """The tokenizer.json: for Hugging Face a BPE without merges."""
        return byte_level_json(VOCABULARY, self.end_of_text, merges=[])


BYTE = TokenizerKind(learns=False, create=lambda texts, vocab_size: ByteTokenizer())
