"""`quill explain`: GPT-2 in one file, section by section, with the values of a tiny run; or that file on your text."""

import codecs
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import flag, parse
from quillgpt.errors import ConfigError, DataError, pick

if TYPE_CHECKING:
    from rich.console import Console

    from quillgpt.explain.page import Section

MIN_BYTES, MAX_BYTES = 4_000, 4_000_000
MAX_THREADS = 4  # more do not help with matrices of this size
SEED = 1337


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Read GPT-2 in one file (src/quillgpt/explain/gpt2.py) next to the values of a tiny run of it."""

    section: Annotated[str, tyro.conf.arg(metavar="NAME", help="show only this section, by name or number")] = ""
    list: Annotated[bool, flag("list the sections")] = False
    run: Annotated[
        str, tyro.conf.arg(metavar="FILE", help="train on this text, for less than a minute on two cores")
    ] = ""
    steps: Annotated[int, flag("steps of --run; 0: the file's default")] = 0


def main(arguments: list[str]) -> int:
    """Run `quill explain`; nothing is written."""
    options, _ = parse(ExplainOptions, arguments, prog="quill explain")
    if options.run and (options.section or options.list):
        raise ConfigError("--run trains, --section and --list show; use one of them")
    if not 0 <= options.steps <= 1_000_000:
        raise ConfigError(f"invalid --steps: {options.steps} (must be between 0 and 1,000,000)")
    if options.run:
        train_on(read_text(options.run), options)
        return 0
    from quillgpt.explain.page import read_sections

    sections = {section.name: section for section in read_sections()}
    if options.list:
        for section in sections.values():
            print(f"{section.number}  {section.name:<10} {section.title.partition(': ')[2]}")
        return 0
    if options.section:
        numbers = {str(section.number): name for name, section in sections.items()}
        chosen = pick(sections, numbers.get(options.section, options.section), "section")
        sections = {chosen.name: chosen}
    with at_most_threads(1):  # so that the values are the same on every machine
        show(list(sections.values()))
    return 0


def show(sections: "list[Section]") -> None:
    """Print the sections; at a terminal, wait for Enter between two."""
    from rich.console import Console
    from rich.text import Text

    from quillgpt.explain.page import FILE, print_section
    from quillgpt.explain.values import TinyRun

    console = Console(highlight=False)
    run = TinyRun()
    for section in sections:
        print_section(console, section, run.values)
        if section is not sections[-1] and not wants_more(console):
            return
    if len(sections) > 1:
        console.print(Text(f"the file: {FILE}\nwith your own text: quill explain --run FILE.txt"), soft_wrap=True)


def wants_more(console: "Console") -> bool:
    """Wait for Enter at a terminal; return whether to continue."""
    if not (console.is_terminal and sys.stdin is not None and sys.stdin.isatty()):
        return True
    try:
        answer = console.input("[dim]Enter: continue   q: quit  [/]")
    except EOFError:
        return False
    return not answer.strip().lower().startswith("q")


def read_text(name: str) -> str:
    """The beginning of a text file; a file that is missing, not text, or too short to learn from is a `DataError`."""
    try:
        with Path(name).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"--run {name}: cannot be read: {getattr(error, 'strerror', error)}") from None
    is_cut = len(content) > MAX_BYTES
    try:
        if b"\0" in content:
            raise UnicodeDecodeError("utf-8", content, content.index(b"\0"), len(content), "NUL")
        text = codecs.getincrementaldecoder("utf-8")().decode(content[:MAX_BYTES], final=not is_cut)
    except UnicodeDecodeError as error:
        where = f"byte 0x{content[error.start]:02x} at offset {error.start:,}"
        raise DataError(f"--run {name}: not UTF-8 text: {where}; use a plain text file") from None
    if len(content) < MIN_BYTES:
        raise DataError(f"--run {name}: {len(content):,} bytes (must be >= {MIN_BYTES:,}); use a longer text")
    if is_cut:
        print(f"{name} is long; its first {MAX_BYTES:,} bytes are used", file=sys.stderr)
    return text


def train_on(text: str, options: ExplainOptions) -> None:
    """Train gpt2.py on the text and print the lines of the run as they come."""
    import torch

    from quillgpt.cli.sample import visible
    from quillgpt.explain.gpt2 import Config
    from quillgpt.explain.run import run

    config = replace(Config(), steps=options.steps or Config.steps)
    with at_most_threads(MAX_THREADS):
        torch.manual_seed(SEED)
        try:
            for line in run(text, config):
                print(visible(line), flush=True)
        except ValueError as error:
            raise DataError(f"--run {options.run}: {error}") from None


@contextlib.contextmanager
def at_most_threads(limit: int) -> Iterator[None]:
    """A block with one torch thread per core, but at most `limit`."""
    import torch

    from quillgpt.runtime import available_cores

    before = torch.get_num_threads()
    torch.set_num_threads(min(limit, available_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
