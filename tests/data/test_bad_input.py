"""Unusable input of every kind is one line that names the place, and exit code 65 (74: the disk, 2: a setting)."""

import errno
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data import json_lines, load_data_tokenizer
from quillgpt.data.manifest import MANIFEST, TOKENIZER, WORK
from quillgpt.data.prepare import prepare
from quillgpt.data.shard import write_shard
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
    latin1_file: r"a\.txt: not UTF-8 at byte 1,483 \(0xe9\); convert the file or add --errors replace",
    cut_character: r"a\.txt: not UTF-8 at byte 1,480 \(0xf0\)",
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
@pytest.mark.parametrize(("fault", "message"), TEXT_FAULTS.items())
def test_text_that_cannot_be_read_is_one_line(fault: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    assert re.search(message, refused(source("text", fault(tmp_path)), tmp_path))


def test_bytes_that_are_not_utf8_are_replaced_and_counted_when_asked(tmp_path: Path) -> None:
    config = source("text", latin1_file(tmp_path), errors="replace")
    manifest = prepare(config, vocab_size=0, out=tmp_path / "out")
    assert manifest.replacements == 1
    assert manifest.notes == ["1 place that was not UTF-8 was replaced by U+FFFD"]


def unreadable(path: Path, mode: str = "r", *rest, **options):
    """What opening a file of another user does; root would be let through, so it is simulated."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.parametrize("name", ["text", "jsonl"])
def test_a_file_without_permission_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(GOOD)
    real = Path.open

    def guarded(path: Path, *rest, **options):
        return unreadable(path) if path.name == "a.txt" else real(path, *rest, **options)

    monkeypatch.setattr(Path, "open", guarded)
    found = refused(source(name, tmp_path / "a.txt"), tmp_path)
    assert "a.txt: cannot be read: permission denied; check its permissions" in found


def test_a_folder_without_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(os, "scandir", unreadable)
    assert "in: cannot be read: permission denied" in refused(source("text", tmp_path / "in"), tmp_path)


def test_a_file_that_vanishes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(GOOD)
    monkeypatch.setattr("quillgpt.data.prepare._tokenizer", lambda *arguments: (tmp_path / "a.txt").unlink())
    assert "a.txt: cannot be read: no such file or directory" in refused(source("text", tmp_path / "a.txt"), tmp_path)


JSON_FAULTS = {
    '{"text": "good"}\n{"text": "cut': r"a\.jsonl:2: not JSON: ",
    '\n\n["text"]\n': r"a\.jsonl:3: a list, expected an object with the field 'text'",
    '{"txt": "x", "id": 1}\n': r"a\.jsonl:1: no field 'text' \(did you mean txt\?\); it has txt, id; choose one with",
    "{}\n": r"a\.jsonl:1: no field 'text'; it has none",
    '{"text": null}\n': r"a\.jsonl:1: the field 'text' is null, expected a string",
    '{"text": 5}\n': r"a\.jsonl:1: the field 'text' is a number, expected a string",
    '{"text": "half \\ud83d"}\n': r"a\.jsonl:1: the text holds half a character \(U\+D83D at character 5\)",
    "[" * 200_000: r"a\.jsonl:1: not JSON: ",
    "9" * 6_000: r"a\.jsonl:1: not JSON: ",
}


@pytest.mark.parametrize(("content", "message"), JSON_FAULTS.items(), ids=range(len(JSON_FAULTS)))
def test_a_bad_json_line_names_its_file_and_number(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert re.search(message, refused(source("jsonl", tmp_path / "a.jsonl"), tmp_path))


def test_a_json_line_that_is_not_utf8_names_the_byte_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n')
    assert "a.jsonl: not UTF-8 at byte 30 (0xe9)" in refused(source("jsonl", tmp_path / "a.jsonl"), tmp_path)


def test_a_json_line_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + json.dumps({"text": "x" * 100}))
    assert "a.jsonl:2: a line of more than 100 bytes" in refused(source("jsonl", tmp_path / "a.jsonl"), tmp_path)


def parquet_bytes(folder: Path, column: dict) -> bytes:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(column), folder / "made.parquet", compression="snappy")
    return (folder / "made.parquet").read_bytes()


def damaged_page(content: bytes) -> bytes:
    return content[:8] + b"\xff" * 200 + content[208:]


PARQUET_FAULTS: dict[str, tuple[dict, Callable[[bytes], bytes], str]] = {
    "text": (
        {"text": ["x"]},
        lambda content: b"just text",
        r"not a readable parquet file: .*; fetch or write it again",
    ),
    "empty": ({"text": ["x"]}, lambda content: b"", r"not a readable parquet file"),
    "cut": ({"text": [GOOD] * 9}, lambda content: content[: len(content) // 2], r"not a readable parquet file"),
    "damaged page": ({"text": [f"{i}{GOOD}" for i in range(99)]}, damaged_page, r"not a readable parquet file"),
    "no column": (
        {"texts": ["x"]},
        lambda content: content,
        r"no column 'text' \(did you mean texts\?\); it has texts",
    ),
    "numbers": ({"text": [1, 2]}, lambda content: content, r"the column 'text' is of type int64, expected string"),
    "null": ({"text": ["x", None]}, lambda content: content, r"row 1 has no text \(null\)"),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_a_bad_parquet_file_is_one_line(fault: str, tmp_path: Path) -> None:
    column, damage, message = PARQUET_FAULTS[fault]
    (tmp_path / "a.parquet").write_bytes(damage(parquet_bytes(tmp_path, column)))
    assert re.search(rf"a\.parquet: {message}", refused(source("parquet", tmp_path / "a.parquet"), tmp_path))


@pytest.mark.parametrize("fault", ["text", "cut", "damaged page", "no column", "numbers", "null"])
def test_a_bad_parquet_file_in_place_of_the_hub_is_one_line(fault: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    column, damage, _ = PARQUET_FAULTS[fault]
    content = damage(parquet_bytes(tmp_path, column))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").write_bytes(content)
    refused(source("openwebtext", tmp_path / "in"), tmp_path)


NANOGPT_FAULTS = {
    b"\x01": r"train\.bin: 1 bytes is not a whole number of uint16 ids",
    b"": r"the source nanogpt gives 0 tokens for the train split, at least 2 are needed",
    b"\x01\x00" * 9
    + b"\x01\x01"
    + b"\x02\x00": r"train\.bin: id 257 at 9 is outside the vocabulary: the tokenizer byte has 257",
}


@pytest.mark.parametrize(("content", "message"), NANOGPT_FAULTS.items(), ids=["odd", "empty", "outside"])
def test_a_bad_nanogpt_folder_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.bin").write_bytes(content)
    (tmp_path / "in" / "val.bin").write_bytes(b"\x01\x00" * 9)
    assert re.search(message, refused(source("nanogpt", tmp_path / "in"), tmp_path))


def test_a_nanogpt_folder_without_its_files_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert "train.bin: no such file" in refused(source("nanogpt", tmp_path / "in"), tmp_path)
    assert "train.bin: not a folder" in refused(source("nanogpt", tmp_path / "train.bin"), tmp_path)


@pytest.mark.parametrize("name", ["text", "jsonl", "parquet", "nanogpt"])
def test_a_source_of_files_without_a_path_is_a_setting_to_mend(name: str, tmp_path: Path) -> None:
    assert f"the source {name} needs" in refused(source(name, ""), tmp_path, ConfigError)
    assert not (tmp_path / "out").exists()


def test_a_source_or_subset_that_does_not_exist_names_the_nearest(tmp_path: Path) -> None:
    assert "did you mean parquet?" in refused(source("parket", ""), tmp_path, ConfigError)
    found = refused(source("fineweb-edu", "", subset="sample-100B"), tmp_path, ConfigError)
    assert "did you mean sample-100BT?" in found


def prepared(folder: Path) -> Path:
    (folder / "good.txt").write_text(GOOD)
    prepare(source("text", folder / "good.txt"), vocab_size=0, out=folder / "data")
    return folder / "data"


def opening(directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        TokenDataset.open(directory, "train")
    return one_line(caught.value, 65)


def edited(position: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:position] + new + content[position + len(new) :]


SHARD_FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "one byte cut": (lambda content: content[:-1], r"[\d,]+ bytes, expected [\d,]+ \(cut short or grown\)"),
    "two bytes cut": (lambda content: content[:-2], r"[\d,]+ bytes, expected"),
    "three bytes cut": (lambda content: content[:-3], r"[\d,]+ bytes, expected"),
    "one byte more": (lambda content: content + b"\0", r"[\d,]+ bytes, expected"),
    "cut in its header": (lambda content: content[:100], r"not a quill shard"),
    "empty": (lambda content: b"", r"cannot read this shard: the file is empty"),
    "headerless ids": (
        lambda content: content[128:],
        r"not a quill shard \(it has no header\); .*`quill prepare nanogpt`",
    ),
    "other version": (edited(8, b"\x02"), r"shard format 2, this quill reads 1"),
    "byte order swapped": (edited(8, b"\0\0\0\x01"), r"shard format 16777216, this quill reads 1"),
    "four bytes a token": (edited(12, b"\x04"), r"4 bytes a token, a vocabulary of 257 has 2"),
    "three bytes a token": (edited(12, b"\x03"), r"3 bytes a token"),
    "no tokens": (edited(16, bytes(8)), r"this shard is empty"),
    "endless tokens": (edited(16, b"\xff" * 8), r"expected [\d,]+ \(cut short or grown\)"),
    "endless documents": (edited(24, b"\xff" * 7), r"expected [\d,]+ \(cut short or grown\)"),
    "largest id": (edited(40, b"\x01\x01"), r"token 257 is outside its vocabulary of 257"),
    "other vocabulary": (edited(32, b"\x02\x01"), r"vocabulary size 258, manifest.json says 257"),
    "other tokenizer": (edited(48, bytes(32)), r"tokenizer 0{64}, manifest.json says"),
    "other content": (edited(200, b"\x01"), r"damaged: its content does not have the checksum of its header"),
}


@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_a_bad_shard_is_one_line_when_opened(fault: str, tmp_path: Path) -> None:
    damage, message = SHARD_FAULTS[fault]
    path = prepared(tmp_path) / "train-00000.bin"
    path.write_bytes(damage(path.read_bytes()))
    found = opening(path.parent)
    assert re.search(message, found), found
    assert "train-00000.bin" in found
    assert "quill prepare" in found


@pytest.mark.parametrize("place", [0, 500, -1])
def test_an_id_outside_the_vocabulary_is_found_wherever_it_stands(place: int, tmp_path: Path) -> None:
    """A shard whose header and checksum are right and whose ids are not: made by something else than `prepare`."""
    path = prepared(tmp_path) / "train-00000.bin"
    tokens = np.array(TokenDataset.open(path.parent, "train").shards[0].tokens)
    tokens[place] = 300
    fingerprint = load_data_tokenizer(path.parent).fingerprint
    write_shard(path, tokens, np.array([len(tokens)]), vocab_size=301, tokenizer_fingerprint=fingerprint)
    content = bytearray(path.read_bytes())
    content[32:34], content[40:42] = b"\x01\x01", b"\0\0"  # vocabulary 257, largest 0
    content[80:112] = bytes(32)
    content[80:112] = hashlib.sha256(content).digest()
    path.write_bytes(content)
    where = place % len(tokens)
    assert f"token 300 at {where} is outside its vocabulary of 257" in opening(path.parent)


def test_a_missing_shard_is_one_line(tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    (directory / "train-00000.bin").unlink()
    assert "train-00000.bin: this shard is missing" in opening(directory)
    with pytest.raises(DataError, match="this shard is missing"):
        prepare(source("text", tmp_path / "good.txt"), vocab_size=0, out=directory)


def test_a_directory_in_place_of_a_shard_is_one_line(tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    (directory / "train-00000.bin").unlink()
    (directory / "train-00000.bin").mkdir()
    assert "train-00000.bin: cannot read this shard: Is a directory" in opening(directory)


def test_a_directory_without_manifest_is_no_data(tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    (directory / MANIFEST).unlink()
    assert "manifest.json is missing; make it with `quill prepare" in opening(directory)
    assert "manifest.json is missing" in opening(tmp_path / "nowhere")
    assert "is a file, expected a directory" in opening(tmp_path / "good.txt")


def test_an_interrupted_directory_says_how_to_continue(tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    (directory / MANIFEST).rename(directory / WORK)
    assert "is not complete: `quill prepare` was interrupted; run it again to continue" in opening(directory)


MANIFEST_FAULTS: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "deep": lambda text: "[" * 200_000,
    "other format": lambda text: text.replace("quillgpt-data", "other-data"),
    "newer": lambda text: text.replace('"version": 1', '"version": 2'),
    "no shards": lambda text: text.replace('"shards"', '"shard"'),
    "no counts": lambda text: text.replace('"tokens"', '"token"'),
    "text for a list": lambda text: re.sub(r'"val": \[.*?\]', '"val": "none"', text, flags=re.DOTALL),
    "another hash": lambda text: re.sub(r'"sha256": "....', '"sha256": "0000', text),
}


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_a_bad_manifest_is_one_line(fault: str, tmp_path: Path) -> None:
    path = prepared(tmp_path) / MANIFEST
    path.write_text(MANIFEST_FAULTS[fault](path.read_text()))
    assert str(path) in opening(path.parent)


@pytest.mark.parametrize("content", ["{", "{}", '{"settings": 1}', "[1]"])
def test_a_damaged_record_of_work_is_one_line(content: str, tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    (directory / MANIFEST).unlink()
    (directory / WORK).write_text(content)
    with pytest.raises(DataError) as caught:
        prepare(source("text", tmp_path / "good.txt"), vocab_size=0, out=directory)
    assert "work.json" in one_line(caught.value, 65)


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    (directory / TOKENIZER).unlink()
    with pytest.raises(DataError) as caught:
        load_data_tokenizer(directory)
    assert "tokenizer.json" in one_line(caught.value, 65)


def test_a_file_in_place_of_the_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(GOOD)
    (tmp_path / "out").write_text("mine")
    found = ""
    with pytest.raises(QuillError) as caught:
        prepare(source("text", tmp_path / "good.txt"), vocab_size=0, out=tmp_path / "out")
    found = str(caught.value)
    assert "out" in found
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_systems_own_full_device_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ENOSPC of a real write; `test_prepare.py` simulates it at every operation."""
    (tmp_path / "good.txt").write_text(GOOD)
    real = Path.open

    def on_full_device(path: Path, mode: str = "r", **options):
        target = Path("/dev/full") if "train-" in path.name and "w" in mode else path
        return real(target, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", on_full_device)
        found = refused(source("text", tmp_path / "good.txt"), tmp_path, DiskError)
    assert re.search(r"train-00000\.bin\S*: cannot write: No space left on device; [\d,]+ MB free there", found)
    assert not list((tmp_path / "out").glob(f"*{files.TEMPORARY_PREFIX}*"))
    prepare(source("text", tmp_path / "good.txt"), vocab_size=0, out=tmp_path / "out")
