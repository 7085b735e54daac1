"""The parser behind every command: any words are understood, refused in one line, or answered with help."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

from quillgpt.cli import prepare, sample, tokenizer
from quillgpt.cli.arguments import flag, parse, setting_types
from quillgpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A group."""

    size: int = 3
    """how many"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every kind."""

    word: Annotated[tyro.conf.Positional[str], flag("a word")] = ""
    names: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], flag("some names")] = ()
    prompt: Annotated[str, flag("a text", "-p")] = ""
    is_loud: Annotated[bool, flag("louder")] = False
    rate: float = 0.5
    """how fast"""
    inner: Inner = Inner()


def parsed(*words: str) -> Options:
    return parse(Options, list(words), prog="quill test")[0]


def test_every_kind_of_setting_is_found_with_its_type() -> None:
    types = setting_types(Options)
    assert list(types) == ["word", "names", "prompt", "is_loud", "rate", "size"]
    assert (types["is_loud"], types["rate"], types["size"]) == (bool, float, int)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Options()),
        (["hello"], Options(word="hello")),
        (["--is-loud", "hello"], Options(word="hello", is_loud=True)),
        (["hello", "--is_loud"], Options(word="hello", is_loud=True)),
        (["--is-loud", "no", "hello"], Options(word="hello", is_loud=False)),
        (["--names", "a", "--names=b"], Options(names=("a", "b"))),
        (["-p", "a text"], Options(prompt="a text")),
        (["--prompt=--odd"], Options(prompt="--odd")),
        (["--prompt", "-"], Options(prompt="-")),
        (["--prompt", "-5"], Options(prompt="-5")),
        (["--prompt", ""], Options(prompt="")),
        (["--size", "-4", "--rate=-1e-3"], Options(rate=-1e-3, inner=Inner(size=-4))),
        (["--size", " 4 "], Options(inner=Inner(size=4))),
    ],
)
def test_words_become_options(words: list[str], expected: Options) -> None:
    assert parsed(*words) == expected


@pytest.mark.parametrize(
    "words", [["--size"], ["--size", "x"], ["--sizes", "3"], ["a", "b"], ["-q"], ["-p"], ["--rate="]]
)
def test_a_mistake_is_one_line(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(*words)
    assert str(caught.value).isprintable()


def test_help_is_printed_and_exits_0(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert not caught.value.code
    assert "how many" in capsys.readouterr().out


def test_the_default_knows_which_settings_the_flags_give() -> None:
    def default(given: Iterable[str]) -> Options:
        return Options(word=",".join(given))

    assert parse(Options, ["--rate", "1", "--size=2"], prog="quill", default=default)[0].word == "rate,size"


SCHEMAS = [Options, prepare.PrepareOptions, tokenizer.TrainOptions, tokenizer.InspectOptions, sample.SampleOptions]
VALUES = [
    "",
    "-",
    "--",
    "---",
    "-1",
    "0",
    "3",
    "1e999",
    "nan",
    "x",
    "é\0",
    "true",
    "no",
    "-p",
    "-m",
    "=",
    "--help",
    "\n",
]


def outcome(schema: type, words: list[str]) -> str | int | None:
    try:
        parse(schema, words, prog="quill test")
    except ConfigError as error:
        return str(error)
    except SystemExit as stop:
        return stop.code or 0
    return None


@pytest.mark.parametrize("schema", SCHEMAS)
def test_any_words_are_understood_refused_or_answered_with_help(schema: type) -> None:
    dice = random.Random(1)
    flags = [f"--{name}" for name in setting_types(schema)]
    flags += [f"--no-{name[2:]}" for name in flags] + [f"{name.replace('_', '-')}=" for name in flags]
    lines = [dice.choices(flags + VALUES * 2, k=dice.randint(1, 6)) for _ in range(300)]
    lines += [[name + value] for name in flags for value in VALUES]
    outcomes = [outcome(schema, line) for line in lines]
    assert {kind for kind in outcomes if not isinstance(kind, str)} == {None, 0}
    assert all(0 < len(message) < 1000 for message in outcomes if isinstance(message, str))
