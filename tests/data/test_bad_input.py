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
from small_corpora import LONG_TEXT, byte_config

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data import load_data_tokenizer
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.prepare import prepare
from quillgpt.data.shards import MANIFEST, TOKENIZER, WORK, write_shard
from quillgpt.data.sources import files as source_files
from quillgpt.errors import ConfigError, DataError, DiskError, QuillError

LATIN_1 = LONG_TEXT.encode() + b"caf\xe9 au lait"


def one_line(error: QuillError, code: int) -> str:
    """The error's text, after checking that it is one line with that exit code."""
    assert error.exit_code == code
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    return str(error)


def refused(config: DataConfig, out: Path, kind: type[QuillError] = DataError) -> str:
    """The error of `prepare`, which leaves nothing that looks finished."""
    with pytest.raises(kind) as caught:
        prepare(config, vocab_size=0, out=out)
    assert not (out / MANIFEST).exists()
    return one_line(caught.value, {DataError: 65, ConfigError: 2, DiskError: 74}[kind])


def mismatches(found: dict[str, str], patterns: dict[str, str]) -> list[str]:
    """The messages that do not match their pattern."""
    assert found.keys() == patterns.keys()
    return [f"{name}: {text}" for name, text in found.items() if not re.search(patterns[name], text)]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


IRREGULAR = "expected a regular file"
TEXT_FAULTS: dict[str, tuple[Callable[[Path], object] | bytes | None, str, str]] = {
    # what a.txt is or how it is made, what --path is in its folder, the message
    "empty": (b"", "a.txt", "the source text has 0 characters of text in 0 documents, at least 10 are needed"),
    "short": (b"nine char", "a.txt", "the source text has 9 characters of text in 1 documents, at least 10 are needed"),
    "latin-1": (
        LATIN_1,
        "a.txt",
        r"a\.txt: not UTF-8 at byte 1,483 \(0xe9\); convert the file or add --errors replace",
    ),
    "cut": (LONG_TEXT.encode() + "🙂".encode()[:3], "a.txt", r"a\.txt: not UTF-8 at byte 1,480 \(0xf0\)"),
    "pipe": (lambda a: os.mkfifo(a), "a.txt", rf"a\.txt: a named pipe, {IRREGULAR}"),
    "pipe in folder": (lambda a: os.mkfifo(a), "", rf"a\.txt: a named pipe, {IRREGULAR}"),
    "link to itself": (lambda a: os.symlink(a, a), "a.txt", rf"a\.txt: a loop of symbolic links; {IRREGULAR}"),
    "same in folder": (lambda a: os.symlink(a, a), "", rf"a\.txt: a loop of symbolic links; {IRREGULAR}"),
    "link to nothing": (
        lambda a: os.symlink("nowhere", a),
        "a.txt",
        rf"a\.txt: no such file or directory; {IRREGULAR}",
    ),
    "device": (lambda a: os.symlink("/dev/zero", a), "a.txt", rf"a\.txt: a device, {IRREGULAR}"),
    "socket": (bind, "a.txt", rf"a\.txt: a socket, {IRREGULAR}"),
    "empty folder": (None, "", "empty folder: the folder holds no files; give --path"),
    "glob": (None, "*.txt", r"\*\.txt: no file matches this glob; give --path"),
    "missing": (None, "a.txt", r"a\.txt: no such file or directory"),
    "below a file": (b"x", "a.txt/b.txt", r"b\.txt: not a directory"),
}


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix file system")
def test_text_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    found = {}
    for name, (make, path, _) in TEXT_FAULTS.items():
        folder = tmp_path / name
        folder.mkdir()
        if callable(make):
            make(folder / "a.txt")
        elif make is not None:
            (folder / "a.txt").write_bytes(make)
        found[name] = refused(byte_config("text", folder / path), tmp_path / "out")
    assert mismatches(found, {name: fault[2] for name, fault in TEXT_FAULTS.items()}) == []


def test_bytes_that_are_not_utf8_are_replaced_and_counted_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(LATIN_1)
    config = byte_config("text", tmp_path / "a.txt", errors="replace")
    manifest = prepare(config, vocab_size=0, out=tmp_path / "out")
    assert manifest.replacements == 1
    assert manifest.notes == ["1 place that was not UTF-8 was replaced by U+FFFD"]


def unreadable(path: Path, mode: str = "r", *rest, **options):
    """What opening a file of another user does; simulated, because root may open it."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_files_and_folders_without_permission_and_a_file_that_vanishes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a.txt", Path.open
    path.write_text(LONG_TEXT)
    config, out = byte_config("text", path), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda self, *rest, **more: unreadable(self) if self == path else real(self, *rest, **more)
        )
        for name in ("text", "jsonl"):
            found = refused(byte_config(name, path), out)
            assert "a.txt: cannot be read: permission denied; check its permissions" in found
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", unreadable)
        assert f"{tmp_path}: cannot be read: permission denied" in refused(byte_config("text", tmp_path), out)
    monkeypatch.setattr("quillgpt.data.prepare._tokenizer", lambda *arguments: path.unlink())
    assert "a.txt: cannot be read: no such file or directory" in refused(config, out)


JSON_FAULTS: dict[str, bytes | str] = {
    r"a\.jsonl:2: not JSON: ": '{"text": "good"}\n{"text": "cut',
    r"a\.jsonl:3: a list, expected an object with the field 'text'": '\n\n["text"]\n',
    r"a\.jsonl:1: no field 'text' \(did you mean txt\?\); it has txt, id; choose one with": '{"txt": "x", "id": 1}\n',
    r"a\.jsonl:1: no field 'text'; it has none": "{}\n",
    r"a\.jsonl:1: the field 'text' is null, expected a string": '{"text": null}\n',
    r"a\.jsonl:1: the field 'text' is a number, expected a string": '{"text": 5}\n',
    r"a\.jsonl:1: the text holds half a character \(U\+D83D at character 5\)": '{"text": "half \\ud83d"}\n',
    r"a\.jsonl:1: not JSON: .*recursion": "[" * 200_000,
    r"a\.jsonl:1: not JSON: .*limit": "9" * 6_000,
    r"a\.jsonl: not UTF-8 at byte 30 \(0xe9\)": b'{"text": "good"}\n{"text": "caf\xe9"}\n',
    r"a\.jsonl:2: a line of more than 250,000 bytes": '{"text": "good"}\n' + json.dumps({"text": "x" * 250_000}),
}


def test_a_bad_json_line_names_its_file_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "LINE_BYTES", 250_000)
    found = {}
    for pattern, content in JSON_FAULTS.items():
        (tmp_path / "a.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
        found[pattern] = refused(byte_config("jsonl", tmp_path / "a.jsonl"), tmp_path / "out")
    assert mismatches(found, {pattern: pattern for pattern in JSON_FAULTS}) == []


def unchanged(content: bytes) -> bytes:
    return content


UNREADABLE = "not a readable parquet file: .*; fetch or write it again"
PARQUET_FAULTS: dict[str, tuple[list, Callable[[bytes], bytes], str]] = {
    "text": (["x"], lambda content: b"just text", UNREADABLE),
    "empty": (["x"], lambda content: b"", UNREADABLE),
    "cut": ([LONG_TEXT] * 9, lambda content: content[: len(content) // 2], UNREADABLE),
    "page": ([f"{i}{LONG_TEXT}" for i in range(99)], lambda x: x[:8] + b"\xff" * 200 + x[208:], UNREADABLE),
    "texts": (["x"], unchanged, r"no column 'text' \(did you mean texts\?\); it has texts"),
    "numbers": ([1, 2], unchanged, r"the column 'text' is of type int64, expected string"),
    "null": (["x", None], unchanged, r"row 1 has no text \(null\)"),
}


def test_a_bad_parquet_file_is_one_line_also_in_place_of_the_hub(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    found = {}
    for name, (column, damage, _) in PARQUET_FAULTS.items():
        path = tmp_path / name / "a.parquet"
        path.parent.mkdir()
        table = pyarrow.table({"texts" if name == "texts" else "text": column})
        parquet.write_table(table, path, compression="snappy")
        path.write_bytes(damage(path.read_bytes()))
        found[name] = refused(byte_config("parquet", path), tmp_path / "out")
        if name != "empty":  # `datasets` reads it as no rows
            refused(byte_config("openwebtext", path), tmp_path / "out")
    patterns = {name: rf"a\.parquet: {fault[2]}" for name, fault in PARQUET_FAULTS.items()}
    assert mismatches(found, patterns) == []


NANOGPT_FAULTS = {
    r"train\.bin: 1 bytes is not a whole number of uint16 ids": b"\x01",
    "the source nanogpt gives 0 tokens for the train split, at least 2 are needed": b"",
    r"train\.bin: id 257 at 9 is outside the vocabulary: the tokenizer byte has 257": b"\x01\x00" * 9
    + b"\x01\x01\x02\0",
    r"train\.bin: no such file": None,
}


def test_a_bad_nanogpt_folder_is_one_line(tmp_path: Path) -> None:
    found = {}
    for number, (pattern, content) in enumerate(NANOGPT_FAULTS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "val.bin").write_bytes(b"\x01\x00" * 9)
        if content is not None:
            (folder / "train.bin").write_bytes(content)
        found[pattern] = refused(byte_config("nanogpt", folder), tmp_path / f"out{number}")
    assert mismatches(found, {pattern: pattern for pattern in NANOGPT_FAULTS}) == []
    found = refused(byte_config("nanogpt", tmp_path / "train.bin"), tmp_path / "out")
    assert "train.bin: not a folder" in found


def test_a_source_without_its_path_and_unknown_names_are_settings_to_correct(tmp_path: Path) -> None:
    for name in ("text", "jsonl", "parquet", "nanogpt"):
        assert f"the source {name} needs" in refused(byte_config(name, ""), tmp_path / "out", ConfigError)
    assert "did you mean parquet?" in refused(byte_config("parket", ""), tmp_path / "out", ConfigError)
    config = byte_config("fineweb-edu", "", subset="sample-100B")
    assert "did you mean sample-100BT?" in refused(config, tmp_path / "out", ConfigError)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "good.txt").write_text(LONG_TEXT)
    prepare(byte_config("text", tmp_path / "good.txt"), vocab_size=0, out=tmp_path / "data")
    return tmp_path / "data"


def open_error(directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        TokenDataset.open(directory, "train")
    return one_line(caught.value, 65)


def prepare_error(directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare(byte_config("text", directory.parent / "good.txt"), vocab_size=0, out=directory)
    return one_line(caught.value, 65)


def edited(position: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:position] + new + content[position + len(new) :]


GROWN = r"[\d,]+ bytes, expected [\d,]+ \(cut short or grown\)"
SHARD_FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "one byte cut": (lambda content: content[:-1], GROWN),
    "two bytes cut": (lambda content: content[:-2], GROWN),
    "three bytes cut": (lambda content: content[:-3], GROWN),
    "one byte more": (lambda content: content + b"\0", GROWN),
    "cut in its header": (lambda content: content[:100], "not a quill shard"),
    "empty": (lambda content: b"", "cannot read this shard: the file is empty"),
    "no header": (lambda content: content[128:], r"not a quill shard \(it has no header\); .*`quill prepare nanogpt`"),
    "other version": (edited(8, b"\x02"), "shard format 2, this quill reads 1"),
    "byte order swapped": (edited(8, b"\0\0\0\x01"), "shard format 16777216, this quill reads 1"),
    "four bytes a token": (edited(12, b"\x04"), "4 bytes a token, a vocabulary of 257 has 2"),
    "three bytes a token": (edited(12, b"\x03"), "3 bytes a token"),
    "no tokens": (edited(16, bytes(8)), "this shard is empty"),
    "endless tokens": (edited(16, b"\xff" * 8), GROWN),
    "endless documents": (edited(24, b"\xff" * 7), GROWN),
    "largest id": (edited(40, b"\x01\x01"), "token 257 is outside its vocabulary of 257"),
    "other vocabulary": (edited(32, b"\x02\x01"), "vocabulary size 258, manifest.json says 257"),
    "other tokenizer": (edited(48, bytes(32)), "tokenizer 0{64}, manifest.json says"),
    "other content": (edited(200, b"\x01"), "damaged: its content does not have the checksum of its header"),
}


def test_a_bad_shard_is_one_line_when_opened(prepared: Path) -> None:
    path = prepared / "train-00000.bin"
    content, found = path.read_bytes(), {}
    for name, (damage, _) in SHARD_FAULTS.items():
        path.write_bytes(damage(content))
        found[name] = open_error(prepared)
    patterns = {name: rf"train-00000\.bin: .*{fault[1]}.*quill prepare" for name, fault in SHARD_FAULTS.items()}
    patterns["no header"] = rf"train-00000\.bin: {SHARD_FAULTS['no header'][1]}"
    assert mismatches(found, patterns) == []
    path.unlink()
    assert "train-00000.bin: this shard is missing" in open_error(prepared)
    assert "train-00000.bin: this shard is missing" in prepare_error(prepared)
    path.mkdir()
    assert "train-00000.bin: cannot read this shard: Is a directory" in open_error(prepared)


def test_an_id_outside_the_vocabulary_is_found_wherever_it_is(prepared: Path) -> None:
    """A shard whose header and checksum are right and whose ids are not: another program wrote it."""
    path = prepared / "train-00000.bin"
    original = np.array(TokenDataset.open(prepared, "train").shards[0].tokens)
    fingerprint = load_data_tokenizer(prepared).fingerprint
    for index in (0, 500, len(original) - 1):
        tokens = original.copy()
        tokens[index] = 300
        write_shard(path, tokens, np.array([len(tokens)]), vocab_size=301, tokenizer_fingerprint=fingerprint)
        content = bytearray(path.read_bytes())
        content[32:34], content[40:42] = b"\x01\x01", b"\0\0"  # vocabulary 257, largest 0
        content[80:112] = bytes(32)
        content[80:112] = hashlib.sha256(content).digest()
        path.write_bytes(content)
        assert f"token 300 at {index} is outside its vocabulary of 257" in open_error(prepared)


MANIFEST_FAULTS: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "deep": lambda text: "[" * 200_000,
    "other format": lambda text: text.replace("quillgpt-data", "other-data"),
    "newer": lambda text: text.replace('"version": 1', '"version": 2'),
    "no shards": lambda text: text.replace('"shards"', '"shard"'),
    "no counts": lambda text: text.replace('"tokens"', '"token"'),
    "text instead of a list": lambda text: re.sub(r'"val": \[.*?\]', '"val": "none"', text, flags=re.DOTALL),
    "another hash": lambda text: re.sub(r'"sha256": "....', '"sha256": "0000', text),
}


def test_a_bad_or_missing_record_of_the_directory_is_one_line(prepared: Path) -> None:
    path = prepared / MANIFEST
    text, found = path.read_text(), {}
    for name, damage in MANIFEST_FAULTS.items():
        path.write_text(damage(text))
        found[name] = open_error(prepared)
    assert mismatches(found, dict.fromkeys(MANIFEST_FAULTS, rf"^{path}: .*; delete the data directory")) == []
    path.rename(prepared / WORK)
    assert "is not complete: `quill prepare` was interrupted; run it again to continue" in open_error(prepared)
    for content in ("{", "{}", '{"settings": 1}', "[1]"):
        (prepared / WORK).write_text(content)
        assert "work.json" in prepare_error(prepared), content
    (prepared / WORK).unlink()
    assert "manifest.json is missing; make it with `quill prepare" in open_error(prepared)
    assert "manifest.json is missing" in open_error(prepared / "nowhere")
    assert "is a file, expected a directory" in open_error(prepared.parent / "good.txt")


def test_a_missing_tokenizer_is_one_line(prepared: Path) -> None:
    (prepared / TOKENIZER).unlink()
    with pytest.raises(DataError) as caught:
        load_data_tokenizer(prepared)
    assert "tokenizer.json" in one_line(caught.value, 65)


def test_a_file_in_place_of_the_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(LONG_TEXT)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(QuillError, match="out"):
        prepare(byte_config("text", tmp_path / "good.txt"), vocab_size=0, out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_systems_own_full_device_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ENOSPC of a real write; `test_prepare.py` simulates it at every operation."""
    (tmp_path / "good.txt").write_text(LONG_TEXT)
    config, real = byte_config("text", tmp_path / "good.txt"), Path.open

    def on_full_device(path: Path, mode: str = "r", **options):
        return real(Path("/dev/full") if "train-" in path.name and "w" in mode else path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", on_full_device)
        found = refused(config, tmp_path / "out", DiskError)
    assert re.search(r"train-00000\.bin\S*: cannot write: No space left on device; [\d,]+ MB free there", found)
    assert not list((tmp_path / "out").glob(f"*{files.TEMPORARY_PREFIX}*"))
    prepare(config, vocab_size=0, out=tmp_path / "out")
