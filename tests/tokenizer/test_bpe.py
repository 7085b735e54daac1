"""Training a byte-level BPE, against `tokenizers` and against the definition computed slowly."""

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import regex
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer import train_tokenizer
from quillgpt.tokenizer.bpe import checked_pieces, pieces
from quillgpt.tokenizer.byte_level import SPLIT

ORIGINAL_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's split as OpenAI published it"""


def slowly_trained(text: str, merges: int) -> list[bytes]:
    """The definition of BPE: merge the most common pair of neighbours, repeatedly; ties by the lowest ids."""
    words = Counter(tuple(bytes([value]) for value in piece.encode()) for piece in regex.findall(ORIGINAL_SPLIT, text))
    printable = [value for value in range(256) if chr(value).isprintable() and chr(value) != " "]
    ids = {bytes([value]): i for i, value in enumerate([*printable, *sorted(set(range(256)) - set(printable))])}
    for _ in range(merges):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        ids[best[0] + best[1]] = len(ids)
        words = Counter({merged(word, best): count for word, count in words.items()})
    return sorted(ids, key=ids.__getitem__)


def merged(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    parts: list[bytes] = []
    i = 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        parts.append(b"".join(word[i : i + step]))
        i += step
    return tuple(parts)


@pytest.fixture(scope="module")
def source() -> str:
    """Some of Python's standard library."""
    folder = Path(subprocess.__file__).parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in ("argparse.py", "typing.py", "difflib.py"))


def test_training_finds_the_merges_of_the_definition() -> None:
    text = "the theory of the other thing: then there, thus 11 222 1122 and näher, näher!  \n" * 2 + "that's thick " * 3
    tokenizer = train_tokenizer("bpe", [text], 257 + 40)
    assert [tokenizer.token_bytes(token) for token in range(296)] == slowly_trained(text, 40)


def test_ids_equal_those_of_the_library_that_trained(source: str) -> None:
    theirs = HuggingFaceTokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(
        [source], trainers.BpeTrainer(vocab_size=1023, initial_alphabet=alphabet, show_progress=False)
    )
    ours = train_tokenizer("bpe", [source], 1024)
    assert ours.encode(source) == theirs.encode(source).ids
    assert ours.decode(theirs.encode(source).ids) == source


def test_the_split_is_gpt2s_as_published(source: str) -> None:
    text = source[:50_000] + "we'll he'd I'm you're I'LL 's\u2003 x\n \n  \u3000y  "
    assert regex.findall(SPLIT, text) == regex.findall(ORIGINAL_SPLIT, text)


def test_the_vocabulary_has_the_requested_size_and_ends_with_end_of_text(source: str) -> None:
    for vocab_size in (257, 258, 300, 365):
        tokenizer = train_tokenizer("bpe", [source[:20_000]], vocab_size)
        assert (tokenizer.vocab_size, tokenizer.end_of_text) == (vocab_size, vocab_size - 1)


def test_a_size_below_that_of_the_bytes_is_refused_before_any_text_is_read() -> None:
    texts = (pytest.fail("the text was read") for _ in range(1))
    with pytest.raises(
        ConfigError, match=r"^invalid vocab_size: 256 \(must be at least 257: 256 bytes and end of text"
    ):
        train_tokenizer("bpe", texts, 256)


def test_text_too_small_for_the_size_names_the_possible_size() -> None:
    with pytest.raises(DataError, match=r"repeated pairs for (\d+) tokens, not for 4,096; .*--vocab-size \1") as raised:
        train_tokenizer("bpe", ["abab abab"], 4096)
    possible = int(str(raised.value).split("--vocab-size ")[1].split()[0])
    tokenizer = train_tokenizer("bpe", ["abab abab"], possible)
    assert list(map(tokenizer.token_bytes, range(256, possible))) == [b"ab", b"abab", b""]  # " abab" occurs once


def test_end_of_text_in_training_text_does_not_become_a_token() -> None:
    tokenizer = train_tokenizer("bpe", ["<|endoftext|>" * 500], 268)  # the largest possible size
    assert b"<|endoftext|>" not in [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]


def test_the_same_texts_train_the_same_tokenizer_in_another_process_and_with_other_threads() -> None:
    program = (
        "import difflib, pathlib; from quillgpt.tokenizer import train_tokenizer;"
        "print(train_tokenizer('bpe', [pathlib.Path(difflib.__file__).read_text()], 1000).fingerprint)"
    )
    settings = [{"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"}, {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "4"}]
    fingerprints = {subprocess.check_output([sys.executable, "-c", program], env=env, text=True) for env in settings}
    assert len(fingerprints) == 1


def test_a_document_in_pieces_trains_the_same_tokenizer(source: str) -> None:
    parts = list(pieces(source, 5000))
    assert "".join(parts) == source
    assert 0 < max(map(len, parts)) <= 5000
    assert train_tokenizer("bpe", parts, 600).fingerprint == train_tokenizer("bpe", [source], 600).fingerprint


def test_a_document_with_a_long_word_is_trained_on_in_short_pieces() -> None:
    for repeated in ("ACGTTGAC", " ", "a", "é"):
        texts = [repeated * 60_000, "and some ordinary words and words"]
        parts = list(checked_pieces(texts))
        assert "".join(parts) == "".join(texts)
        assert max(map(len, parts)) == 1000, "the time of a merge is quadratic in the length of a word"
        assert train_tokenizer("bpe", texts, 260).vocab_size == 260
