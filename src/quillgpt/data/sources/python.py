"""Entry `python`: the standard library of the running interpreter, real text on every machine. A document is a file.

Left out: what is installed beside it, tests, and folders of single huge or tabular files that would decide the figures.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from quillgpt.config import DataConfig
from quillgpt.data.document import HELD_OUT_FRACTION, Tally
from quillgpt.data.text_files import decoded, find_files, read_blocks, total_bytes
from quillgpt.errors import DataError

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings"}


class PythonLibrary:
    """The library's .py files, sorted by their path."""

    licence = "PSF-2.0"
    held_out_fraction = HELD_OUT_FRACTION

    def __init__(self, config: DataConfig) -> None:
        folder = Path(sysconfig.get_path("stdlib"))
        try:
            self.files = find_files(str(folder), source="python", suffix=".py", left_out=LEFT_OUT)
        except DataError as error:
            raise DataError(f"no Python standard library as .py files: {error}; use another source") from None

    def documents(self, tally: Tally) -> Iterator[list[str]]:
        """Each file's text; the few that are not UTF-8 are skipped and named."""
        for file in self.files:
            content = b"".join(read_blocks(file))
            try:
                yield list(decoded([content], path=file, errors="strict", tally=tally))
            except DataError:
                tally.skipped.append(file.name)

    def text_bytes(self) -> int:
        """Size of the files."""
        return total_bytes(self.files)
