"""Where text comes from. To add a source: a file here with a `TextSource` or `TokenSource`, and a line in `SOURCES`.

A source is made from the data settings, checks its files at once, and yields its documents in the same order on every
pass. What other parts need to know of it (licence, share of validation documents, a description for reports) are
attributes of its class (`data/document.py`).
"""

from collections.abc import Iterator

from quillgpt.config import DataConfig
from quillgpt.data.document import DataSource, SourceStats, TextSource, decide_split, split_chunks
from quillgpt.data.sources.fineweb_edu import FineWebEdu
from quillgpt.data.sources.jsonl import Jsonl
from quillgpt.data.sources.nanogpt import NanoGPT
from quillgpt.data.sources.openwebtext import OpenWebText
from quillgpt.data.sources.parquet import Parquet
from quillgpt.data.sources.python import PythonLibrary
from quillgpt.data.sources.shakespeare import Shakespeare
from quillgpt.data.sources.text import Text
from quillgpt.errors import ConfigError, pick

SOURCES: dict[str, type[DataSource]] = {
    "python": PythonLibrary,
    "text": Text,
    "jsonl": Jsonl,
    "parquet": Parquet,
    "shakespeare": Shakespeare,
    "openwebtext": OpenWebText,
    "fineweb-edu": FineWebEdu,
    "nanogpt": NanoGPT,
}


def source_class(config: DataConfig) -> type[DataSource]:
    """Return the class of the source that the settings name; an unknown name is a `ConfigError`."""
    return pick(SOURCES, config.source, "source")


def open_source(config: DataConfig) -> DataSource:
    """Open the source that the settings name; missing or unreadable files are a `DataError`."""
    return source_class(config)(config)


def training_texts(config: DataConfig) -> Iterator[str]:
    """Yield the text of the training split, on which a tokenizer may be trained; long documents come in chunks."""
    source = open_source(config)
    if not isinstance(source, TextSource):
        raise ConfigError(f"the source {config.source} has tokens, not text; choose a source of text")
    rule = decide_split(source, name=config.source, limit=config.documents)
    for chunk in split_chunks(source, rule, SourceStats(), limit=config.documents):
        if chunk.split == "train":
            yield chunk.content.decode()
