"""What is written into shards is what a data set holds, and a data set knows where it came from."""

from pathlib import Path

import numpy as np
import pytest

from quillgpt.config import DataConfig
from quillgpt.data import load_data_tokenizer, token_dataset
from quillgpt.data.manifest import MANIFEST, TOKENIZER
from quillgpt.data.prepare import prepare
from quillgpt.data.shard import HEADER_BYTES, checked_tokens, open_shard, token_dtype, verify_shard, write_shard
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import DataError

FINGERPRINT = "ab" * 32
DOCUMENTS = [[5, 1, 2, 9], [0], [3, 3, 9]]


def prepared(folder: Path, text: str = "To be, or not to be, that is the question. " * 50) -> Path:
    (folder / "text.txt").write_text(text)
    config = DataConfig(source="text", path=str(folder / "text.txt"), tokenizer="byte")
    prepare(config, vocab_size=0, out=folder / "data", shard_tokens=500)
    return folder / "data"


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (200_000, "<u4")])
def test_tokens_take_two_bytes_exactly_while_the_vocabulary_fits(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    tokens = np.array([0, vocab_size - 1, 7])
    path = tmp_path / "train-00000.bin"
    write_shard(path, tokens, np.array([1, 3]), vocab_size=vocab_size, tokenizer_fingerprint=FINGERPRINT)
    header, read = open_shard(path)
    verify_shard(header, read)
    assert read.tokens.dtype == np.dtype(dtype) == token_dtype(vocab_size)
    assert read.tokens.tolist() == tokens.tolist()
    assert read.document_ends.tolist() == [1, 3]


def test_a_shard_is_its_header_then_plain_little_endian_tokens(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.bin"
    tokens = np.array([258, 1, 3])
    write_shard(path, tokens, np.array([3]), vocab_size=300, tokenizer_fingerprint=FINGERPRINT)
    content = path.read_bytes()
    assert content[:8] == b"QUILLTOK"
    assert content[HEADER_BYTES : HEADER_BYTES + 6] == b"\x02\x01\x01\x00\x03\x00"
    assert content[HEADER_BYTES + 8 :] == (3).to_bytes(8, "little")
    assert content[48:80].hex() == FINGERPRINT


@pytest.mark.parametrize("wrong", [70_000, 300, -1])
def test_an_id_outside_the_vocabulary_is_refused_and_never_wraps(wrong: int) -> None:
    with pytest.raises(DataError, match=f"token {wrong} is outside the vocabulary of 300"):
        checked_tokens(np.array([1, wrong, 2]), vocab_size=300)


def test_documents_in_memory_are_shards_of_so_many_documents() -> None:
    dataset = TokenDataset.from_documents(DOCUMENTS, 10, documents_per_shard=2)
    assert [shard.tokens.tolist() for shard in dataset.shards] == [[5, 1, 2, 9, 0], [3, 3, 9]]
    assert [shard.document_ends.tolist() for shard in dataset.shards] == [[4, 5], [3]]
    assert dataset.token_count == 8


def test_a_prepared_split_gives_its_tokens_and_what_is_known_about_them(tmp_path: Path) -> None:
    text = "To be, or not to be, that is the question. " * 50
    directory = prepared(tmp_path, text)
    train, val = (TokenDataset.open(directory, split) for split in ("train", "val"))
    tokenizer = load_data_tokenizer(directory)
    cut = len(text) * 9 // 10
    for dataset, expected in ((train, text[:cut]), (val, text[cut:])):
        tokens = np.concatenate([shard.tokens for shard in dataset.shards]).tolist()
        assert tokens == [*expected.encode(), 256]
        assert dataset.token_count == len(tokens)
        assert dataset.text_bytes == len(expected)
        assert dataset.tokenizer_fingerprint == tokenizer.fingerprint
        assert (dataset.vocab_size, dataset.source) == (257, "text")
    assert train.fingerprint == val.fingerprint


def test_other_text_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = TokenDataset.open(prepared(tmp_path / "a", "a" * 100), "train")
    other = TokenDataset.open(prepared(tmp_path / "b", "a" * 99 + "b"), "train")  # differs in the held-out part
    assert one.fingerprint != other.fingerprint


def test_a_tokenizer_that_does_not_belong_to_the_data_is_refused(tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    (tmp_path / "characters").mkdir()
    config = DataConfig(source="text", path=str(tmp_path / "text.txt"), tokenizer="character")
    prepare(config, vocab_size=0, out=tmp_path / "characters")
    (directory / TOKENIZER).write_bytes((tmp_path / "characters" / TOKENIZER).read_bytes())
    with pytest.raises(DataError, match="the data was made with"):
        load_data_tokenizer(directory)


def flip_bit(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 8, 12, 16, 24, 32, 40, 48, 90, 120, 128, 301, -1, -8, -9])
def test_a_flipped_bit_anywhere_in_a_small_shard_is_found_at_opening(place: int, tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    flip_bit(directory / "train-00000.bin", place)
    with pytest.raises(DataError, match=r"train-00000.bin"):
        TokenDataset.open(directory, "train")


def test_large_data_is_opened_at_once_and_verified_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prepared(tmp_path)
    monkeypatch.setattr(token_dataset, "VERIFY_BYTES", 0)
    monkeypatch.setattr(token_dataset, "verify_shard", lambda *shard: pytest.fail("read whole"))
    flip_bit(directory / "train-00000.bin", HEADER_BYTES + 3)
    dataset = TokenDataset.open(directory, "train")
    monkeypatch.undo()
    with pytest.raises(DataError, match="damaged"):
        dataset.verify()


def test_a_split_that_does_not_exist_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split = 'test'"):
        TokenDataset.open(prepared(tmp_path), "test")


def test_the_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    directory = prepared(tmp_path)
    config = DataConfig(source="text", path=str(tmp_path / "text.txt"), tokenizer="byte")
    before = (directory / MANIFEST).read_bytes()
    manifest = prepare(config, vocab_size=0, out=directory, shard_tokens=500)
    assert manifest.to_json()["totals"]["train"]["tokens"] == TokenDataset.open(directory, "train").token_count
    assert (directory / MANIFEST).read_bytes() == before
