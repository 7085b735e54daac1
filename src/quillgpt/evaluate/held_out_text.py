"""The text that a model is scored on: a split of its own data, or data that is named, in the model's own tokens.

Its own data is scored as training does it: the first token has nothing before it and is no target. Named data begins
with an end of text, so that the targets stand for every byte of it, whatever the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quillgpt.config import DataConfig
from quillgpt.data import load_data_tokenizer
from quillgpt.data.document import Tally, TextSource, pieces
from quillgpt.data.held_out import HeldOutWindows
from quillgpt.data.manifest import MANIFEST, SPLITS, WORK, read_manifest
from quillgpt.data.reencode import decoded_pieces, write_split
from quillgpt.data.sources import open_source
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError, DataError, pick
from quillgpt.tokenizer import Tokenizer

ALL_TOKENS = 1 << 62


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """Tokens to score and what they are. `split` is train or val, or empty for text that has no splits."""

    name: str
    fingerprint: str
    split: str
    source: str
    dataset: TokenDataset
    before: tuple[int, ...]

    def windows(self, context_length: int, max_tokens: int) -> HeldOutWindows:
        """The windows that are scored, of at most so many targets; 0: all."""
        return HeldOutWindows(self.dataset, context_length, max_tokens or ALL_TOKENS, self.before)


@dataclass(frozen=True, kw_only=True)
class NamedData:
    """What `--data` names: a directory of prepared tokens, or a file, a folder or a glob of UTF-8 text."""

    path: str
    errors: str = "strict"

    def __post_init__(self) -> None:
        if not self._is_prepared:
            self._text()

    @property
    def _is_prepared(self) -> bool:
        return any((Path(self.path) / name).exists() for name in (MANIFEST, WORK))

    def check(self, splits: Sequence[str]) -> None:
        """Refuse splits that the data does not have, and data that is not complete."""
        if self._is_prepared:
            read_manifest(Path(self.path))
        elif "train" in splits:
            raise ConfigError(f"--splits train: {self.path} is text without splits; leave --splits out to score it all")

    def split(self, split: str, tokenizer: Tokenizer, folder: Path, max_tokens: int) -> HeldOutText:
        """A split in the tokenizer's tokens; where they are others, the text is encoded into the folder first."""
        if not self._is_prepared:
            return self._encoded_text(tokenizer, folder, max_tokens)
        directory = Path(self.path)
        dataset = TokenDataset.open(directory, split)
        fingerprint, source = dataset.fingerprint, dataset.source
        if dataset.tokenizer_fingerprint != tokenizer.fingerprint:
            found = decoded_pieces(dataset, load_data_tokenizer(directory))
            dataset = write_split(found, tokenizer, folder, split=split, source=source, max_tokens=max_tokens)
        return HeldOutText(
            name=self.path,
            fingerprint=fingerprint,
            split=split,
            source=source,
            dataset=_not_empty(dataset, self.path),
            before=(tokenizer.end_of_text,),
        )

    def _encoded_text(self, tokenizer: Tokenizer, folder: Path, max_tokens: int) -> HeldOutText:
        found = pieces(self._text(), Tally(), limit=0)
        dataset = write_split(found, tokenizer, folder, split="val", source="text", max_tokens=max_tokens)
        return HeldOutText(
            name=self.path,
            fingerprint=dataset.fingerprint,
            split="",
            source="text",
            dataset=_not_empty(dataset, self.path),
            before=(tokenizer.end_of_text,),
        )

    def _text(self) -> TextSource:
        try:
            source = open_source(DataConfig(source="text", path=self.path, errors=self.errors))
        except (ConfigError, DataError) as error:
            raise type(error)(str(error).replace("--path", "--data")) from None
        assert isinstance(source, TextSource)
        return source


def own_split(directory: Path, split: str) -> HeldOutText:
    """A split of prepared data in the tokens it was prepared with, scored as a run that trains on it scores it."""
    dataset = TokenDataset.open(directory, split)
    return HeldOutText(
        name=str(directory),
        fingerprint=dataset.fingerprint,
        split=split,
        source=dataset.source,
        dataset=dataset,
        before=(),
    )


def chosen_splits(text: str) -> list[str]:
    """The splits of a list with commas, each once; another name is a `ConfigError`."""
    names = dict.fromkeys(name.strip() for name in text.split(","))
    for name in names:
        pick(dict.fromkeys(SPLITS), name, "splits")
    return list(names)


def _not_empty(dataset: TokenDataset, name: str) -> TokenDataset:
    if not dataset.shards:
        raise DataError(f"--data {name}: there is no text in it, at least one character is needed")
    return dataset
