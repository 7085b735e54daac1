"""Text that was cut by one tokenizer becomes, for another, what preparing it for that one gives."""

from pathlib import Path

import numpy as np
import pytest

from quillgpt.config import DataConfig
from quillgpt.data import load_data_tokenizer, reencode
from quillgpt.data.document import Piece
from quillgpt.data.prepare import prepare
from quillgpt.data.reencode import decoded_pieces, write_split
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import DataError
from quillgpt.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same text prepared as bytes, in many small shards, and with a tokenizer that was trained on it."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "texts").mkdir()
    for number in range(120):
        text = f"No. {number}: naïve 🙂 " + "tree and stone, " * (number % 9) + "\n"
        (folder / "texts" / f"{number:03}.txt").write_text(text, encoding="utf-8")
    for tokenizer, shard_tokens in (("byte", 700), ("bpe", 1 << 20)):
        settings = DataConfig(source="text", path=str(folder / "texts"), tokenizer=tokenizer)
        prepare(settings, vocab_size=285, out=folder / tokenizer, shard_tokens=shard_tokens)
    return folder / "byte", folder / "bpe"


def joined(dataset: TokenDataset) -> np.ndarray:
    return np.concatenate([shard.tokens for shard in dataset.shards])


@pytest.mark.parametrize("block_tokens", [3, 1 << 18])
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_tokens_are_those_of_preparing_the_text_for_that_tokenizer(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, block_tokens: int
) -> None:
    monkeypatch.setattr(reencode, "BLOCK_TOKENS", block_tokens)  # 3: characters of 4 bytes lie across two blocks
    given, wanted = (TokenDataset.open(directory, split) for directory in both)
    found = write_split(
        decoded_pieces(given, load_data_tokenizer(both[0])),
        load_data_tokenizer(both[1]),
        tmp_path,
        split=split,
        source="text",
        shard_tokens=100,
    )
    assert len(given.shards) > 1 or split == "val"
    assert len(found.shards) > 1
    assert np.array_equal(joined(found), joined(wanted))
    assert found.text_bytes == wanted.text_bytes == given.text_bytes


def test_it_stops_behind_as_many_tokens_as_are_wanted(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("byte")
    texts = (Piece("ten bytes.", True) for _ in iter(int, 1))  # without end
    found = write_split(texts, tokenizer, tmp_path, split="val", source="text", max_tokens=30)
    assert found.token_count == 33
    assert found.shards[0].document_ends.tolist() == [11, 22, 33]


def test_tokens_that_are_no_text_are_refused_with_their_place() -> None:
    dataset = TokenDataset.from_documents([[104, 105, 256], [0xFF, 256]], 257)
    with pytest.raises(DataError, match=r"tokens 3 to 5 are not UTF-8, .*give the text"):
        list(decoded_pieces(dataset, load_tokenizer("byte")))


def test_a_document_that_goes_on_in_the_next_shard_stays_one() -> None:
    """The second shard begins in the middle of a character; an empty document leaves nothing."""
    tokens = [*"a🙂b".encode(), 256, 256, *b"cd", 256]
    parts = [tokens[:3], tokens[3:7], tokens[7:8], tokens[8:]]
    dataset = TokenDataset.from_documents(parts, 257, documents_per_shard=1)
    found = list(decoded_pieces(dataset, load_tokenizer("byte")))
    assert found == [Piece("a🙂b", True), Piece("cd", True)]
