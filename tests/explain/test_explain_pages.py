"""What `quill explain` shows: every line of gpt2.py once, and values computed by running it."""

import dataclasses
import io
import math
import random
import re
from collections import Counter

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from quillgpt.explain import gpt2
from quillgpt.explain.drawing import Bar, Curve, HeatMap, tensor_line, visible
from quillgpt.explain.page import FILE, HEADING, VALUES_WIDTH, code_width, print_section, read_sections
from quillgpt.explain.run import run, validation_losses
from quillgpt.explain.values import CONFIG, SENTENCES, TinyRun

SOURCE = FILE.read_text(encoding="utf-8")
SECTIONS = {section.name: section for section in read_sections()}
CODE = {
    number: line
    for section in SECTIONS.values()
    for piece in section.pieces
    for number, line in enumerate(piece.code.splitlines(), start=piece.first_line)
}
WIDE, NARROW = code_width() + VALUES_WIDTH + 2, 80


@pytest.fixture(scope="module")
def tiny() -> TinyRun:
    return TinyRun()


def drawn(what, *, width: int = 60, colour: str | None = None, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, force_terminal=colour is not None, color_system=colour).print(what)
    file.seek(0)
    return file.read()


def printed(section, tiny: TinyRun, *, width: int, is_terminal: bool, encoding: str = "utf-8") -> str:
    """The page of a section as text."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=is_terminal, color_system=None, highlight=False)
    print_section(console, section, tiny.values)
    file.seek(0)
    return file.read()


def test_the_sections_are_the_entire_file() -> None:
    assert [section.number for section in SECTIONS.values()] == list(range(8))
    assert list(SECTIONS) == ["start", "settings", "text", "weights", "model", "training", "sampling", "run"]
    assert sum(len(piece.code.splitlines()) for section in SECTIONS.values() for piece in section.pieces) == len(CODE)
    prose = [section.prose for section in SECTIONS.values()]
    for number, line in enumerate(SOURCE.splitlines(), start=1):
        if number in CODE:
            assert CODE[number] == line
        else:
            assert not line or HEADING.fullmatch(line) or any(line.removeprefix("# ") in text for text in prose)
    added = read_sections(SOURCE + "\n\n# 8. More: of it\n# Why.\n\n\ndef more():\n    return 1\n")[-1]
    assert (added.name, added.prose, added.pieces[0].name) == ("more", "Why.", "more")


@pytest.mark.parametrize(("width", "is_terminal"), [(WIDE, True), (WIDE, False), (NARROW, False), (40, False)])
def test_the_pages_have_every_code_line_once(width: int, is_terminal: bool, tiny: TinyRun) -> None:
    shown: Counter[int] = Counter()
    for section in SECTIONS.values():
        page = printed(section, tiny, width=width, is_terminal=is_terminal)
        for line in page.splitlines():
            found = re.fullmatch(r" *(\d+) ?(.*)", line[: code_width()].rstrip() if is_terminal else line)
            if found and CODE.get(int(found[1])) == found[2]:
                shown[int(found[1])] += 1
        assert section.title in page
        assert "…" not in page
        assert " ".join(page.split()).count(section.prose) == 1 or not section.prose
    assert shown == dict.fromkeys(CODE, 1)


def test_a_narrow_terminal_breaks_lines_and_loses_nothing(tiny: TinyRun) -> None:
    page = printed(SECTIONS["model"], tiny, width=NARROW, is_terminal=True)
    assert max(map(len, page.splitlines())) <= NARROW
    without_space = "".join(page.split())
    for piece in SECTIONS["model"].pieces:
        for line in piece.code.splitlines():
            assert "".join(line.split()) in without_space


def test_values_are_next_to_the_code_or_below_it_in_every_encoding(tiny: TinyRun) -> None:
    side_by_side = printed(SECTIONS["model"], tiny, width=WIDE, is_terminal=True)
    stacked = printed(SECTIONS["model"], tiny, width=WIDE - 1, is_terminal=True)
    assert re.search(r"def attention_weights\(.*Tensor: +query +\(1, 2, 8, 16\)", side_by_side)
    assert re.search(r"^ +│ query +\(1, 2, 8, 16\)", stacked, re.MULTILINE)
    for section in SECTIONS.values():
        page = printed(section, tiny, width=NARROW, is_terminal=False, encoding="ascii")
        assert ("      | " in page) == any(piece.name for piece in section.pieces)


def test_every_function_has_values_and_none_are_cut_off(tiny: TinyRun) -> None:
    for name in [piece.name for section in SECTIONS.values() for piece in section.pieces]:
        narrow, wide = (
            ["".join(drawn(x, width=width).split()) for x in tiny.values(name)] for width in (VALUES_WIDTH, 200)
        )
        assert narrow == wide, name
        assert bool(wide) == bool(name), name
    names = {f"_show_{piece.name.lower()}" for section in SECTIONS.values() for piece in section.pieces if piece.name}
    assert {name for name in dir(TinyRun) if name.startswith("_show_")} == names


def test_the_values_come_from_the_functions_of_the_file(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(tiny.calls["attention_weights"]) == CONFIG.n_layer
    assert gpt2.attention_weights.__module__ == gpt2.__name__, "recording leaves the file as it was"
    assert gpt2.attention_weights.__name__ == "attention_weights"
    monkeypatch.setattr(gpt2, "gelu", lambda x: x + 7)
    monkeypatch.setattr(gpt2, "learning_rate", lambda step, config: 0.125)
    assert "gelu   4.00" in printed(SECTIONS["model"], tiny, width=NARROW, is_terminal=False)
    assert "0.1250" in printed(SECTIONS["training"], tiny, width=NARROW, is_terminal=False)


def test_the_tiny_run_learns_and_repeats_exactly_and_leaves_random_numbers_alone(tiny: TinyRun) -> None:
    torch.rand(3)
    before = torch.get_rng_state()
    weights, losses = TinyRun().training
    assert torch.equal(torch.get_rng_state(), before)
    assert losses == tiny.training[1]
    assert losses[-1] < 0.1 * losses[0]
    p = gpt2.softmax(gpt2.gpt(tiny.inputs, weights, CONFIG)[0, -1])
    assert tiny.visible_tokens([int(p.argmax())]) == ["l"], "after 'the dog sat on the '"


def test_drawings_follow_their_values() -> None:
    assert drawn(Bar(0.5)).strip() == "█" * 10
    assert drawn(Bar(0.5), encoding="ascii").strip() == "#" * 10
    assert drawn(Bar(0.5, width=4)).strip() == "██"
    assert drawn(Bar(0.0)).strip() == ""
    assert drawn(Bar(0.001)).strip() == "▏"
    assert drawn(Curve([0.0, 0.5, 1.0])).strip() == "▁▅█"
    heat = HeatMap(["a"], [torch.tensor([[1.0, float("nan")], [0.0, 0.6]])], ["x", "y"])
    assert [line.rstrip() for line in drawn(heat).splitlines()] == ["  a", "x ██", "y ░░▓▓"]
    assert "\x1b[48;2;255;150;40m" in drawn(heat, colour="truecolor")
    assert drawn(heat, encoding="ascii").isascii()
    assert tensor_line("x", torch.arange(5.0).view(1, 5)).plain == "x        (1, 5)        0.00 1.00 2.00 ..."
    assert visible("a b\n\x1b") == "a_b\\n\\x1b"


def test_the_validation_losses_are_those_of_their_formulas() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, vocab_size=11, context_length=5)
    weights = gpt2.initial_weights(config)
    train, val = torch.randint(11, (200,)), torch.randint(11, (38,))
    losses = validation_losses(train, val, weights, config)
    targets = val[1:36]  # seven windows of five
    counts = Counter(train.tolist())
    by_frequency = [-math.log((counts[token] + 1) / (200 + 11)) for token in targets.tolist()]
    logits = torch.cat([gpt2.gpt(val[None, start : start + 5], weights, config)[0] for start in range(0, 35, 5)])
    model_loss = cross_entropy(logits, targets).item()
    assert list(losses.values()) == pytest.approx([math.log(11), sum(by_frequency) / 35, model_loss], rel=1e-6)


def test_a_run_learns_more_than_frequencies_and_continues_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(random.Random(3).choices(SENTENCES, k=400))
    merged_from = []
    original = gpt2.learn_merges
    monkeypatch.setattr(gpt2, "learn_merges", lambda text, count: merged_from.append(text) or original(text, count))
    torch.manual_seed(0)

    lines = "\n".join(run(text, CONFIG)).splitlines()

    start = next(number for number, line in enumerate(lines) if line.startswith("validation text")) + 1
    rows = {line[:24].strip(): [float(word) for word in line[24:].split()] for line in lines[start : start + 3]}
    assert rows["this model"][0] < 0.3 * rows["token frequencies"][0] < 0.3 * rows["uniform guess"][0]
    for nats, bits_per_byte in rows.values():
        assert bits_per_byte < nats / math.log(2), "a token is more than a byte"
    assert set(" ".join(lines[lines.index("the model continues") + 1 :])) <= set(text)
    assert merged_from == [text[: len(text) * 9 // 10]], "merges are not learned from validation text"
    with pytest.raises(ValueError, match=r"a part has \d+ tokens \(must be >= 17\)"):
        next(run("ab" * 3000, CONFIG))
