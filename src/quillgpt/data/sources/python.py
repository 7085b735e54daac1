"""Entry `python`: the standard library of the running interpreter, real text on every machine. A document is a file.

Without installed packages, tests, and folders of single huge or tabular files that would dominate the statistics.
"""

import sysconfig
from collections.abc import Iterator

from quillgpt.config import DataConfig
from quillgpt.data.document import SourceStats
from quillgpt.data.sources.files import FileSource, decoded, find_files, read_blocks
from quillgpt.errors import DataError

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings"}


class PythonLibrary(FileSource):
    """The library's .py files, sorted by their path."""

    description = "Python's standard library"
    licence = "PSF-2.0"

    def __init__(self, config: DataConfig) -> None:
        try:
            self.files = find_files(sysconfig.get_path("stdlib"), source="python", suffix=".py", left_out=LEFT_OUT)
        except DataError as error:
            raise DataError(f"no Python standard library as .py files: {error}; use another source") from None

    def documents(self, stats: SourceStats) -> Iterator[list[str]]:
        """Yield each file's text; the few that are not UTF-8 are skipped and named."""
        for file in self.files:
            content = b"".join(read_blocks(file))
            try:
                yield list(decoded([content], path=file, errors="strict", stats=stats))
            except DataError:
                stats.skipped.append(file.name)
