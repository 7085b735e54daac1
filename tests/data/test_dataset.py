"""What is written into shards is what a data set contains, and a data set knows where it came from."""

from pathlib import Path

import numpy as np
import pytest
from small_corpora import byte_config, read_tokens

from quillgpt.config import DataConfig
from quillgpt.data import dataset as dataset_module
from quillgpt.data import load_data_tokenizer
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.prepare import prepare
from quillgpt.data.shards import (
    HEADER_BYTES,
    MANIFEST,
    TOKENIZER,
    checked_tokens,
    open_shard,
    token_dtype,
    verify_shard,
    write_shard,
)
from quillgpt.errors import DataError

FINGERPRINT = "ab" * 32
TEXT = "To be, or not to be, that is the question. " * 50


def prepare_text(folder: Path, text: str = TEXT) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(text)
    prepare(byte_config("text", folder / "text.txt"), vocab_size=0, out=folder / "data", shard_tokens=500)
    return folder / "data"


def test_a_shard_is_read_back_and_tokens_take_two_bytes_exactly_while_the_vocabulary_fits(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.bin"
    for vocab_size, dtype in {256: "<u2", 65_536: "<u2", 65_537: "<u4", 200_000: "<u4"}.items():
        tokens = np.array([0, vocab_size - 1, 7])
        write_shard(path, tokens, np.array([1, 3]), vocab_size=vocab_size, tokenizer_fingerprint=FINGERPRINT)
        header, read = open_shard(path)
        verify_shard(header, read)
        assert read.tokens.dtype == np.dtype(dtype) == token_dtype(vocab_size)
        assert read.tokens.tolist() == tokens.tolist()
        assert read.document_ends.tolist() == [1, 3]
    write_shard(path, tokens, np.array([2, 1, 3]), vocab_size=vocab_size, tokenizer_fingerprint=FINGERPRINT)
    with pytest.raises(DataError, match="document ends are not ascending"):
        verify_shard(*open_shard(path))


def test_a_shard_is_its_header_then_plain_little_endian_tokens(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.bin"
    write_shard(path, np.array([258, 1, 3]), np.array([3]), vocab_size=300, tokenizer_fingerprint=FINGERPRINT)
    content = path.read_bytes()
    assert content[:8] == b"QUILLTOK"
    assert content[HEADER_BYTES : HEADER_BYTES + 6] == b"\x02\x01\x01\x00\x03\x00"
    assert content[HEADER_BYTES + 8 :] == (3).to_bytes(8, "little")
    assert content[48:80].hex() == FINGERPRINT


def test_an_id_outside_the_vocabulary_is_refused_and_never_wraps() -> None:
    for wrong in (70_000, 300, -1):
        with pytest.raises(DataError, match=f"token {wrong} is outside the vocabulary of 300"):
            checked_tokens(np.array([1, wrong, 2]), vocab_size=300)


def test_documents_in_memory_are_shards_of_a_number_of_documents() -> None:
    dataset = TokenDataset.from_documents([[5, 1, 2, 9], [0], [3, 3, 9]], 10, documents_per_shard=2)
    assert [shard.tokens.tolist() for shard in dataset.shards] == [[5, 1, 2, 9, 0], [3, 3, 9]]
    assert [shard.document_ends.tolist() for shard in dataset.shards] == [[4, 5], [3]]
    assert dataset.token_count == 8
    assert dataset.tokens(4, 7).tolist() == [0, 3, 3]


def test_a_prepared_split_has_its_tokens_and_what_is_known_about_them(tmp_path: Path) -> None:
    directory = prepare_text(tmp_path)
    train, val = (TokenDataset.open(directory, split) for split in ("train", "val"))
    cut = len(TEXT) * 9 // 10
    for dataset, expected in ((train, TEXT[:cut]), (val, TEXT[cut:])):
        assert read_tokens(directory, dataset.split) == [*expected.encode(), 256]
        assert (dataset.token_count, dataset.text_bytes) == (len(expected) + 1, len(expected))
        assert dataset.tokenizer_fingerprint == load_data_tokenizer(directory).fingerprint
        assert (dataset.vocab_size, dataset.source) == (257, "text")
    assert train.fingerprint == val.fingerprint
    with pytest.raises(ValueError, match="invalid split: 'test'"):
        TokenDataset.open(directory, "test")


def test_other_text_has_another_fingerprint(tmp_path: Path) -> None:
    one = TokenDataset.open(prepare_text(tmp_path / "a", "a" * 100), "train")
    other = TokenDataset.open(prepare_text(tmp_path / "b", "a" * 99 + "b"), "train")  # differs in the validation part
    assert one.fingerprint != other.fingerprint


def test_a_tokenizer_of_other_data_is_refused(tmp_path: Path) -> None:
    directory, other = prepare_text(tmp_path), tmp_path / "other"
    config = DataConfig(source="text", path=str(tmp_path / "text.txt"), tokenizer="character")
    prepare(config, vocab_size=0, out=other)
    (directory / TOKENIZER).write_bytes((other / TOKENIZER).read_bytes())
    with pytest.raises(DataError, match="the data was made with"):
        load_data_tokenizer(directory)


def flip_bit(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_in_a_small_shard_is_found_at_opening(tmp_path: Path) -> None:
    directory = prepare_text(tmp_path)
    for place in (0, 8, 12, 16, 24, 32, 40, 48, 90, 120, 128, 301, -1, -8, -9):
        flip_bit(directory / "train-00000.bin", place)
        with pytest.raises(DataError, match=r"train-00000.bin"):
            TokenDataset.open(directory, "train")
        flip_bit(directory / "train-00000.bin", place)
    TokenDataset.open(directory, "train")


def test_large_data_is_opened_at_once_and_verified_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prepare_text(tmp_path)
    monkeypatch.setattr(dataset_module, "VERIFY_BYTES", 0)
    monkeypatch.setattr(dataset_module, "verify_shard", lambda *shard: pytest.fail("read completely"))
    flip_bit(directory / "train-00000.bin", HEADER_BYTES + 3)
    dataset = TokenDataset.open(directory, "train")
    monkeypatch.undo()
    with pytest.raises(DataError, match="damaged"):
        dataset.verify()


def test_the_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    directory = prepare_text(tmp_path)
    before = (directory / MANIFEST).read_bytes()
    manifest = prepare(byte_config("text", tmp_path / "text.txt"), vocab_size=0, out=directory, shard_tokens=500)
    assert manifest.to_json()["totals"]["train"]["tokens"] == TokenDataset.open(directory, "train").token_count
    assert (directory / MANIFEST).read_bytes() == before
