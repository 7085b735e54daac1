"""Where text comes from. To add a source: a file here with a `TextSource`, and a line in `SOURCES`.

A source is made from the data settings, looks at once whether its files are there, and gives its documents, always in
the same order, as often as it is asked (`data/document.py`).
"""

from collections.abc import Iterator

from quillgpt.config import DataConfig
from quillgpt.data.document import Tally, TextSource, TokenSource
from quillgpt.data.sources.fineweb_edu import FineWebEdu
from quillgpt.data.sources.jsonl import Jsonl
from quillgpt.data.sources.nanogpt import NanoGPT
from quillgpt.data.sources.openwebtext import OpenWebText
from quillgpt.data.sources.parquet import Parquet
from quillgpt.data.sources.python import PythonLibrary
from quillgpt.data.sources.shakespeare import Shakespeare
from quillgpt.data.sources.text import Text
from quillgpt.data.split import decide_split, split_pieces
from quillgpt.errors import ConfigError, pick

SOURCES = {
    "python": PythonLibrary,
    "text": Text,
    "jsonl": Jsonl,
    "parquet": Parquet,
    "shakespeare": Shakespeare,
    "openwebtext": OpenWebText,
    "fineweb-edu": FineWebEdu,
    "nanogpt": NanoGPT,
}


def open_source(config: DataConfig) -> TextSource | TokenSource:
    """The source that the settings name; one whose files are missing or unreadable is a `DataError`."""
    return pick(SOURCES, config.source, "source")(config)


def training_texts(config: DataConfig) -> Iterator[str]:
    """The source's training text, a document at a time and nothing held out: what a tokenizer may learn from."""
    return split_texts(config, "train")


def split_texts(config: DataConfig, split: str) -> Iterator[str]:
    """The text of one split, as `prepare` splits it; a very long document comes in several pieces."""
    source = open_source(config)
    if isinstance(source, TokenSource):
        raise ConfigError(f"the source {config.source} has tokens, not text; nothing can be learned from it")
    rule = decide_split(source, name=config.source, limit=config.documents)
    for piece in split_pieces(source, rule, Tally(), limit=config.documents):
        if piece.split == split:
            yield piece.content.decode()
