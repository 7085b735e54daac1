"""`quill prepare`: turn text into a directory of tokens, which `quill train` reads.

What was done goes to standard output as one line, everything on the way to it to standard error.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import flag, parse
from quillgpt.config import DataConfig, ModelConfig, meanings
from quillgpt.errors import ConfigError, pick

if TYPE_CHECKING:
    from quillgpt.data.manifest import Manifest
    from quillgpt.data.text_to_shards import Progress

MEANINGS = meanings()
FORMATS = {"shards": "quill's own files", "nanogpt": "these, and nanoGPT's train.bin and val.bin beside them"}
SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Turn text into a directory of tokens. Stopped at any point, the same command continues."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE", help=MEANINGS["source"])] = ""
    tokenizer: Annotated[str, flag(MEANINGS["tokenizer"])] = DataConfig.tokenizer
    vocab_size: Annotated[int, flag(MEANINGS["vocab_size"])] = ModelConfig.vocab_size
    path: Annotated[str, flag(MEANINGS["path"])] = DataConfig.path
    text_field: Annotated[str, flag(MEANINGS["text_field"])] = DataConfig.text_field
    subset: Annotated[str, flag(MEANINGS["subset"])] = DataConfig.subset
    documents: Annotated[int, flag(MEANINGS["documents"])] = DataConfig.documents
    errors: Annotated[str, flag(MEANINGS["errors"])] = DataConfig.errors
    out: Annotated[str, flag(MEANINGS["data"])] = DataConfig.data
    format: Annotated[str, flag("; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items()))] = "shards"
    processes: Annotated[int, flag("processes that encode; 0: one for each core")] = 0


def main(arguments: list[str]) -> int:
    """Run `quill prepare`."""
    options, _ = parse(PrepareOptions, arguments, prog="quill prepare")
    if not options.source:
        raise ConfigError(f"which source? `quill prepare SOURCE ...`, where SOURCE is a {MEANINGS['source']}")
    pick(FORMATS, options.format, "format")
    if options.processes < 0 or options.vocab_size < 1:
        raise ConfigError("--processes must be at least 0 and --vocab-size at least 1")
    config = DataConfig(
        source=options.source,
        path=options.path,
        data=options.out,
        tokenizer=options.tokenizer,
        text_field=options.text_field,
        subset=options.subset,
        documents=options.documents,
        errors=options.errors,
    )
    from quillgpt.data.directory import data_directory
    from quillgpt.data.nanogpt_files import write_nanogpt_files
    from quillgpt.data.prepare import prepare
    from quillgpt.data.text_to_shards import Means

    out = data_directory(config, options.vocab_size)
    print(f"preparing {options.source} in {out}/", file=sys.stderr)
    with progress_display() as progress:
        means = Means(processes=options.processes, progress=progress)
        manifest = prepare(config, vocab_size=options.vocab_size, out=out, means=means)
    if options.format == "nanogpt":
        write_nanogpt_files(out)
    for note in manifest.notes:
        print(f"note: {note}", file=sys.stderr)
    print(summary(manifest, out))
    return 0


def summary(manifest: "Manifest", out: Path) -> str:
    """The last line: what is there now."""
    train, val = (
        f"{manifest.total(split, 'tokens'):,} tokens in {_counted(len(manifest.shards[split]), 'shard')} ({split})"
        for split in ("train", "val")
    )
    held_out = f"held out: {manifest.held_out}"
    return f"complete: {train}, {val}; tokenizer {manifest.tokenizer['name']}; {held_out}; {out}/"


@contextmanager
def progress_display() -> Iterator[Callable[["Progress"], None]]:
    """Show progress on standard error: a bar on a terminal, otherwise a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %  {task.description}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("reading", total=None)
        yield lambda state: bars.update(
            bar, total=state.bytes_total, completed=state.bytes_done, description=progress_text(state)
        )


def progress_text(state: "Progress") -> str:
    """Bytes, documents, rate and time left in one line."""
    seconds_left = (state.bytes_total - state.bytes_done) / max(state.bytes_per_second, 1.0)
    done, total = state.bytes_done / 1e6, state.bytes_total / 1e6
    rate = f"{state.bytes_per_second / 1e6:.1f} MB/s"
    return (
        f"{done:,.1f} of about {total:,.1f} MB, {state.documents:,} documents, {rate}, {_duration(seconds_left)} left"
    )


class _Lines:
    """Prints the state when the last line is some seconds old."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, state: "Progress") -> None:
        """Print it, or pass it over."""
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            print(progress_text(state), file=sys.stderr, flush=True)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
