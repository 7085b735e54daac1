"""What a data directory says about itself: `manifest.json`, written last, so that its presence means complete."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quillgpt.errors import DataError

MANIFEST = "manifest.json"
WORK = "work.json"
TOKENIZER = "tokenizer.json"
FORMAT = "quillgpt-data"
VERSION = 1
REMEDY = "delete the data directory and run `quill prepare` again"
SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard as the manifest lists it; `tokens`, `documents`, `text_bytes` and `file_bytes` are counts."""

    file: str
    tokens: int
    documents: int
    text_bytes: int
    file_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything known about prepared data: where it came from, what is in it, and how to recognise it.

    tokenizer: name, fingerprint, vocab_size, end_of_text. held_out: the rule that chose the val split.
    text_sha256: chained over the documents in source order. notes: what a reader should know, in sentences.
    """

    source: str
    licence: str
    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    held_out: str
    text_sha256: str
    replacements: int = 0
    empty_documents: int = 0
    notes: list[str] = field(default_factory=list)
    shards: dict[str, list[ShardRecord]]

    @property
    def fingerprint(self) -> str:
        """Identifies the data: SHA-256 over the hashes of all shards of both splits, hex."""
        lines = [f"{split} {record.sha256}\n" for split in SPLITS for record in self.shards[split]]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def total(self, split: str, name: str) -> int:
        """Sum of a count (tokens, documents, text_bytes, file_bytes) over the shards of a split."""
        return sum(getattr(record, name) for record in self.shards[split])

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain values, with the sums a reader looks for first."""
        counts = ("tokens", "documents", "text_bytes", "file_bytes")
        totals = {split: {name: self.total(split, name) for name in counts} for split in SPLITS}
        head = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint, "totals": totals}
        return head | dataclasses.asdict(self)


def read_manifest(directory: Path) -> Manifest:
    """Read a data directory's manifest; a missing or damaged one is a `DataError` that says what to do."""
    path = directory / MANIFEST
    content = read_record(path)
    if content is None and (directory / WORK).exists():
        raise DataError(f"{directory} is not complete: `quill prepare` was interrupted; run it again to continue")
    if content is None:
        remedy = f"make it with `quill prepare SOURCE --out {directory}`"
        raise DataError(f"{directory} holds no prepared data: {MANIFEST} is missing; {remedy}")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        found = f"{content.get('format')} {content.get('version')}"
        raise DataError(f"{path}: is {found}, expected {FORMAT} {VERSION}; {REMEDY}")
    try:
        shards = {split: [ShardRecord(**record) for record in content["shards"][split]] for split in SPLITS}
        names = [setting.name for setting in dataclasses.fields(Manifest) if setting.name != "shards"]
        manifest = Manifest(**{name: content[name] for name in names}, shards=shards)
        if content["fingerprint"] != manifest.fingerprint:
            raise ValueError("its fingerprint is not that of its shards")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); {REMEDY}") from None
    return manifest


def read_record(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when the file does not exist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise DataError(f"{path.parent} is a file, expected a directory of prepared data") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}; {REMEDY}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged (not a JSON object); {REMEDY}")
    return content
