"""`quill tokenizer`: train a tokenizer on a source, or show how tokenizers split a text."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import SourceOptions, flag, parse, setting
from quillgpt.cli.console import escaped, plain_table
from quillgpt.config import DataConfig
from quillgpt.errors import ConfigError, DataError, nearest, pick, require
from quillgpt.files import make_directory, write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from quillgpt.tokenizer import Tokenizer

USAGE = """quill tokenizer: train a tokenizer, or show how text is split into tokens

usage: quill tokenizer train   --source python --vocab-size 4096 --out DIRECTORY
       quill tokenizer inspect "Hello world" --tokenizer gpt2 --tokenizer DIRECTORY

(see quill tokenizer train --help and quill tokenizer inspect --help)"""

FILE_PREFIX = "FILE:"
SAMPLE = "The quick brown fox doesn't jump 1,234 times.\n    def naïve(x): return x ** 2  # 你好 🙂\n"

STYLES = [f"color(235) on color({paper})" for paper in (153, 193, 223, 225)]  # dark on light blue, green, sand, rose


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(SourceOptions):
    """Train a tokenizer on the training documents of a source; validation text is never read."""

    source: Annotated[str, setting("source")] = DataConfig.source
    tokenizer: Annotated[str, flag("bpe, or character (whose vocabulary is the characters of the text)")] = "bpe"
    vocab_size: Annotated[int, flag("number of tokens, including end of text; at least 257")] = 4096
    out: Annotated[str, flag("directory to save in, or a .json file; auto: tokenizers/SOURCE-TOKENIZER")] = "auto"


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Show how a text is split into tokens; several tokenizers are compared."""

    text: Annotated[
        tyro.conf.Positional[str], flag("the text; FILE:PATH reads a file, - standard input; default: a sample")
    ] = ""
    tokenizer: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        flag("gpt2, byte, a tokenizer.json or its directory; repeat it to compare; default: gpt2"),
    ] = ()
    tokens: Annotated[int, flag("number of tokens to show; the table counts all of the text")] = 200
    ids: Annotated[bool, flag("list the tokens with their ids and bytes")] = False


def main(arguments: list[str]) -> int:
    """Run `quill tokenizer train` or `quill tokenizer inspect`."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    commands = {"train": train, "inspect": inspect}
    if arguments[0] not in commands:
        meant = nearest(arguments[0], commands)
        raise ConfigError(f"no command {arguments[0]!r}{meant}; use `quill tokenizer train` or `... inspect`")
    return commands[arguments[0]](arguments[1:])


def train(arguments: list[str]) -> int:
    """Train on the source's training documents and save; --out is checked before the text is read."""
    options, _ = parse(TokenizerOptions, arguments, prog="quill tokenizer train")

    from rich.console import Console

    from quillgpt.data.sources import training_texts
    from quillgpt.tokenizer import TOKENIZERS, train_tokenizer

    pick(TOKENIZERS, options.tokenizer, "tokenizer")
    config = options.data_config(source=options.source)
    out = Path(f"tokenizers/{options.source}-{options.tokenizer}" if options.out == "auto" else options.out)
    target = out if out.suffix == ".json" else out / "tokenizer.json"
    if (target.parent / "manifest.json").exists():
        owner = "its tokenizer.json belongs to prepared data or a checkpoint"
        raise ConfigError(f"--out {out}: {owner}; use another directory")
    make_directory(target.parent)

    console = Console(highlight=False)
    byte_count = 0

    def counted(texts: Iterable[str]) -> Iterator[str]:
        nonlocal byte_count
        for text in texts:
            byte_count += len(text.encode(errors="surrogatepass"))
            yield text

    started = time.perf_counter()
    with console.status("reading text"):
        tokenizer = train_tokenizer(options.tokenizer, counted(training_texts(config)), options.vocab_size)
    learned = f"{byte_count:,} bytes of text in {time.perf_counter() - started:,.1f} s"
    save(tokenizer, target)
    for line in (
        f"{tokenizer.name} of {tokenizer.vocab_size:,} tokens, learned from {learned}",
        f"saved as {target}, fingerprint {tokenizer.fingerprint[:12]}",
        f"next: quill tokenizer inspect --tokenizer {out}",
    ):
        console.print(line, soft_wrap=True, markup=False)
    return 0


def save(tokenizer: "Tokenizer", target: Path) -> None:
    """Write the tokenizer; next to a tokenizer.json also the file that Hugging Face's `AutoTokenizer` needs."""
    from quillgpt.tokenizer.tokenizer_json import config_json

    write_text(target, tokenizer.to_json())
    if target.name == "tokenizer.json":
        write_text(target.parent / "tokenizer_config.json", config_json())


def inspect(arguments: list[str]) -> int:
    """Show the text as each tokenizer splits it, then a table of all tokenizers."""
    options, _ = parse(InspectOptions, arguments, prog="quill tokenizer inspect")

    from rich.console import Console

    from quillgpt.tokenizer import load_tokenizer

    require("--tokens", options.tokens, options.tokens >= 0, ">= 0")
    text = read_text(options.text) if options.text else SAMPLE
    tokenizers = {name: load_tokenizer(name) for name in options.tokenizer or ("gpt2",)}
    console = Console(highlight=False)
    ids = {name: tokenizer.encode(text) for name, tokenizer in tokenizers.items()}
    for name, tokenizer in tokenizers.items():
        shown = [tokenizer.token_bytes(token) for token in ids[name][: options.tokens]]
        console.print(heading(name, tokenizer, shown=len(shown), total=len(ids[name])), soft_wrap=True)
        if options.ids:
            console.print(id_table(ids[name], shown))
        else:
            for line in token_lines(shown, console):
                console.print(line, soft_wrap=True)
        console.print()
    console.print(f"the text: {len(text.encode()):,} bytes, {len(text):,} characters", style="dim")
    console.print(comparison(tokenizers, ids, text))
    return 0


def read_text(argument: str) -> str:
    """The argument itself, the file named after `FILE:`, or standard input for `-`; a `DataError` if not UTF-8."""
    if argument != "-" and not argument.startswith(FILE_PREFIX):
        return argument
    name = "standard input" if argument == "-" else argument.removeprefix(FILE_PREFIX)
    try:
        content = sys.stdin.buffer.read() if argument == "-" else Path(name).read_bytes()
        return content.decode()
    except UnicodeDecodeError as error:
        where = f"byte 0x{error.object[error.start]:02x} at offset {error.start:,}"
        raise DataError(f"{name} is not UTF-8: {where}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{name!r}: cannot be read: {getattr(error, 'strerror', error)}") from None


def heading(name: str, tokenizer: "Tokenizer", *, shown: int, total: int) -> "Text":
    """The line above a split text: the tokenizer, and how much of the text is shown."""
    from rich.text import Text

    kind = "" if name == tokenizer.name else f" ({tokenizer.name})"
    extent = f"{total:,} tokens" if shown == total else f"the first {shown:,} of {total:,} tokens"
    return Text.assemble((f"{name}{kind}", "bold"), (f"  {extent}", "dim"))


def token_lines(tokens: list[bytes], console: "Console") -> list["Text"]:
    """The tokens side by side in alternating colours, or separated by bars on a terminal without 256 colours.

    A line ends after a newline token, and before a token that does not fit.
    """
    from rich.cells import cell_len
    from rich.text import Text

    has_colour = console.color_system in ("256", "truecolor") and not console.no_color
    bar = "" if has_colour else "|" if console.options.ascii_only else "│"
    lines = [Text()]
    for i, token in enumerate(tokens):
        shown = visible(token)
        if lines[-1].cell_len + len(bar) + cell_len(shown) > console.width and lines[-1]:
            lines.append(Text())
        if lines[-1]:
            lines[-1].append(bar, style="dim")
        lines[-1].append(shown, style=STYLES[i % len(STYLES)] if has_colour else "")
        if token.endswith(b"\n"):
            lines.append(Text())
    return lines if lines[-1] else lines[:-1]


def visible(token: bytes) -> str:
    """A token as text, with escapes for incomplete and control characters."""
    return escaped(token.decode(errors="backslashreplace"))


def id_table(ids: list[int], tokens: list[bytes]) -> "Table":
    """One row per token: its id, its bytes in hexadecimal, its text."""
    from rich.text import Text

    table = plain_table("id", "bytes", "token", left=(1, 2))
    for token, content in zip(ids, tokens, strict=False):
        table.add_row(str(token), Text(content.hex(" ")), Text(visible(content)))
    return table


def comparison(tokenizers: dict[str, "Tokenizer"], ids: dict[str, list[int]], text: str) -> "Table":
    """One row per tokenizer: its size, the number of tokens, and bytes and characters per token."""
    from rich.text import Text

    table = plain_table("tokenizer", "vocabulary", "tokens", "bytes/token", "characters/token", left=[0])
    for name, tokenizer in tokenizers.items():
        count = len(ids[name])
        averages = [f"{length / count:.2f}" if count else "-" for length in (len(text.encode()), len(text))]
        table.add_row(Text(name), f"{tokenizer.vocab_size:,}", f"{count:,}", *averages)
    return table
