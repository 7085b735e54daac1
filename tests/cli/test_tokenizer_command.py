"""`quill tokenizer train` and `quill tokenizer inspect`: what they print and save, and their errors."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from quillgpt.cli.tokenizer import main, token_lines, visible
from quillgpt.config import DataConfig
from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer import load_tokenizer

SENTENCE = "the cat sat on the mat, then the rat sat on the cat. "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory in which every source has the same two documents."""

    def training_texts(config: DataConfig) -> Iterator[str]:
        yield from [f"{config.source}: {SENTENCE}", SENTENCE][: config.documents or None]

    monkeypatch.setattr("quillgpt.data.sources.training_texts", training_texts)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_saves_what_auto_tokenizer_loads(folder: Path, capsys: pytest.CaptureFixture) -> None:
    code = main(["train", "--source", "text", "--vocab-size", "270", "--out", "mine"])

    ours, theirs = load_tokenizer("mine"), AutoTokenizer.from_pretrained("mine")
    assert code == 0
    assert (ours.name, ours.vocab_size) == ("bpe", 270)
    assert theirs(SENTENCE).input_ids == ours.encode(SENTENCE)
    printed = capsys.readouterr().out
    assert "bpe of 270 tokens, learned from 112 bytes of text" in printed
    assert ours.fingerprint[:12] in printed


def test_train_says_where_it_saved_and_reads_only_the_documents(folder: Path, capsys: pytest.CaptureFixture) -> None:
    main(["train", "--source=text", "--vocab_size=260", "--documents", "1", "--out=mine.json"])
    assert "learned from 59 bytes of text" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["mine.json"], "a .json file is the only file"
    assert load_tokenizer("mine.json").vocab_size == 260

    main(["train", "--source", "shakespeare", "--tokenizer", "character"])
    assert "saved as tokenizers/shakespeare-character/tokenizer.json" in capsys.readouterr().out
    assert load_tokenizer("tokenizers/shakespeare-character").encode(" ,") == [0, 1]


def test_train_does_not_replace_the_tokenizer_of_prepared_data(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "manifest.json").write_text("{}")

    with pytest.raises(ConfigError, match="belongs to prepared data or a checkpoint"):
        main(["train", "--source", "text", "--vocab-size", "260", "--out", "data"])
    assert not (folder / "data" / "tokenizer.json").exists()


def inspected(capsys: pytest.CaptureFixture, *words: str) -> list[str]:
    """The lines of `quill tokenizer inspect`."""
    main(["inspect", *words])
    return capsys.readouterr().out.splitlines()


def test_inspect_splits_text_files_and_standard_input_at_the_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lines = inspected(capsys, "naïve\nx", "--tokenizer", "byte")
    assert lines[:3] == ["byte  8 tokens", r"n│a│\xc3│\xaf│v│e│\n", "x"]
    rows = [line.split() for line in inspected(capsys, "hé", "--tokenizer", "byte", "--ids")[1:5]]
    assert rows == [["id", "bytes", "token"], ["104", "68", "h"], ["195", "c3", r"\xc3"], ["169", "a9", r"\xa9"]]
    (folder / "book.txt").write_bytes(b"once\r\n" * 1000)
    lines = inspected(capsys, "FILE:book.txt", "--tokenizer", "byte", "--tokens", "6")
    assert lines[:3] == ["byte  the first 6 of 6,000 tokens", r"o│n│c│e│\r│\n", ""]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("né".encode())))
    assert inspected(capsys, "-", "--tokenizer", "byte")[1] == r"n│\xc3│\xa9"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert inspected(capsys, "-", "--tokenizer", "byte")[-1].split() == ["byte", "257", "0", "-", "-"]


def test_inspect_compares_tokenizers_in_a_table(folder: Path, capsys: pytest.CaptureFixture) -> None:
    main(["train", "--source", "text", "--vocab-size", "270", "--out", "mine"])
    capsys.readouterr()

    header, first, second = inspected(capsys, SENTENCE, "--tokenizer", "byte", "--tokenizer", "mine")[-3:]

    count = len(load_tokenizer("mine").encode(SENTENCE))
    assert header.split() == ["tokenizer", "vocabulary", "tokens", "bytes/token", "characters/token"]
    assert first.split() == ["byte", "257", "53", "1.00", "1.00"]
    assert second.split() == ["mine", "270", str(count), f"{53 / count:.2f}", f"{53 / count:.2f}"]


def test_inspect_never_sends_control_characters_to_the_terminal(capsys: pytest.CaptureFixture) -> None:
    for control in ("\x1b[31m", "\a", "\u202e", "\x9b2J"):
        for flags in ([], ["--ids"]):
            assert control[0] not in "".join(inspected(capsys, f"a{control}b", "--tokenizer", "byte", *flags))
    assert visible("größe 狐 [bold]".encode()) == "größe 狐 [bold]"
    assert visible(b"\xe7\x8b") == r"\xe7\x8b"


def test_tokens_differ_in_colour_or_are_separated_by_bars_and_lines_fit_the_width() -> None:
    def lines(tokens: list[bytes], colours: str | None, width: int) -> list:
        console = Console(file=io.StringIO(), force_terminal=True, color_system=colours, width=width, no_color=False)
        return token_lines(tokens, console)

    (line,) = lines([b"a", b" b", b"c"], "256", 40)
    assert line.plain == "a bc"
    assert len({str(span.style) for span in line.spans}) == 3
    for colours in ("standard", None):
        (line,) = lines([b"a", b" b", b"c"], colours, 40)
        assert line.plain in ("a│ b│c", "a| b|c")
    many = lines(["狐狸".encode(), b" fox"] * 20, None, 30)
    assert max(line.cell_len for line in many) <= 30
    assert "".join(line.plain for line in many).replace("│", "") == "狐狸 fox" * 20


def test_a_mistake_is_one_line(folder: Path) -> None:
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    for line, message in {
        "inspct": "did you mean inspect",
        "inspect x --tokenizer bite": "did you mean byte",
        "train --vocab-sise 300": "did you mean --vocab-size",
        "train --vocab-size 256": "at least 257",
        "train --vocab-size many": "many",
        "train --tokenizer gpt2": "ready-made",
        "train --tokenizer bpr": "did you mean bpe",
        "inspect x --tokens -1": "invalid --tokens: -1 (must be >= 0)",
        "inspect FILE:absent.txt --tokenizer byte": "'absent.txt': cannot be read: No such file",
        "inspect FILE:a\0b --tokenizer byte": "cannot be read: embedded null byte",
        "inspect FILE:latin.txt --tokenizer byte": "latin.txt is not UTF-8: byte 0xe9 at offset 3",
    }.items():
        with pytest.raises((ConfigError, DataError)) as raised:
            main(line.split())
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


def test_without_unicode_there_are_escapes_and_the_help_loads_no_library() -> None:
    program = "import sys, quillgpt.cli.tokenizer as t; t.main([]); print(*sys.modules)\n"
    program += "t.main(['inspect', '狐 a', '--tokenizer', 'byte'])"
    command, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONIOENCODING": "ascii"}
    *_, modules, _, tokens = (
        subprocess.check_output(command, env=environment, text=True).split("the text:")[0].split("\n")[:-2]
    )
    assert tokens == r"\xe7|\x8b|\x90| |a"
    assert not {"torch", "tiktoken", "tokenizers", "numpy", "transformers"} & set(modules.split())
