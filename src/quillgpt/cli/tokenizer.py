"""`quill tokenizer`: train a tokenizer on a source, or look at how tokenizers cut a text."""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from quillgpt.cli.arguments import flag, parse
from quillgpt.config import DataConfig, meanings
from quillgpt.errors import ConfigError, DataError, nearest, pick
from quillgpt.files import make_directory, write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from quillgpt.tokenizer import Tokenizer

USAGE = """quill tokenizer: train a tokenizer, or look at how text is cut into tokens

usage: quill tokenizer train   --source python --vocab-size 4096 --out DIRECTORY
       quill tokenizer inspect "Hello world" --tokenizer gpt2 --tokenizer DIRECTORY

(quill tokenizer train --help and quill tokenizer inspect --help tell more)"""

FILE_PREFIX = "FILE:"
SAMPLE = "The quick brown fox doesn't jump 1,234 times.\n    def naïve(x): return x ** 2  # 你好 🙂\n"

STYLES = [f"color(235) on color({paper})" for paper in (153, 193, 223, 225)]  # dark on light blue, green, sand, rose


def _setting(name: str) -> Any:
    return flag(meanings()[name])


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a tokenizer on the training documents of a source; held-out text is never read."""

    source: Annotated[str, _setting("source")] = DataConfig.source
    path: Annotated[str, _setting("path")] = DataConfig.path
    text_field: Annotated[str, _setting("text_field")] = DataConfig.text_field
    subset: Annotated[str, _setting("subset")] = DataConfig.subset
    documents: Annotated[int, _setting("documents")] = DataConfig.documents
    errors: Annotated[str, _setting("errors")] = DataConfig.errors
    tokenizer: Annotated[str, flag("bpe, or character (whose size is given by the text)")] = "bpe"
    vocab_size: Annotated[int, flag("number of tokens, end of text included; at least 257")] = 4096
    out: Annotated[str, flag("directory to save in, or a .json file; auto: tokenizers/SOURCE-TOKENIZER")] = "auto"


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Show how a text is cut into tokens; several tokenizers are compared."""

    text: Annotated[
        tyro.conf.Positional[str], flag("the text; FILE:PATH reads a file, - standard input; nothing: a sample")
    ] = ""
    tokenizer: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        flag("gpt2, byte, a tokenizer.json or its directory; give it several times to compare; nothing: gpt2"),
    ] = ()
    tokens: Annotated[int, flag("show so many tokens; the table counts the whole text")] = 200
    ids: Annotated[bool, flag("list the tokens with their ids and bytes")] = False


def main(arguments: list[str]) -> int:
    """Run `quill tokenizer train` or `quill tokenizer inspect`."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    commands = {"train": train, "inspect": inspect}
    if arguments[0] not in commands:
        meant = nearest(arguments[0], commands)
        raise ConfigError(f"no command {arguments[0]!r}{meant}; there are `quill tokenizer train` and `... inspect`")
    return commands[arguments[0]](arguments[1:])


def train(arguments: list[str]) -> int:
    """Train on the source's training documents and save; the place is checked before the text is read."""
    options, _ = parse(TrainOptions, arguments, prog="quill tokenizer train")

    from rich.console import Console

    from quillgpt.data.sources import training_texts
    from quillgpt.tokenizer import TOKENIZERS, train_tokenizer

    pick(TOKENIZERS, options.tokenizer, "tokenizer")
    shared = {setting.name for setting in dataclasses.fields(DataConfig)} & set(vars(options))
    config = DataConfig(**{name: getattr(options, name) for name in shared})
    out = Path(f"tokenizers/{options.source}-{options.tokenizer}" if options.out == "auto" else options.out)
    target = out if out.suffix == ".json" else out / "tokenizer.json"
    if (target.parent / "manifest.json").exists():
        raise ConfigError(f"--out {out}: its tokenizer.json belongs to prepared data or a checkpoint; choose another")
    make_directory(target.parent)

    console = Console(highlight=False)
    reading = Reading()
    started = time.perf_counter()
    with console.status("reading text"):
        tokenizer = train_tokenizer(options.tokenizer, reading.count(training_texts(config)), options.vocab_size)
    elapsed_seconds = time.perf_counter() - started
    save(tokenizer, target)
    learned = f"{reading.bytes:,} bytes of text in {elapsed_seconds:,.1f} s"
    console.print(f"{tokenizer.name} of {tokenizer.vocab_size:,} tokens, learned from {learned}", soft_wrap=True)
    console.print(f"saved as {target}, fingerprint {tokenizer.fingerprint[:12]}", soft_wrap=True, markup=False)
    console.print(f"look at it: quill tokenizer inspect --tokenizer {out}", soft_wrap=True, markup=False)
    return 0


class Reading:
    """How many bytes of text have gone by."""

    def __init__(self) -> None:
        self.bytes = 0

    def count(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts, counted as they pass."""
        for text in texts:
            self.bytes += len(text.encode(errors="surrogatepass"))
            yield text


def save(tokenizer: "Tokenizer", target: Path) -> None:
    """Write tokenizer.json, and beside one of that name what Hugging Face's `AutoTokenizer` needs to load it."""
    from quillgpt.tokenizer.tokenizer_json import config_json

    write_text(target, tokenizer.to_json())
    if target.name == "tokenizer.json":
        write_text(target.parent / "tokenizer_config.json", config_json())


def inspect(arguments: list[str]) -> int:
    """Show the text as each tokenizer cuts it, then a table of them all."""
    options, _ = parse(InspectOptions, arguments, prog="quill tokenizer inspect")

    from rich.console import Console

    from quillgpt.tokenizer import load_tokenizer

    if options.tokens < 0:
        raise ConfigError(f"--tokens {options.tokens} is not possible: expected at least 0")
    text = read_text(options.text) if options.text else SAMPLE
    tokenizers = {name: load_tokenizer(name) for name in options.tokenizer or ("gpt2",)}
    console = Console(highlight=False)
    cuts = {name: tokenizer.encode(text) for name, tokenizer in tokenizers.items()}
    for name, tokenizer in tokenizers.items():
        shown = [tokenizer.token_bytes(token) for token in cuts[name][: options.tokens]]
        console.print(heading(name, tokenizer, shown=len(shown), total=len(cuts[name])), soft_wrap=True)
        if options.ids:
            console.print(id_table(cuts[name], shown))
        else:
            for line in token_lines(shown, console):
                console.print(line, soft_wrap=True)
        console.print()
    console.print(f"the text: {len(text.encode()):,} bytes, {len(text):,} characters", style="dim")
    console.print(comparison(tokenizers, cuts, text))
    return 0


def read_text(argument: str) -> str:
    """The text itself, a file's after `FILE:`, or standard input's for `-`; what is not UTF-8 is a `DataError`."""
    if argument != "-" and not argument.startswith(FILE_PREFIX):
        return argument
    name = "standard input" if argument == "-" else argument.removeprefix(FILE_PREFIX)
    try:
        content = sys.stdin.buffer.read() if argument == "-" else Path(name).read_bytes()
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start:,}"
        ) from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None


def heading(name: str, tokenizer: "Tokenizer", *, shown: int, total: int) -> "Text":
    """The line above a cut text: which tokenizer, and how much of the text is shown."""
    from rich.text import Text

    kind = "" if name == tokenizer.name else f" ({tokenizer.name})"
    extent = f"{total:,} tokens" if shown == total else f"the first {shown:,} of {total:,} tokens"
    return Text.assemble((f"{name}{kind}", "bold"), (f"  {extent}", "dim"))


def token_lines(tokens: list[bytes], console: "Console") -> list["Text"]:
    """The tokens side by side, in turning colours, or with bars between them where 256 colours cannot be shown.

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
    """A token as text, in which half characters, newlines and whatever else a terminal obeys or hides are escapes."""
    text = token.decode(errors="backslashreplace")
    return "".join([x if x.isprintable() else x.encode("unicode_escape").decode() for x in text])


def id_table(ids: list[int], tokens: list[bytes]) -> "Table":
    """One row a token: its id, its bytes in hexadecimal, its text."""
    from rich.text import Text

    table = _table("id", "bytes", "token", left=("bytes", "token"))
    for token, content in zip(ids, tokens, strict=False):
        table.add_row(str(token), Text(content.hex(" ")), Text(visible(content)))
    return table


def comparison(tokenizers: dict[str, "Tokenizer"], cuts: dict[str, list[int]], text: str) -> "Table":
    """One row a tokenizer: its size, the text's tokens, and how much of the text one of them holds on average."""
    from rich.text import Text

    table = _table("tokenizer", "vocabulary", "tokens", "bytes/token", "characters/token", left=("tokenizer",))
    for name, tokenizer in tokenizers.items():
        count = len(cuts[name])
        averages = [f"{length / count:.2f}" if count else "-" for length in (len(text.encode()), len(text))]
        table.add_row(Text(name), f"{tokenizer.vocab_size:,}", f"{count:,}", *averages)
    return table


def _table(*columns: str, left: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table
