"""Every kind of unusable input is one line that names the place, and exit code 65 (74 for the disk, 2 for a setting)."""

import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data import load_data_tokenizer
from quillgpt.data.manifest import MANIFEST, TOKENIZER, WORK
from quillgpt.data.prepare import prepare
from quillgpt.data.shard import write_shard
from quillgpt.data.sources import jsonl
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError, DataError, DiskError, QuillError

GOOD = "It was a bright cold day in April, and the clocks were striking thirteen. " * 20


def one_line(error: QuillError, code: int) -> str:
    """The error's text, after checking that it is one line with that exit code."""
    assert error.exit_code == code
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    return str(error)


def refused(config: DataConfig, folder: Path, kind: type[QuillError] = DataError) -> str:
    """What `prepare` says about its input; it leaves nothing that looks finished."""
    with pytest.raises(kind) as caught:
        prepare(config, vocab_size=0, out=folder / "out")
    assert not (folder / "out" / MANIFEST).exists()
    return one_line(caught.value, {DataError: 65, ConfigError: 2, DiskError: 74}[kind])


def source(name: str, path: Path | str, **settings) -> DataConfig:
    return DataConfig(source=name, path=str(path), tokenizer="byte", **settings)


def empty_file(folder: Path) -> Path:
    (folder / "a.txt").write_bytes(b"")
    return folder / "a.txt"


def short_file(folder: Path) -> Path:
    (folder / "a.txt").write_bytes(b"nine char")
    return folder / "a.txt"


def latin1_file(folder: Path) -> Path:
    (folder / "a.txt").write_bytes(GOOD.encode() + b"caf\xe9 au lait")
    return folder / "a.txt"


def cut_character(folder: Path) -> Path:
    (folder / "a.txt").write_bytes(GOOD.encode() + "🙂".encode()[:3])
    return folder / "a.txt"


def named_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.txt")
    return folder / "a.txt"


def named_pipe_in_folder(folder: Path) -> Path:
    (folder / "in").mkdir()
    (folder / "in" / "a.txt").write_text(GOOD)
    os.mkfifo(folder / "in" / "b.txt")
    return folder / "in"


def link_to_itself(folder: Path) -> Path:
    os.symlink(folder / "a.txt", folder / "a.txt")
    return folder / "a.txt"


def link_to_itself_in_folder(folder: Path) -> Path:
    (folder / "in").mkdir()
    link_to_itself(folder / "in")
    return folder / "in"


def link_to_nothing(folder: Path) -> Path:
    os.symlink(folder / "nowhere", folder / "a.txt")
    return folder / "a.txt"


def device(folder: Path) -> Path:
    os.symlink("/dev/zero", folder / "a.txt")
    return folder / "a.txt"


def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "a.txt"))
    return folder / "a.txt"


def empty_folder(folder: Path) -> Path:
    (folder / "in").mkdir()
    return folder / "in"


TEXT_FAULTS: dict[Callable[[Path], Path], str] = {
    empty_file: r"the source text has 0 characters of text in 0 documents, at least 10 are needed",
    short_file: r"the source text has 9 characters of text in 1 documents, at least 10 are needed",
    latin1_file: r"a\.txt: not UTF-8 at byte 1,503 \(0xe9\); convert the file or add --errors replace",
    cut_character: r"a\.txt: not UTF-8 at byte 1,500 \(0xf0\)",
    named_pipe: r"a\.txt: a named pipe, expected a regular file",
    named_pipe_in_folder: r"b\.txt: a named pipe, expected a regular file",
    link_to_itself: r"a\.txt: a loop of symbolic links; expected a regular file",
    link_to_itself_in_folder: r"a\.txt: a loop of symbolic links; expected a regular file",
    link_to_nothing: r"a\.txt: no such file or directory; expected a regular file",
    device: r"a\.txt: a device, expected a regular file",
    unix_socket: r"a\.txt: a socket, expected a regular file",
    empty_folder: r"in: the folder holds no files; give --path",
    lambda folder: folder / "*.txt": r"\*\.txt: no file matches this glob; give --path",
    lambda folder: folder / "missing.txt": r"missing\.txt: no such file or directory",
    lambda folder: short_file(folder) / "below.txt": r"below\.txt: not a directory",
}


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix file system")
@pytest.mark.parametrize(("fault", "message"), TEXT_FAULTS.items(), ids=lambda value: getattr(value, "__name__", "message"))
def test_text_that_cannot_be_read_is_one_line(
    fault: Callable[[Path], Path], message: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    found = refused(source("text", fault(tmp_path)), tmp_path)
    pytest.raises(DataError, match=message).__class__  # noqa: B018
    assert __import__("re").search(message, found), found
