"""Entry `text`: your own UTF-8 files, a folder of them, or a glob. A document is a file."""

from collections.abc import Iterator

from quillgpt.config import DataConfig
from quillgpt.data.document import SourceStats
from quillgpt.data.sources.files import FileSource, decoded, find_files, read_blocks


class Text(FileSource):
    """The files that `path` names, sorted, with every character unchanged."""

    description = "a folder of text"
    licence = "that of your files"

    def __init__(self, config: DataConfig) -> None:
        self.files = find_files(config.path, source="text")
        self.errors = config.errors

    def documents(self, stats: SourceStats) -> Iterator[Iterator[str]]:
        """Yield each file's text, read as it is used."""
        for file in self.files:
            yield decoded(read_blocks(file), path=file, errors=self.errors, stats=stats)
