"""Entry `nanogpt`: a folder that nanoGPT's prepare.py made: train.bin and val.bin, uint16 ids and nothing else.

The ids are copied into shards, which are checked and know their documents; the folder is not changed. Its meta.pkl is
never opened, because reading a pickle runs code from it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quillgpt.config import DataConfig
from quillgpt.data.document import EncodedChunk, SourceStats, TokenSource
from quillgpt.data.shards import checked_tokens
from quillgpt.data.sources.files import read_blocks, require_regular
from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer import Tokenizer, bytes_per_token

SPLIT_FILES = {"train": "train.bin", "val": "val.bin"}
PICKLE = "meta.pkl"
BYTES_PER_TOKEN = 4


class NanoGPT(TokenSource):
    """The ids of both files; end-of-text ids in them end the documents."""

    description = "a prepared nanoGPT folder"
    licence = "that of the text the folder was made from"
    validation = "the val.bin of the folder"

    def __init__(self, config: DataConfig) -> None:
        if not config.path:
            raise ConfigError("the source nanogpt needs --path FOLDER with nanoGPT's train.bin and val.bin")
        self.folder = Path(config.path)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: not a folder; expected nanoGPT's folder with train.bin and val.bin")
        for path in self._files().values():
            require_regular(path)
            size = path.stat().st_size
            if size % 2:
                raise DataError(f"{path}: {size:,} bytes is not a whole number of uint16 ids; make it again")

    def encoded(self, tokenizer: Tokenizer, stats: SourceStats) -> Iterator[EncodedChunk]:
        """Yield both files' ids as documents, checked against the tokenizer's vocabulary."""
        if (self.folder / PICKLE).exists():
            taken = f"ids are taken to be those of the tokenizer {tokenizer.name}"
            stats.notes.append(f"{PICKLE} was not opened (a pickle runs code when it is read); {taken}")
        lengths = bytes_per_token(tokenizer)
        for split, path in self._files().items():
            yield from _chunks(path, split, tokenizer, lengths)

    def text_bytes(self) -> int:
        """About four bytes for each two-byte id."""
        return sum(path.stat().st_size // 2 * BYTES_PER_TOKEN for path in self._files().values())

    def _files(self) -> dict[str, Path]:
        return {split: self.folder / name for split, name in SPLIT_FILES.items()}


def _chunks(path: Path, split: str, tokenizer: Tokenizer, lengths: np.ndarray) -> Iterator[EncodedChunk]:
    position, size = 0, path.stat().st_size
    for block in read_blocks(path):
        ids = np.frombuffer(block, dtype="<u2")
        if int(ids.max()) >= tokenizer.vocab_size:
            got = f"id {ids.max()} at {position + int(ids.argmax()):,} is outside the vocabulary"
            has = f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size:,}"
            raise DataError(f"{path}: {got}: {has}; give the --tokenizer it was made with")
        position += len(ids)
        *documents, rest = np.split(ids, np.flatnonzero(ids == tokenizer.end_of_text) + 1)
        for part in [*documents, *([rest] if len(rest) else [])]:
            ends_document = part is not rest or position * 2 == size
            tokens = checked_tokens(part, tokenizer.vocab_size)
            text_bytes = int(lengths[tokens].sum())
            yield EncodedChunk(split, tokens, ends_document, text_bytes, hashlib.sha256(part.tobytes()).digest())
