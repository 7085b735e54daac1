"""Tokenizers: text to tokens and back. To add one: a file here with a `TokenizerKind`, and a line in `TOKENIZERS`.

Its tokenizer is a `Tokenizer` whose `to_json` load.py can read, which it can if the file is built like GPT-2's.
"""

from collections.abc import Iterable
from pathlib import Path

from quillgpt.errors import ConfigError, DataError, nearest, pick
from quillgpt.tokenizer.base import END_OF_TEXT, Tokenizer, TokenizerKind, bytes_per_token
from quillgpt.tokenizer.bpe import BPE
from quillgpt.tokenizer.byte import BYTE
from quillgpt.tokenizer.character import CHARACTER
from quillgpt.tokenizer.gpt2 import GPT2
from quillgpt.tokenizer.load import FILE_NAME, has_vocabulary_files, read_tokenizer

TOKENIZERS: dict[str, TokenizerKind] = {
    "gpt2": GPT2,
    "bpe": BPE,
    "byte": BYTE,
    "character": CHARACTER,
}


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer with that name (one that needs no training), of a tokenizer.json, or of a directory.

    A directory has a tokenizer.json, or OpenAI's vocab.json and merges.txt.

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
        kind = TOKENIZERS[name_or_path]
        if kind.learns:
            remedy = f"run `quill tokenizer train --tokenizer {name_or_path}` and give the {FILE_NAME} it writes"
            raise ConfigError(f"tokenizer {name_or_path} is trained on text and has no vocabulary yet; {remedy}")
        return kind.create([], 0)
    path = Path(name_or_path)
    if path.is_dir() and not (path / FILE_NAME).exists() and not has_vocabulary_files(path):
        raise DataError(f"{path} has no {FILE_NAME}; name the file, or a directory that `quill tokenizer train` wrote")
    if not path.exists() and len(path.parts) <= 1 and path.suffix != ".json":
        entries = f"{', '.join(TOKENIZERS)}, or the path of a {FILE_NAME}"
        raise ConfigError(f"no tokenizer {str(path)!r}{nearest(str(path), TOKENIZERS)}; choose one of: {entries}")
    return read_tokenizer(path)


def train_tokenizer(name: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer trained on the texts, which must not be validation text; the same texts give the same tokenizer.

    `bpe` has `vocab_size` tokens, including end of text; `character` 257 and one for each character beyond ASCII.
    """
    kind = pick(TOKENIZERS, name, "tokenizer")
    if not kind.learns:
        trainable = ", ".join(entry for entry, kind in TOKENIZERS.items() if kind.learns)
        raise ConfigError(
            f"invalid tokenizer: {name!r} is ready-made and cannot be trained; choose one of: {trainable}"
        )
    return kind.create(texts, vocab_size)


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
