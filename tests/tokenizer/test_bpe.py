"""Training a byte-level BPE, against `tokenizers` and against the definition written out slowly."""

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
from quillgpt.tokenizer import Tokenizer, train_tokenizer
from quillgpt.tokenizer.bpe import create, pieces
from quillgpt.tokenizer.byte_level import SPLIT

ORIGINAL_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's split as OpenAI published it"""


def slowly_trained(text: str, merges: int) -> list[bytes]:
    """The definition of BPE: merge the commonest pair of neighbours, again and again; ties by the lowest ids."""
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


def standard_library_text() -> str:
    folder = Path(subprocess.__file__).parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in ("argparse.py", "typing.py", "difflib.py"))


def test_training_finds_the_merges_of_the_definition() -> None:
    text = "the theory of the other thing: then there, thus 11 222 1122 and näher, näher!  \n" * 2 + "that's thick " * 3

    tokenizer = train_tokenizer("bpe", [text], 257 + 40)

    expected = slowly_trained(text, 40)
    assert [tokenizer.token_bytes(token) for token in range(296)] == expected


def test_ids_equal_those_of_the_library_that_trained() -> None:
    text = standard_library_text()
    theirs = HuggingFaceTokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2047, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator([text], trainer)

    ours = train_tokenizer("bpe", [text], 2048)

    assert ours.encode(text) == theirs.encode(text).ids
    assert ours.decode(theirs.encode(text).ids) == text


def test_the_split_is_gpt2s_as_published() -> None:
    text = standard_library_text()[:50_000] + "we'll he'd I'm you're I'LL 's\u2003 x\n \n  \u3000y  "

    assert regex.findall(SPLIT, text) == regex.findall(ORIGINAL_SPLIT, text)


@pytest.mark.parametrize("vocab_size", [257, 258, 300, 365])
def test_the_vocabulary_has_the_size_that_was_asked_for(vocab_size: int) -> None:
    tokenizer = train_tokenizer("bpe", [standard_library_text()], vocab_size)

    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.end_of_text == vocab_size - 1


def test_a_size_without_room_for_the_bytes_is_refused_before_any_text_is_read() -> None:
    def texts():
        pytest.fail("the text was read")
        yield ""

    with pytest.raises(ConfigError, match=r"vocab_size = 256 is too small.*257"):
        train_tokenizer("bpe", texts(), 256)


def test_text_too_small_for_the_size_says_what_size_it_allows() -> None:
    with pytest.raises(DataError, match=r"enough repeated pairs for (\d+) tokens.*--vocab-size \1") as raised:
        train_tokenizer("bpe", ["abab abab"], 4096)

    allowed = int(str(raised.value).split("--vocab-size ")[1].split()[0])
    assert train_tokenizer("bpe", ["abab abab"], allowed).vocab_size == allowed


def test_end_of_text_in_training_text_does_not_become_a_token() -> None:
    tokenizer = train_tokenizer("bpe", ["<|endoftext|>" * 500], 268)  # as many as it yields

    assert b"<|endoftext|>" not in [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]


def test_the_same_texts_train_the_same_tokenizer_in_another_process_and_with_other_threads(bpe: Tokenizer) -> None:
    program = (
        "import difflib, pathlib; from quillgpt.tokenizer import train_tokenizer;"
        "print(train_tokenizer('bpe', [pathlib.Path(difflib.__file__).read_text()], 1000).fingerprint)"
    )
    settings = [{"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"}, {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "4"}]

    fingerprints = {subprocess.check_output([sys.executable, "-c", program], env=env, text=True) for env in settings}

    assert len(fingerprints) == 1


def test_a_document_in_pieces_teaches_the_same_as_in_one() -> None:
    text = standard_library_text()

    parts = list(pieces(text, 5000))

    assert "".join(parts) == text
    assert 0 < max(map(len, parts)) <= 5000
    assert train_tokenizer("bpe", parts, 1000).fingerprint == train_tokenizer("bpe", [text], 1000).fingerprint


@pytest.mark.parametrize("line", ["ACGTTGAC", " ", "a", "é"])
def test_training_on_one_endless_word_is_not_quadratic(line: str) -> None:
    tokenizer = create([line * 60_000, "and some ordinary words and words"], 260)

    assert tokenizer.vocab_size == 260
