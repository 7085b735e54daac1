"""Entry `text`: your own UTF-8 files, a folder of them, or a glob. A document is a file."""

from collections.abc import Iterator

from quillgpt.config import DataConfig
from quillgpt.data.document import HELD_OUT_FRACTION, Tally
from quillgpt.data.text_files import decoded, find_files, read_blocks, total_bytes


class Text:
    """The files that `path` names, sorted, each character as it stands."""

    licence = "that of your files"
    held_out_fraction = HELD_OUT_FRACTION

    def __init__(self, config: DataConfig) -> None:
        self.files = find_files(config.path, source="text")
        self.errors = config.errors

    def documents(self, tally: Tally) -> Iterator[Iterator[str]]:
        """Each file's text, read as it is used."""
        for file in self.files:
            yield decoded(read_blocks(file), path=file, errors=self.errors, tally=tally)

    def text_bytes(self) -> int:
        """Size of the files."""
        return total_bytes(self.files)
