"""The tokens of one split, memory-mapped from the shards that `quill prepare` wrote.

Opening checks what takes no time: the manifest, and every shard's header, size and largest token. Data that is read in
a second or less is also compared with its checksums; `verify` does this for any size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quillgpt.data.shards import (
    MANIFEST,
    REMEDY,
    SPLITS,
    TOKENIZER,
    Manifest,
    Shard,
    ShardHeader,
    ShardRecord,
    checked_tokens,
    open_shard,
    read_manifest,
    verify_shard,
)
from quillgpt.errors import DataError
from quillgpt.tokenizer import Tokenizer, load_tokenizer

VERIFY_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class TokenDataset:
    """The shards of a split and what their manifest says; no shuffling, no batches.

    `fingerprint` identifies the data of both splits, `text_bytes` is the UTF-8 size of this split's text.
    """

    shards: list[Shard]
    vocab_size: int
    text_bytes: int
    directory: Path = Path("(memory)")
    split: str = "train"
    tokenizer_fingerprint: str = ""
    fingerprint: str = ""
    source: str = "memory"
    licence: str = ""

    @classmethod
    def open(cls, directory: Path, split: str) -> "TokenDataset":
        """Open a prepared split ("train" or "val"); a missing, damaged or inconsistent one is a `DataError`."""
        if split not in SPLITS:
            raise ValueError(f"invalid split: {split!r} (must be one of {', '.join(SPLITS)})")
        manifest = read_manifest(directory)
        opened = [_open_listed(directory, manifest, record) for record in manifest.shards[split]]
        if manifest.total(split, "file_bytes") <= VERIFY_BYTES:
            for header, shard in opened:
                verify_shard(header, shard)
        return cls(
            directory=directory,
            split=split,
            shards=[shard for _, shard in opened],
            vocab_size=manifest.tokenizer["vocab_size"],
            tokenizer_fingerprint=manifest.tokenizer["fingerprint"],
            fingerprint=manifest.fingerprint,
            text_bytes=manifest.total(split, "text_bytes"),
            source=manifest.source,
            licence=manifest.licence,
        )

    @classmethod
    def from_documents(
        cls, documents: Iterable[Sequence[int]], vocab_size: int, *, documents_per_shard: int = 0
    ) -> "TokenDataset":
        """Make a data set in memory, for tests and experiments; documents_per_shard 0 makes one shard."""
        arrays = [checked_tokens(np.asarray(document, dtype=np.int64), vocab_size) for document in documents]
        size = documents_per_shard or max(len(arrays), 1)
        groups = [arrays[start : start + size] for start in range(0, len(arrays), size)]
        return cls(
            shards=[
                Shard(
                    path=Path(f"(memory)/{index}"),
                    tokens=np.concatenate(group),
                    document_ends=np.cumsum([len(document) for document in group], dtype=np.int64),
                )
                for index, group in enumerate(groups)
            ],
            vocab_size=vocab_size,
            text_bytes=sum(len(document) for document in arrays),
        )

    @property
    def token_count(self) -> int:
        """Tokens in all shards of the split."""
        return sum(len(shard.tokens) for shard in self.shards)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens from `start` to `stop` (excluded) in file order, int64."""
        found, shard_start = [], 0
        for shard in self.shards:
            found.append(shard.tokens[max(start - shard_start, 0) : max(stop - shard_start, 0)])
            shard_start += len(shard.tokens)
        return np.concatenate(found).astype(np.int64)

    def verify(self) -> None:
        """Read every shard completely and compare it with its checksum, whatever the size."""
        for shard in self.shards:
            verify_shard(*open_shard(shard.path))

    def check_length(self, minimum: int) -> None:
        """Raise a `DataError` if the split has fewer tokens than `minimum` (for training: context_length + 1)."""
        if self.token_count < minimum:
            got = f"{self.directory}: the {self.split} split has {self.token_count:,} tokens"
            raise DataError(f"{got}, at least {minimum:,} are needed; prepare more text or lower context_length")


def load_data_tokenizer(directory: Path) -> Tokenizer:
    """Load the tokenizer stored with prepared data; one that the data was not made with is a `DataError`."""
    expected = read_manifest(directory).tokenizer["fingerprint"]
    tokenizer = load_tokenizer(directory / TOKENIZER)
    if tokenizer.fingerprint != expected:
        got = f"fingerprint {tokenizer.fingerprint[:12]}, the data was made with {expected[:12]}"
        raise DataError(f"{directory / TOKENIZER}: {got}; {REMEDY}")
    return tokenizer


def _open_listed(directory: Path, manifest: Manifest, record: ShardRecord) -> tuple[ShardHeader, Shard]:
    """Open a shard and compare its header with the manifest."""
    header, shard = open_shard(directory / record.file)
    compared = {
        "token count": (header.token_count, record.tokens),
        "document count": (header.document_count, record.documents),
        "vocabulary size": (header.vocab_size, manifest.tokenizer["vocab_size"]),
        "tokenizer": (header.tokenizer_fingerprint.hex(), manifest.tokenizer["fingerprint"]),
    }
    for name, (found, expected) in compared.items():
        if found != expected:
            raise DataError(f"{shard.path}: {name} {found}, {MANIFEST} says {expected}; {REMEDY}")
    return header, shard
