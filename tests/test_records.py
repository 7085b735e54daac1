"""The strict reader: a missing file is a FileNotFoundError, anything else that cannot be used is the caller's error."""

import dataclasses
import errno
import json
import os
import random
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest

from quillgpt import records
from quillgpt.config import LoraConfig
from quillgpt.errors import DataError

REMEDY = "restore it"


def read(path: Path) -> dict:
    return records.read_json(path, error=DataError, remedy=REMEDY)


def test_only_a_missing_file_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("{}")
    for path in (tmp_path / "none.json", tmp_path / "file" / "none.json"):
        with pytest.raises(FileNotFoundError):
            read(path)
    for number in (errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.ELOOP):

        def fail(*arguments: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            with pytest.raises(DataError, match=os.strerror(number)):
                read(tmp_path / "file")


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    expected = {tmp_path / "pipe": "a named pipe", tmp_path: "a directory", Path("/dev/zero"): "a device"}
    expected[tmp_path / "loop"] = "symbolic links"
    for path, what in expected.items():
        with pytest.raises(DataError, match=what):
            read(path)


def test_broken_json_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    broken = (b"", b"[]", b"3", b'"a"', b'{"a":', b"\xff{}", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1, "a": 2}')
    for content in (*broken, b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5000 + b"}"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.json: damaged: .*; restore it") as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_huge_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.json"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    tracemalloc.start()
    with pytest.raises(DataError, match="more than"):
        records.read_json(path, error=DataError, limit=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_toml_with_long_keys_is_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    keys = ["a." * 100_000 + "a = 1", "x = {" + "a . " * 50_000 + "a = 1}", "[" + "a." * 50_000 + "a]"]
    for content in (*keys, "x = '" + "a" * 200_000, "a " * 100_000, ("a." * 15 + " ") * 5_000, "a." * 200_000):
        path.write_text(content)
        started = time.process_time()
        with pytest.raises(DataError):
            records.read_toml(path, error=DataError)
        assert time.process_time() - started < 2
    path.write_text('name = "a.b.c.txt"\n[a.b]\nc = 1\n')
    assert records.read_toml(path, error=DataError) == {"name": "a.b.c.txt", "a": {"b": {"c": 1}}}


def test_every_flipped_bit_of_a_sealed_file_is_found(tmp_path: Path) -> None:
    content = {"format": "x", "step": 3, "loss": 0.1, "files": {"a": {"size": 10, "sha256": "00ff"}}, "none": None}
    original = json.dumps(records.seal(content), indent=2).encode()
    path = tmp_path / "manifest.json"
    path.write_bytes(original)
    assert records.check_seal(read(path), path, error=DataError) == content
    pick = random.Random(7)
    for _ in range(400):
        place, bit = pick.randrange(len(original)), pick.randrange(8)
        flipped = bytearray(original)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            assert records.check_seal(read(path), path, error=DataError) == content  # white space
        except DataError:
            continue
        assert original[place : place + 1].isspace()


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int


@dataclass(frozen=True, kw_only=True)
class Record:
    name: str
    loss: float | None
    parts: dict[str, Inner]
    sizes: list[int] = dataclasses.field(default_factory=list)


def test_types_and_unknown_fields_are_checked() -> None:
    good = {"name": "a", "loss": None, "parts": {"x": {"size": 1}}}
    path = Path("a.json")
    assert records.convert(good, Record, path, error=DataError) == Record(
        name="a", loss=None, parts={"x": Inner(size=1)}
    )
    wrong = [{"name": 1}, {"loss": "1"}, {"parts": []}, {"parts": {"x": {}}}, {"parts": {"x": {"size": True}}}]
    for change in [
        *wrong,
        {"sizes": [1, None]},
        {"other": 1},
        {"parts": {"x": {"size": 1, "other": 2}}},
        {"loss": True},
        {"name": None},
    ]:
        with pytest.raises(DataError, match=r"^a\.json: damaged: "):
            records.convert(good | change, Record, path, error=DataError)
    with pytest.raises(DataError, match="invalid lora_rank"):
        records.convert({"lora_rank": -1}, LoraConfig, path, error=DataError)
