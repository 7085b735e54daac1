"""Small texts to prepare, and what prepared data contains."""

import json
from pathlib import Path

import numpy as np

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data.dataset import TokenDataset

END = 256  # end of text of the byte tokenizer
LONG_TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 20


def documents(count: int = 300) -> list[str]:
    return [f"Document {i}: " + "word " * (i % 17) + "é end.\r\n" for i in range(count)]


def byte_config(source: str, path: Path | str, **settings) -> DataConfig:
    return DataConfig(source=source, path=str(path), tokenizer="byte", **settings)


def corpus(folder: Path, texts: list[str] | None = None, **settings) -> DataConfig:
    """A file of JSON lines."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": text}) + "\n" for text in (documents() if texts is None else texts)]
    (folder / "corpus.jsonl").write_text("".join(lines))
    return DataConfig(**{"source": "jsonl", "path": str(folder / "corpus.jsonl"), "tokenizer": "byte", **settings})


def read_tokens(directory: Path, split: str) -> list[int]:
    dataset = TokenDataset.open(directory, split)
    return dataset.tokens(0, dataset.token_count).tolist()


def read_split(directory: Path, split: str) -> list[bytes]:
    """The documents of a split, from its shards."""
    found = []
    for shard in TokenDataset.open(directory, split).shards:
        found += [part.tolist() for part in np.split(np.asarray(shard.tokens), shard.document_ends[:-1])]
    assert all(tokens[-1] == END for tokens in found)
    return [bytes(tokens[:-1]) for tokens in found]


def digests(directory: Path) -> dict[str, str]:
    """Every file of a directory by its hash; the lock says which process ran last."""
    return {path.name: files.file_sha256(path) for path in sorted(directory.iterdir()) if path.name != ".lock"}
