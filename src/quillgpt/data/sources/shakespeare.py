"""Entry `shakespeare`: one megabyte of plays, the text of nanoGPT's two Shakespeare examples [Karpathy 2015, char-rnn].

One document, so the last tenth of its characters is held out, as nanoGPT does.
"""

from collections.abc import Iterator
from pathlib import Path

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data.document import HELD_OUT_FRACTION, Tally
from quillgpt.data.download import Download, fetch
from quillgpt.data.text_files import decoded, read_blocks, require_regular
from quillgpt.errors import DataError

TINY_SHAKESPEARE = Download(
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    bytes=1_115_394,
)
DOWNLOADS = Path("data/downloads")


class Shakespeare:
    """The file at `path`, or the one downloaded to data/downloads/."""

    licence = "public domain"
    held_out_fraction = HELD_OUT_FRACTION

    def __init__(self, config: DataConfig) -> None:
        if config.path:
            self.file = Path(config.path)
            require_regular(self.file)
            if files.file_sha256(self.file) != TINY_SHAKESPEARE.sha256:
                expected = f"expected the SHA-256 {TINY_SHAKESPEARE.sha256[:12]}..."
                raise DataError(
                    f"{self.file}: not the Shakespeare file: {expected}; for other text use the source text"
                )
        else:
            self.file = fetch(TINY_SHAKESPEARE, DOWNLOADS / "tinyshakespeare.txt")

    def documents(self, tally: Tally) -> Iterator[Iterator[str]]:
        """The one file."""
        yield decoded(read_blocks(self.file), path=self.file, errors="strict", tally=tally)

    def text_bytes(self) -> int:
        """Size of the file."""
        return TINY_SHAKESPEARE.bytes
