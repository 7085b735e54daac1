"""`quill prepare`: turn text into a directory of tokens, which `quill train` reads.

The result goes to standard output as one line, progress and messages to standard error.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import SourceOptions, flag, parse, setting
from quillgpt.cli.console import progress_display
from quillgpt.config import DataConfig, ModelConfig, meanings
from quillgpt.errors import ConfigError, pick, require

if TYPE_CHECKING:
    from quillgpt.data.shards import Manifest

FORMATS = {"shards": "quill's own files", "nanogpt": "also nanoGPT's train.bin and val.bin"}


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(SourceOptions):
    """Turn text into a directory of tokens. Stopped at any point, the same command continues."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE", help=meanings()["source"])] = ""
    tokenizer: Annotated[str, setting("tokenizer")] = DataConfig.tokenizer
    vocab_size: Annotated[int, setting("vocab_size")] = ModelConfig.vocab_size
    out: Annotated[str, setting("data")] = DataConfig.data
    format: Annotated[str, flag("; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items()))] = "shards"
    processes: Annotated[int, flag("encoding processes; 0: one per core")] = 0


def main(arguments: list[str]) -> int:
    """Run `quill prepare`."""
    options, _ = parse(PrepareOptions, arguments, prog="quill prepare")
    if not options.source:
        raise ConfigError(f"which source? `quill prepare SOURCE ...`, where SOURCE is a {meanings()['source']}")
    pick(FORMATS, options.format, "format")
    require("--processes", options.processes, options.processes >= 0, ">= 0")
    require("--vocab-size", options.vocab_size, options.vocab_size >= 1, ">= 1")
    config = options.data_config(source=options.source, tokenizer=options.tokenizer, data=options.out)
    from quillgpt.data.prepare import data_directory, prepare
    from quillgpt.data.shards import write_nanogpt_files

    vocab_size, processes = options.vocab_size, options.processes
    out = data_directory(config, vocab_size)
    print(f"preparing {options.source} in {out}/", file=sys.stderr)
    with progress_display() as progress:
        manifest = prepare(config, vocab_size=vocab_size, out=out, processes=processes, progress=progress)
    if options.format == "nanogpt":
        write_nanogpt_files(out)
    for note in manifest.notes:
        print(f"note: {note}", file=sys.stderr)
    print(summary(manifest, out))
    return 0


def summary(manifest: "Manifest", out: Path) -> str:
    """Return the last line: what has been prepared."""
    splits = []
    for split in ("train", "val"):
        count = len(manifest.shards[split])
        shards = f"{count:,} shard" if count == 1 else f"{count:,} shards"
        splits.append(f"{manifest.total(split, 'tokens'):,} tokens in {shards} ({split})")
    tokenizer, val = manifest.tokenizer["name"], manifest.validation
    return f"complete: {', '.join(splits)}; tokenizer {tokenizer}; validation: {val}; {out}/"
