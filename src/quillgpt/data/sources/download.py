"""Download one file of known content: at most its size, and its SHA-256 is checked before it gets its name."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from quillgpt import files
from quillgpt.errors import DataError

TIMEOUT_SECONDS = 30
BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file on the network; sha256 in hex."""

    url: str
    sha256: str
    bytes: int


def fetch(download: Download, target: Path, *, instead: str = "--path FILE") -> Path:
    """Return `target`, downloaded unless it exists with the right content; other content is never installed.

    instead: the flag with which a user gives a file that was downloaded by other means.
    """
    remedy = f"try again, or fetch it by other means and give it with {instead} (or put it at {target})"
    if target.is_file() and files.file_sha256(target) == download.sha256:
        return target
    with files.atomic_file(target) as file, closing(_blocks(download, remedy)) as blocks:
        for block in blocks:
            file.write(block)
            if file.size > download.bytes:
                raise DataError(f"{download.url}: more than the expected {download.bytes:,} bytes; {remedy}")
        if file.sha256 != download.sha256:
            got = f"{file.size:,} bytes with SHA-256 {file.sha256[:12]}..."
            expected = f"expected {download.bytes:,} with {download.sha256[:12]}..."
            raise DataError(f"{download.url}: {got}, {expected}; {remedy}")
    return target


def _blocks(download: Download, remedy: str) -> Generator[bytes, None, None]:
    try:
        with urllib.request.urlopen(download.url, timeout=TIMEOUT_SECONDS) as response:
            while block := response.read(BLOCK_BYTES):
                yield block
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise DataError(f"{download.url}: cannot be downloaded: {reason}; {remedy}") from None
