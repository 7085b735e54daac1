"""`quill tokenizer train` and `quill tokenizer inspect` as a user sees them."""

import io
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


def test_train_into_a_json_file_writes_only_that_file(folder: Path) -> None:
    main(["train", "--source=text", "--vocab_size=262", "--out=mine.json"])

    assert [path.name for path in folder.iterdir()] == ["mine.json"]
    assert load_tokenizer("mine.json").vocab_size == 262


def test_train_without_out_says_where_it_saved(folder: Path, capsys: pytest.CaptureFixture) -> None:
    main(["train", "--source", "shakespeare", "--tokenizer", "character"])

    assert "saved as tokenizers/shakespeare-character/tokenizer.json" in capsys.readouterr().out
    assert load_tokenizer("tokenizers/shakespeare-character").encode(" ,") == [0, 1]


def test_train_on_the_first_documents_reads_no_more(folder: Path, capsys: pytest.CaptureFixture) -> None:
    main(["train", "--source", "text", "--vocab-size", "260", "--documents", "1"])

    assert "learned from 59 bytes of text" in capsys.readouterr().out


def test_train_does_not_replace_the_tokenizer_of_prepared_data(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "manifest.json").write_text("{}")

    with pytest.raises(ConfigError, match="belongs to prepared data or a checkpoint"):
        main(["train", "--source", "text", "--vocab-size", "260", "--out", "data"])
    assert not (folder / "data" / "tokenizer.json").exists()


def test_inspect_cuts_the_text_at_its_tokens_without_colour(capsys: pytest.CaptureFixture) -> None:
    main(["inspect", "naïve\nx", "--tokenizer", "byte"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["byte  8 tokens", r"n│a│\xc3│\xaf│v│e│\n", "x"]


def test_inspect_compares_tokenizers_in_a_table(folder: Path, capsys: pytest.CaptureFixture) -> None:
    main(["train", "--source", "text", "--vocab-size", "270", "--out", "mine"])
    capsys.readouterr()

    main(["inspect", SENTENCE, "--tokenizer", "byte", "--tokenizer", "mine"])

    count = len(load_tokenizer("mine").encode(SENTENCE))
    header, first, second = capsys.readouterr().out.splitlines()[-3:]
    assert header.split() == ["tokenizer", "vocabulary", "tokens", "bytes/token", "characters/token"]
    assert first.split() == ["byte", "257", "53", "1.00", "1.00"]
    assert second.split() == ["mine", "270", str(count), f"{53 / count:.2f}", f"{53 / count:.2f}"]


def test_inspect_lists_ids_and_bytes(capsys: pytest.CaptureFixture) -> None:
    main(["inspect", "hé", "--tokenizer", "byte", "--ids"])

    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:5]]
    assert rows == [["id", "bytes", "token"], ["104", "68", "h"], ["195", "c3", r"\xc3"], ["169", "a9", r"\xa9"]]


def test_inspect_reads_a_file_and_shows_its_beginning(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "book.txt").write_bytes(b"once\r\n" * 1000)

    main(["inspect", "FILE:book.txt", "--tokenizer", "byte", "--tokens", "6"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["byte  the first 6 of 6,000 tokens", r"o│n│c│e│\r│\n", ""]


def test_inspect_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("né".encode())))

    main(["inspect", "-", "--tokenizer", "byte"])

    assert capsys.readouterr().out.splitlines()[1] == r"n│\xc3│\xa9"


def test_inspect_of_nothing_counts_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))

    main(["inspect", "-", "--tokenizer", "byte"])

    assert capsys.readouterr().out.splitlines()[-1].split() == ["byte", "257", "0", "-", "-"]


@pytest.mark.parametrize("control", ["\x1b[31m", "\a", "\u202e", "\x9b2J"])
def test_inspect_never_sends_control_characters_to_the_terminal(control: str, capsys: pytest.CaptureFixture) -> None:
    main(["inspect", f"a{control}b", "--tokenizer", "byte", "--ids"])
    main(["inspect", f"a{control}b", "--tokenizer", "byte"])

    assert control[0] not in capsys.readouterr().out


def test_a_colour_terminal_shows_neighbours_in_different_colours() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="256", width=40, no_color=False)

    (line,) = token_lines([b"a", b" b", b"c"], console)

    assert line.plain == "a bc"
    assert len({str(span.style) for span in line.spans}) == 3


@pytest.mark.parametrize("colours", ["standard", None])
def test_a_terminal_of_few_colours_shows_bars(colours: str | None) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=colours, width=40)

    (line,) = token_lines([b"a", b" b", b"c"], console)

    assert line.plain in ("a│ b│c", "a| b|c")


def test_lines_break_between_tokens_and_fit_the_width() -> None:
    tokens = ["狐狸".encode(), b" fox"] * 20
    console = Console(file=io.StringIO(), width=30)

    lines = token_lines(tokens, console)

    assert max(line.cell_len for line in lines) <= 30
    assert "".join(line.plain for line in lines).replace("│", "") == "狐狸 fox" * 20


def test_visible_keeps_what_can_be_read() -> None:
    assert visible("größe 狐 [bold]".encode()) == "größe 狐 [bold]"
    assert visible(b"\xe7\x8b") == r"\xe7\x8b"


def test_a_file_that_is_not_utf8_names_the_place(folder: Path) -> None:
    (folder / "latin.txt").write_bytes(b"caf\xe9")

    with pytest.raises(DataError, match=r"latin.txt is not UTF-8: byte 0xe9 at offset 3"):
        main(["inspect", "FILE:latin.txt", "--tokenizer", "byte"])


WRONG = {
    "a misspelt command": (["inspct"], "did you mean inspect"),
    "a misspelt tokenizer": (["inspect", "x", "--tokenizer", "bite"], "did you mean byte"),
    "a misspelt flag": (["train", "--vocab-sise", "300"], "did you mean --vocab-size"),
    "a size too small": (["train", "--vocab-size", "256"], "at least 257"),
    "a size that is no number": (["train", "--vocab-size", "many"], "many"),
    "a tokenizer that does not learn": (["train", "--tokenizer", "gpt2"], "ready-made"),
    "an unknown tokenizer": (["train", "--tokenizer", "bpr"], "did you mean bpe"),
    "a negative number of tokens": (["inspect", "x", "--tokens", "-1"], "at least 0"),
    "a file that is not there": (["inspect", "FILE:absent.txt", "--tokenizer", "byte"], "absent.txt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line(name: str, folder: Path) -> None:
    arguments, message = WRONG[name]

    with pytest.raises((ConfigError, DataError)) as raised:
        main(arguments)

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_terminal_without_unicode_gets_escapes_and_no_crash() -> None:
    command = [sys.executable, "-m", "quillgpt", "tokenizer", "inspect", "狐 a", "--tokenizer", "byte"]

    shown = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": "ascii"}, text=True, check=True)

    assert shown.stdout.splitlines()[1] == r"\xe7|\x8b|\x90| |a"


def test_help_and_parsing_load_neither_torch_nor_a_tokenizer_library() -> None:
    program = "import sys, quillgpt.cli.tokenizer as t; t.main([]); print(*sys.modules)"

    modules = subprocess.check_output([sys.executable, "-c", program], text=True).split()

    assert not {"torch", "tiktoken", "tokenizers", "numpy", "transformers"} & set(modules)
