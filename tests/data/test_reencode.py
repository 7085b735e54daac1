"""Text that was encoded by one tokenizer becomes, for another, what `prepare` would have written for that one."""

from pathlib import Path

import pytest
from small_corpora import corpus, read_tokens

from quillgpt.data import load_data_tokenizer, reencode
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.document import TextChunk
from quillgpt.data.prepare import prepare
from quillgpt.data.reencode import decoded_chunks, write_split
from quillgpt.errors import DataError
from quillgpt.tokenizer import load_tokenizer


def test_the_tokens_are_those_of_preparing_the_text_for_that_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"No. {i}: naïve 🙂 " + "tree and stone, " * (i % 9) + "\n" for i in range(120)]
    for tokenizer, shard_tokens in (("byte", 700), ("bpe", 1 << 20)):
        config = corpus(tmp_path / "in", texts, tokenizer=tokenizer)
        prepare(config, vocab_size=285, out=tmp_path / tokenizer, shard_tokens=shard_tokens)
    byte, bpe = (load_data_tokenizer(tmp_path / name) for name in ("byte", "bpe"))
    monkeypatch.setattr(reencode, "SHARD_TOKENS", 100)
    for block_tokens in (3, 1 << 18):  # 3: characters of 4 bytes are in two blocks
        monkeypatch.setattr(reencode, "BLOCK_TOKENS", block_tokens)
        for split in ("train", "val"):
            dataset, expected = (TokenDataset.open(tmp_path / name, split) for name in ("byte", "bpe"))
            folder = tmp_path / f"{split}{block_tokens}"
            found = write_split(decoded_chunks(dataset, byte), bpe, folder, split=split, source="text")
            assert len(dataset.shards) > 1 or split == "val"
            assert len(found.shards) > 1
            assert found.tokens(0, found.token_count).tolist() == read_tokens(tmp_path / "bpe", split)
            assert found.text_bytes == expected.text_bytes == dataset.text_bytes


def test_it_stops_at_the_end_of_the_chunk_that_has_enough_tokens(tmp_path: Path) -> None:
    endless = (TextChunk("ten bytes.", True) for _ in iter(int, 1))
    found = write_split(endless, load_tokenizer("byte"), tmp_path, split="val", source="text", max_tokens=30)
    assert found.token_count == 33
    assert found.shards[0].document_ends.tolist() == [11, 22, 33]


def test_tokens_that_are_not_text_are_refused_with_their_place() -> None:
    dataset = TokenDataset.from_documents([[104, 105, 256], [0xFF, 256]], 257)
    with pytest.raises(DataError, match=r"tokens 3 to 5 are not UTF-8, .*give the text"):
        list(decoded_chunks(dataset, load_tokenizer("byte")))


def test_a_document_that_continues_in_the_next_shard_stays_one() -> None:
    """The second shard begins in the middle of a character; an empty document leaves nothing."""
    tokens = [*"a🙂b".encode(), 256, 256, *b"cd", 256]
    parts = [tokens[:3], tokens[3:7], tokens[7:8], tokens[8:]]
    dataset = TokenDataset.from_documents(parts, 257, documents_per_shard=1)
    assert list(decoded_chunks(dataset, load_tokenizer("byte"))) == [TextChunk("a🙂b", True), TextChunk("cd", True)]
