"""The tokens of one split, mapped from the shards that `quill prepare` wrote, with what is known about them.

Opening checks what takes no time: the manifest, every shard's header and size, the largest token. Data that is read in
a second or less is also read whole and compared with its checksums; `verify` does this for any size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quillgpt.data.manifest import MANIFEST, SPLITS, TOKENIZER, Manifest, read_manifest
from quillgpt.data.shard import REMEDY, Shard, ShardHeader, checked_tokens, open_shard, verify_shard
from quillgpt.errors import DataError
from quillgpt.tokenizer import Tokenizer, load_tokenizer

VERIFY_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class TokenDataset:
    """The shards of a split and their manifest; no shuffling, no batches.

    `fingerprint` identifies the data of both splits, `text_bytes` is the UTF-8 size of this split's text.
    """

    directory: Path
    split: str
    shards: list[Shard]
    vocab_size: int
    tokenizer_fingerprint: str
    fingerprint: str
    text_bytes: int
    source: str
    licence: str

    @classmethod
    def open(cls, directory: Path, split: str) -> "TokenDataset":
        """Open a prepared split ("train" or "val"); what is missing, damaged or inconsistent is a `DataError`."""
        if split not in SPLITS:
            raise ValueError(f"split = {split!r}, expected one of {SPLITS}")
        manifest = read_manifest(directory)
        opened = [_checked_shard(directory, manifest, split, index) for index in range(len(manifest.shards[split]))]
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
        """A data set in memory, for tests and experiments; documents_per_shard 0 puts all of them into one shard."""
        arrays = [checked_tokens(np.asarray(document, dtype=np.int64), vocab_size) for document in documents]
        size = documents_per_shard or max(len(arrays), 1)
        groups = [arrays[start : start + size] for start in range(0, len(arrays), size)]
        return cls(
            directory=Path("(memory)"),
            split="train",
            shards=[
                Shard(
                    path=Path(f"(memory)/{index}"),
                    tokens=np.concatenate(group),
                    document_ends=np.cumsum([len(document) for document in group], dtype=np.int64),
                )
                for index, group in enumerate(groups)
            ],
            vocab_size=vocab_size,
            tokenizer_fingerprint="",
            fingerprint="",
            text_bytes=sum(len(document) for document in arrays),
            source="memory",
            licence="",
        )

    @property
    def token_count(self) -> int:
        """Tokens in all shards of the split."""
        return sum(len(shard.tokens) for shard in self.shards)

    def verify(self) -> None:
        """Read every shard whole and compare it with its checksum, whatever the size."""
        for shard in self.shards:
            verify_shard(*open_shard(shard.path))

    def check_length(self, minimum: int) -> None:
        """Refuse a split with fewer tokens than `minimum` (for training: context_length + 1)."""
        if self.token_count < minimum:
            got = f"{self.directory}: the {self.split} split has {self.token_count:,} tokens"
            raise DataError(f"{got}, at least {minimum:,} are needed; prepare more text or lower context_length")


def load_data_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that travels with prepared data; one that does not belong to the data is a `DataError`."""
    manifest = read_manifest(directory)
    tokenizer = load_tokenizer(directory / TOKENIZER)
    if tokenizer.fingerprint != manifest.tokenizer["fingerprint"]:
        found, expected = tokenizer.fingerprint[:12], manifest.tokenizer["fingerprint"][:12]
        raise DataError(f"{directory / TOKENIZER}: fingerprint {found}, the data was made with {expected}; {REMEDY}")
    return tokenizer


def _checked_shard(directory: Path, manifest: Manifest, split: str, index: int) -> tuple[ShardHeader, Shard]:
    record, tokenizer = manifest.shards[split][index], manifest.tokenizer
    header, shard = open_shard(directory / record.file)
    expected = {
        "token count": (header.token_count, record.tokens),
        "document count": (header.document_count, record.documents),
        "vocabulary size": (header.vocab_size, tokenizer["vocab_size"]),
        "tokenizer": (header.tokenizer_fingerprint, tokenizer["fingerprint"]),
    }
    for name, (found, listed) in expected.items():
        if found != listed:
            raise DataError(f"{shard.path}: {name} {found}, {MANIFEST} says {listed}; {REMEDY}")
    return header, shard
