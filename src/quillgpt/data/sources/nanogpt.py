"""Entry `nanogpt`: a folder that nanoGPT's prepare.py made: train.bin and val.bin, uint16 ids and nothing else.

The ids are copied into shards, which are checked and know their documents; the folder itself is left as it is. Its
meta.pkl, if there is one, is never opened: reading a pickle runs whatever it says.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quillgpt.config import DataConfig
from quillgpt.data.document import EncodedPiece, Tally
from quillgpt.data.shard import checked_tokens
from quillgpt.data.text_files import read_blocks, require_regular
from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer import Tokenizer, bytes_per_token

SPLIT_FILES = {"train": "train.bin", "val": "val.bin"}
PICKLE = "meta.pkl"
BYTES_PER_TOKEN = 4


class NanoGPT:
    """The ids of both files; end-of-text ids in them end the documents."""

    licence = "that of the text the folder was made from"

    def __init__(self, config: DataConfig) -> None:
        if not config.path:
            raise ConfigError("the source nanogpt needs --path FOLDER with nanoGPT's train.bin and val.bin")
        self.folder = Path(config.path)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: not a folder; expected nanoGPT's folder with train.bin and val.bin")
        for name in SPLIT_FILES.values():
            require_regular(self.folder / name)
            size = (self.folder / name).stat().st_size
            if size % 2:
                raise DataError(
                    f"{self.folder / name}: {size:,} bytes is not a whole number of uint16 ids; make it again"
                )

    def encoded(self, tokenizer: Tokenizer, tally: Tally) -> Iterator[EncodedPiece]:
        """Both files' ids as documents, checked against the tokenizer's vocabulary."""
        if (self.folder / PICKLE).exists():
            taken = f"ids are taken to be those of the tokenizer {tokenizer.name}"
            tally.notes.append(f"{PICKLE} was not opened (a pickle runs code when it is read); {taken}")
        lengths = bytes_per_token(tokenizer)
        for split, name in SPLIT_FILES.items():
            yield from _pieces(self.folder / name, split, tokenizer, lengths)

    def text_bytes(self) -> int:
        """About four bytes for each two-byte id."""
        return sum((self.folder / name).stat().st_size // 2 * BYTES_PER_TOKEN for name in SPLIT_FILES.values())


def _pieces(path: Path, split: str, tokenizer: Tokenizer, lengths: np.ndarray) -> Iterator[EncodedPiece]:
    unfinished = np.empty(0, dtype="<u2")
    position = 0
    for block in read_blocks(path):
        ids = np.frombuffer(block, dtype="<u2")
        if int(ids.max()) >= tokenizer.vocab_size:
            place = f"id {ids.max()} at {position + int(ids.argmax()):,}"
            has = f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size:,}"
            raise DataError(f"{path}: {place} is outside the vocabulary: {has}; give the --tokenizer it was made with")
        position += len(ids)
        *documents, unfinished = np.split(ids, np.flatnonzero(ids == tokenizer.end_of_text) + 1)
        for document in documents:
            yield _piece(split, document, True, tokenizer, lengths)
        if len(unfinished):
            yield _piece(split, unfinished, position * 2 == path.stat().st_size, tokenizer, lengths)


def _piece(split: str, ids: np.ndarray, ends_document: bool, tokenizer: Tokenizer, lengths: np.ndarray) -> EncodedPiece:
    tokens = checked_tokens(ids, tokenizer.vocab_size)
    return EncodedPiece(
        split, tokens, ends_document, int(lengths[tokens].sum()), hashlib.sha256(ids.tobytes()).digest()
    )
