"""Tokenizers: text to tokens and back. To add one: a file here with a `TokenizerKind`, and a line in `TOKENIZERS`.

What that makes must satisfy `Tokenizer`, and its `to_json` be read by `tokenizer_file.py`: a file that has GPT-2's form
is already. The tests loop over the menu.
"""

from collections.abc import Iterable
from pathlib import Path

from quillgpt.errors import ConfigError, DataError, nearest, pick
from quillgpt.tokenizer.bpe import BPE
from quillgpt.tokenizer.byte import BYTE
from quillgpt.tokenizer.character import CHARACTER
from quillgpt.tokenizer.gpt2 import GPT2
from quillgpt.tokenizer.protocol import END_OF_TEXT, Tokenizer, TokenizerKind
from quillgpt.tokenizer.tokenizer_file import FILE_NAME, read_tokenizer
from quillgpt.tokenizer.vocabulary import bytes_per_token
from quillgpt.tokenizer.vocabulary_files import has_vocabulary_files

TOKENIZERS: dict[str, TokenizerKind] = {
    "gpt2": GPT2,
    "bpe": BPE,
    "byte": BYTE,
    "character": CHARACTER,
}


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer of that name (one that needs no training), of a tokenizer.json, or of a directory.

    A directory holds a tokenizer.json, or a vocab.json and a merges.txt as OpenAI's.

    For example:
        tokenizer = quillgpt.load_tokenizer("byte")
        tokens = tokenizer.encode("naïve 🙂")
        print(tokens[:4])  # [110, 97, 195, 175]
        print(tokenizer.decode(tokens))  # naïve 🙂
        print(tokenizer.vocab_size, tokenizer.end_of_text)  # 257 256
        gpt2 = quillgpt.load_tokenizer("gpt2")
        print(gpt2.encode("Hello world"))  # [15496, 995]
    """
    if isinstance(name_or_path, str) and name_or_path in TOKENIZERS:
        return _ready_made(name_or_path)
    path = Path(name_or_path)
    if path.is_dir() and not (path / FILE_NAME).exists() and not has_vocabulary_files(path):
        raise DataError(
            f"{path} holds no {FILE_NAME}; name the file, or a directory that `quill tokenizer train` wrote"
        )
    if not path.exists() and len(path.parts) <= 1 and path.suffix != ".json":
        entries = f"{', '.join(TOKENIZERS)}, or the path of a {FILE_NAME}"
        raise ConfigError(f"no tokenizer {str(path)!r}{nearest(str(path), TOKENIZERS)}; choose one of: {entries}")
    return read_tokenizer(path)


def train_tokenizer(name: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer learned from the texts, none of which may be held out; the same texts make the same tokenizer.

    `bpe` gets `vocab_size` tokens, end of text included; `character` as many as the texts have characters, and 257.
    """
    kind = pick(TOKENIZERS, name, "tokenizer")
    if not kind.learns:
        learning = ", ".join(entry for entry, kind in TOKENIZERS.items() if kind.learns)
        raise ConfigError(f"tokenizer = {name!r} is ready-made and cannot be trained; those that learn: {learning}")
    return kind.create(texts, vocab_size)


def _ready_made(name: str) -> Tokenizer:
    if TOKENIZERS[name].learns:
        remedy = f"run `quill tokenizer train --tokenizer {name}` and give the {FILE_NAME} it writes"
        raise ConfigError(f"tokenizer {name} learns from text and has no vocabulary before; {remedy}")
    return TOKENIZERS[name].create([], 0)


__all__ = [
    "END_OF_TEXT",
    "FILE_NAME",
    "TOKENIZERS",
    "Tokenizer",
    "TokenizerKind",
    "bytes_per_token",
    "load_tokenizer",
    "train_tokenizer",
]
