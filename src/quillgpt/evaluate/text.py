"""The texts that models are scored on, in tokens, and what file compressors make of a text, for comparison.

A split of a model's own data is scored as in training: the first token has nothing before it and is not a target. Other
data starts after an end of text, so that its targets cover every byte, whatever the tokenizer.
"""

import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quillgpt.config import DataConfig
from quillgpt.data import load_data_tokenizer
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.document import SourceStats, TextSource, text_chunks
from quillgpt.data.loader import ValidationWindows
from quillgpt.data.reencode import decoded_chunks, write_split
from quillgpt.data.shards import MANIFEST, SPLITS, WORK, read_manifest
from quillgpt.data.sources import open_source
from quillgpt.errors import ConfigError, DataError, pick
from quillgpt.tokenizer import Tokenizer

ALL_TOKENS = 1 << 62
DICTIONARY_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class EvaluationText:
    """Tokens to score. split: train or val, or "" for text without splits. before: tokens before the first target."""

    name: str
    fingerprint: str
    split: str
    source: str
    dataset: TokenDataset
    before: tuple[int, ...]

    def windows(self, context_length: int, max_tokens: int) -> ValidationWindows:
        """Return the windows that cover at most `max_tokens` targets; 0: all."""
        return ValidationWindows(self.dataset, context_length, max_tokens or ALL_TOKENS, self.before)


def prepared_split(directory: Path, split: str) -> EvaluationText:
    """Return a split of prepared data in its own tokens, scored as in a run that trains on it."""
    dataset = TokenDataset.open(directory, split)
    return EvaluationText(
        name=str(directory),
        fingerprint=dataset.fingerprint,
        split=split,
        source=dataset.source,
        dataset=dataset,
        before=(),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The value of `--data`: a directory of prepared tokens, or a file, a folder or a glob of UTF-8 text."""

    path: str
    errors: str = "strict"

    def __post_init__(self) -> None:
        if not self._is_prepared:
            self._text_source()

    @property
    def _is_prepared(self) -> bool:
        return any((Path(self.path) / name).exists() for name in (MANIFEST, WORK))

    def check(self, splits: Sequence[str]) -> None:
        """Refuse incomplete data, and splits that the data does not have."""
        if self._is_prepared:
            read_manifest(Path(self.path))
        elif "train" in splits:
            raise ConfigError(f"--splits train: {self.path} is text without splits; leave --splits out to score it all")

    def split(self, split: str, tokenizer: Tokenizer, folder: Path, max_tokens: int) -> EvaluationText:
        """Return a split in the tokenizer's tokens; text and other tokens are encoded into the folder first.

        max_tokens: how many tokens to encode at least; 0: all.
        """
        if self._is_prepared:
            directory = Path(self.path)
            dataset = TokenDataset.open(directory, split)
            fingerprint, source = dataset.fingerprint, dataset.source
            if dataset.tokenizer_fingerprint != tokenizer.fingerprint:
                found = decoded_chunks(dataset, load_data_tokenizer(directory))
                dataset = write_split(found, tokenizer, folder, split=split, source=source, max_tokens=max_tokens)
        else:
            found, split, source = text_chunks(self._text_source(), SourceStats(), limit=0), "", "text"
            dataset = write_split(found, tokenizer, folder, split="val", source=source, max_tokens=max_tokens)
            fingerprint = dataset.fingerprint
        if not dataset.shards:
            raise DataError(f"--data {self.path}: there is no text in it, at least one character is needed")
        return EvaluationText(
            name=self.path,
            fingerprint=fingerprint,
            split=split,
            source=source,
            dataset=dataset,
            before=(tokenizer.end_of_text,),
        )

    def _text_source(self) -> TextSource:
        try:
            source = open_source(DataConfig(source="text", path=self.path, errors=self.errors))
        except (ConfigError, DataError) as error:
            raise type(error)(str(error).replace("--path", "--data")) from None
        assert isinstance(source, TextSource)
        return source


def parse_splits(text: str) -> list[str]:
    """Return the splits of a list such as "train,val", each once; an unknown name is a `ConfigError`."""
    names = dict.fromkeys(name.strip() for name in text.split(","))
    for name in names:
        pick(dict.fromkeys(SPLITS), name, "splits")
    return list(names)


def split_text(dataset: TokenDataset, tokenizer: Tokenizer) -> bytes:
    """Return the text of a split, its documents one after the other."""
    return b"".join(tokenizer.decode_bytes(shard.tokens.tolist()) for shard in dataset.shards)


def compressor_bits_per_byte(validation: bytes, training: bytes) -> dict[str, float]:
    """Return the bits per byte of file compressors on the validation text as one stream.

    A model has read the training text, so xz also gets it as a dictionary: the third number counts only the bytes that
    the validation text adds to it.
    """
    bits = 8 / max(1, len(validation))
    extra = xz_bytes(training + validation) - xz_bytes(training)
    return {
        "gzip -9": gzip_bytes(validation) * bits,
        "xz -9e": xz_bytes(validation) * bits,
        "xz -9e, knowing the training text": extra * bits,
    }


def gzip_bytes(content: bytes) -> int:
    """Return the size after `gzip -9`, with 18 bytes of header and trailer."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return len(compressor.compress(content)) + len(compressor.flush())


def xz_bytes(content: bytes) -> int:
    """Return the size after `xz -9e`, with a dictionary of 64 MiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": DICTIONARY_BYTES}]
    return len(lzma.compress(content, format=lzma.FORMAT_XZ, filters=filters))
