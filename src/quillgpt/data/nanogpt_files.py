"""nanoGPT's own files beside the shards: `--format nanogpt` writes train.bin and val.bin, plain uint16 ids."""

from pathlib import Path

import numpy as np

from quillgpt import files
from quillgpt.data.manifest import SPLITS, read_manifest
from quillgpt.data.shard import open_shard
from quillgpt.errors import ConfigError

NANOGPT_VOCABULARY = 1 << 16


def write_nanogpt_files(directory: Path) -> None:
    """Write each split's shards one after the other into one file, unless it is there already."""
    manifest = read_manifest(directory)
    vocab_size = manifest.tokenizer["vocab_size"]
    if vocab_size > NANOGPT_VOCABULARY:
        holds = f"format nanogpt holds ids below {NANOGPT_VOCABULARY:,}"
        raise ConfigError(f"{holds}, the tokenizer of {directory} has {vocab_size:,}; train from the shards instead")
    with files.locked(directory):
        for split in SPLITS:
            target = directory / f"{split}.bin"
            if target.exists() and target.stat().st_size == 2 * manifest.total(split, "tokens"):
                continue
            with files.atomic_file(target) as file:
                for record in manifest.shards[split]:
                    tokens = open_shard(directory / record.file)[1].tokens
                    file.write(np.asarray(tokens, dtype="<u2").data)
