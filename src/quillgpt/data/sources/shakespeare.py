"""Entry `shakespeare`: one megabyte of plays, the text of nanoGPT's two Shakespeare examples [Karpathy 2015, char-rnn].

One document, so the last tenth of its characters is the validation split, as in nanoGPT.
"""

from collections.abc import Iterator
from pathlib import Path

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data.document import SourceStats
from quillgpt.data.sources.download import Download, fetch
from quillgpt.data.sources.files import FileSource, decoded, read_blocks, require_regular
from quillgpt.errors import DataError

TINY_SHAKESPEARE = Download(
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    bytes=1_115_394,
)
DOWNLOADS = Path("data/downloads")


class Shakespeare(FileSource):
    """The file at `path`, or the one downloaded to data/downloads/."""

    description = "Shakespeare's works"
    licence = "public domain"

    def __init__(self, config: DataConfig) -> None:
        if not config.path:
            self.files = [fetch(TINY_SHAKESPEARE, DOWNLOADS / "tinyshakespeare.txt")]
            return
        file = Path(config.path)
        require_regular(file)
        if files.file_sha256(file) != TINY_SHAKESPEARE.sha256:
            expected = f"expected the SHA-256 {TINY_SHAKESPEARE.sha256[:12]}..."
            raise DataError(f"{file}: not the Shakespeare file: {expected}; for other text use the source text")
        self.files = [file]

    def documents(self, stats: SourceStats) -> Iterator[Iterator[str]]:
        """Yield the one file."""
        for file in self.files:
            yield decoded(read_blocks(file), path=file, errors="strict", stats=stats)
