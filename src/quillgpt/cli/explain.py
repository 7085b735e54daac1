"""`quill explain`: GPT-2 in one file, section by section, with the values of a tiny run; or that file on your text."""

import codecs
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import flag, parse
from quillgpt.errors import ConfigError, DataError, pick

if TYPE_CHECKING:
    from rich.console import Console

    from quillgpt.explain.sections import Section

FEWEST_BYTES, MOST_BYTES = 4_000, 4_000_000
MOST_THREADS = 4  # more do not help matrices of this size
SEED = 1337


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Read GPT-2 in one file (src/quillgpt/explain/gpt2.py) beside the values that a tiny run of it has."""

    section: Annotated[str, tyro.conf.arg(metavar="NAME", help="show this section only; its number will do")] = ""
    list: Annotated[bool, flag("list the sections")] = False
    run: Annotated[
        str, tyro.conf.arg(metavar="FILE", help="train on this text, for less than a minute on two cores")
    ] = ""
    steps: Annotated[int, flag("steps of --run; 0: as many as the file says")] = 0


def main(arguments: list[str]) -> int:
    """Run `quill explain`; nothing is written."""
    options, _ = parse(ExplainOptions, arguments, prog="quill explain")
    if options.run and (options.section or options.list):
        raise ConfigError("--run trains, --section and --list show; give one of them")
    if not 0 <= options.steps <= 1_000_000:
        raise ConfigError(f"--steps {options.steps} is not possible: expected 0 to 1,000,000")
    if options.run:
        return train_on(read_text(options.run), options)
    from quillgpt.explain.sections import read_sections

    sections = {section.name: section for section in read_sections()}
    if options.list:
        for section in sections.values():
            print(f"{section.number}  {section.name:<10} {section.title.partition(': ')[2]}")
        return 0
    if options.section:
        numbers = {str(section.number): name for name, section in sections.items()}
        chosen = pick(sections, numbers.get(options.section, options.section), "section")
        sections = {chosen.name: chosen}
    with at_most_threads(1):  # the values are then the same whatever the machine has
        show(list(sections.values()))
    return 0


def show(sections: "list[Section]") -> None:
    """Print the sections; a person at a terminal presses Enter between two."""
    from rich.console import Console
    from rich.text import Text

    from quillgpt.explain.page import print_section
    from quillgpt.explain.sections import FILE
    from quillgpt.explain.tiny_run import TinyRun
    from quillgpt.explain.values import VALUES

    console = Console(highlight=False)
    run = TinyRun()
    for section in sections:
        values = {piece.name: VALUES[piece.name](run) for piece in section.pieces if piece.name in VALUES}
        print_section(console, section, values)
        if section is not sections[-1] and not wants_more(console):
            return
    if len(sections) > 1:
        console.print(Text(f"the file: {FILE}\nwith a text of yours: quill explain --run FILE.txt"), soft_wrap=True)


def wants_more(console: "Console") -> bool:
    """Wait for Enter where a person can press it; whether to go on."""
    if not (console.is_terminal and sys.stdin is not None and sys.stdin.isatty()):
        return True
    try:
        answer = console.input("[dim]Enter: go on   q: leave  [/]")
    except EOFError:
        return False
    return not answer.strip().lower().startswith("q")


def read_text(name: str) -> str:
    """The beginning of a text file; what is missing, not text, or too short to learn from is a `DataError`."""
    try:
        with Path(name).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"--run {name}: cannot be read: {getattr(error, 'strerror', error)}") from None
    is_cut = len(content) > MOST_BYTES
    try:
        if b"\0" in content:
            raise UnicodeDecodeError("utf-8", content, content.index(b"\0"), len(content), "NUL")
        text = codecs.getincrementaldecoder("utf-8")().decode(content[:MOST_BYTES], final=not is_cut)
    except UnicodeDecodeError as error:
        where = f"byte 0x{content[error.start]:02x} at offset {error.start:,}"
        raise DataError(f"--run {name}: is not a text in UTF-8: {where}; take a plain text file") from None
    if len(content) < FEWEST_BYTES:
        few = f"{len(content):,} bytes, at least {FEWEST_BYTES:,} are needed to learn from" if content else "is empty"
        raise DataError(f"--run {name}: {few}; take a longer text")
    if is_cut:
        print(f"{name} is long; its first {MOST_BYTES:,} bytes are used", file=sys.stderr)
    return text


def train_on(text: str, options: ExplainOptions) -> int:
    """Print what the run tells, as it comes."""
    import dataclasses

    import torch

    from quillgpt.cli.sample import visible
    from quillgpt.explain.gpt2 import Config
    from quillgpt.explain.run import run

    config = Config() if not options.steps else dataclasses.replace(Config(), steps=options.steps)
    with at_most_threads(MOST_THREADS):
        torch.manual_seed(SEED)
        try:
            for line in run(text, config):
                print(visible(line), flush=True)
        except ValueError as error:
            raise DataError(f"--run {options.run}: {error}") from None
    return 0


@contextlib.contextmanager
def at_most_threads(most: int) -> Iterator[None]:
    """As many threads as there are cores, but not more than these; then as many as before."""
    import torch

    from quillgpt.hardware import available_cores

    before = torch.get_num_threads()
    torch.set_num_threads(min(most, available_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
