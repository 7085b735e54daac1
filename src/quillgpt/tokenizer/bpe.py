"""Entry `bpe`: a byte-level BPE [Sennrich 2016] trained on the given texts, with 257 tokens or more.

`tokenizers` counts and merges; the vocabulary is the 256 bytes, the merges in their order, and end of text as last id.
"""

import re
from collections.abc import Iterable, Iterator

from quillgpt.errors import DataError, require
from quillgpt.tokenizer.base import TokenizerKind, surrogate_error
from quillgpt.tokenizer.byte_level import ByteLevelBPE
from quillgpt.tokenizer.tokenizer_json import BYTE_OF_CHARACTER, CHARACTER_OF_BYTE

PIECE_CHARACTERS = 100_000
"""longer documents are read in pieces, because the library collects 256 texts before it counts them"""

LONG_RUN = re.compile(r"\S{1000}|\s{1000}")
SHORT_PIECE_CHARACTERS = 1000
"""the length of pieces if a document has a long run, because a merge takes time quadratic in the length of a word"""


def create(texts: Iterable[str], vocab_size: int) -> ByteLevelBPE:
    """Train on the texts; the same texts and size give the same tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    require("vocab_size", vocab_size, vocab_size >= 257, "at least 257: 256 bytes and end of text")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,  # a pair seen once says nothing about the next text
        initial_alphabet=CHARACTER_OF_BYTE,
        show_progress=False,
    )
    learner.train_from_iterator(checked_pieces(texts), trainer)
    ids = learner.get_vocab()
    if len(ids) < vocab_size - 1:
        found = f"the training text has enough repeated pairs for {len(ids) + 1:,} tokens, not for {vocab_size:,}"
        raise DataError(f"{found}; give more text, or use --vocab-size {len(ids) + 1} or less")
    tokens = [bytes([BYTE_OF_CHARACTER[character] for character in name]) for name in sorted(ids, key=ids.__getitem__)]
    return ByteLevelBPE([*tokens, b""], end_of_text=len(tokens))


def checked_pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts in pieces; a lone surrogate is a `DataError`."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise surrogate_error(text) from None
        yield from pieces(text, SHORT_PIECE_CHARACTERS if LONG_RUN.search(text) else PIECE_CHARACTERS)


def pieces(text: str, max_characters: int) -> Iterator[str]:
    """Split a text into pieces, each before a space and the word after it if there is one.

    GPT-2's split is between them too, so that the pieces have the same words as the text.
    """
    start = 0
    while len(text) - start > max_characters:
        end = text.rfind(" ", start + 1, start + max_characters)
        while end > start and text[end + 1].isspace():
            end = text.rfind(" ", start + 1, end)
        end = end if end > start else start + max_characters
        yield text[start:end]
        start = end
    yield text[start:]


BPE = TokenizerKind(learns=True, create=create)
