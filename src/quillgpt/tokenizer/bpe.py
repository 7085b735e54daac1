"""Entry `bpe`: a byte-level BPE [Sennrich 2016] trained on the given texts, of any size from 257 tokens on.

`tokenizers` counts and merges; the result is the 256 bytes, the merges in their order, and end of text as last id.
"""

import re
from collections.abc import Iterable, Iterator

from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer.byte_level import ByteLevelBPE
from quillgpt.tokenizer.protocol import TokenizerKind
from quillgpt.tokenizer.tokenizer_json import BYTE_OF_CHARACTER, CHARACTER_OF_BYTE
from quillgpt.tokenizer.vocabulary import surrogate_error

SMALLEST = 257

PIECE_CHARACTERS = 100_000
"""longer documents are read in pieces, because the library gathers 256 texts before it counts them"""

LONG_RUN = re.compile(r"\S{1000}|\s{1000}")
SHORT_PIECE_CHARACTERS = 1000
"""the length of a piece where a document has a run as long as this: a merge takes time quadratic in a word"""


def create(texts: Iterable[str], vocab_size: int) -> ByteLevelBPE:
    """Train on the texts; the same texts and size give the same tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST:
        raise ConfigError(f"vocab_size = {vocab_size} is too small: 256 bytes and end of text make at least {SMALLEST}")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,  # a pair seen once says nothing about the next text
        initial_alphabet=CHARACTER_OF_BYTE,
        show_progress=False,
    )
    learner.train_from_iterator(_checked_pieces(texts), trainer)
    ids = learner.get_vocab()
    if len(ids) < vocab_size - 1:
        found = f"the training text has only enough repeated pairs for {len(ids) + 1:,} tokens, not {vocab_size:,}"
        raise DataError(f"{found}; give more text, or ask for --vocab-size {len(ids) + 1} or less")
    tokens = [bytes([BYTE_OF_CHARACTER[character] for character in name]) for name in sorted(ids, key=ids.__getitem__)]
    return ByteLevelBPE([*tokens, b""], end_of_text=len(tokens))


def _checked_pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise surrogate_error(text) from None
        yield from pieces(text, SHORT_PIECE_CHARACTERS if LONG_RUN.search(text) else PIECE_CHARACTERS)


def pieces(text: str, most: int) -> Iterator[str]:
    """Cut a text into pieces of at most so many characters: before a word with its space where there is one.

    The split cuts there too, so that the pieces teach the same as the whole.
    """
    start = 0
    while len(text) - start > most:
        end = text.rfind(" ", start + 1, start + most)
        while end > start and text[end + 1].isspace():
            end = text.rfind(" ", start + 1, end)
        end = end if end > start else start + most
        yield text[start:end]
        start = end
    yield text[start:]


BPE = TokenizerKind(meaning="byte-level BPE trained on the source, of vocab_size tokens", learns=True, create=create)
