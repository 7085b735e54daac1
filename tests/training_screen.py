"""Writes docs/training-screen.svg, the screen of `quill train` in a real run: `python tests/training_screen.py`.

The recipe is modern-python with the 700 steps of a quiet two minutes; the run ends when the picture is drawn.
"""

import contextlib
import html
import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from quillgpt.cli.arguments import load_settings
from quillgpt.config import updated
from quillgpt.lab.bands import BandWatch
from quillgpt.training.loop import train
from quillgpt.training.screen import Terminal, runtime_table

PICTURE = Path(__file__).parents[1] / "docs" / "training-screen.svg"
COMMAND = "modern-python --steps 700 --eval-every 100 --eval-tokens 100000"
STEP = 190
COLUMNS = 112
NAME = Path("runs/modern-python")  # shown instead of the temporary directory


CELL_WIDTH, CELL_HEIGHT, BASELINE = 12.2, 24.4, 18.5  # of a character in rich's SVG, in pixels
BRAILLE = 0x2800
DOT_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of the left and the right column


class Drawn(Exception):
    """The picture is complete."""


class Recorder(Terminal):
    """The screen of `quill train`, drawn into a picture once."""

    def __init__(self, picture: Console) -> None:
        super().__init__(Console(file=io.StringIO()), band=BandWatch())
        self._picture = picture

    @contextlib.contextmanager
    def training(self, run: Path, *arguments: Any) -> Iterator[None]:
        """Draw the runtime."""
        self._picture.print(runtime_table(NAME, *arguments))
        with super().training(run, *arguments):
            yield

    def step(self, line: Mapping[str, Any]) -> None:
        """Draw the screen at one step."""
        super().step(line)
        if line["step"] == STEP:
            self._picture.print(self._view(line))
            raise Drawn


def with_drawn_dots(svg: str) -> str:
    """The picture with braille characters as squares, because few monospaced fonts have them."""

    def drawn(match: re.Match[str]) -> str:
        left, baseline, text = float(match["x"]), float(match["y"]), html.unescape(match["text"])
        dots = [
            f"M{left + CELL_WIDTH * (place + column / 2 + 0.12):.0f} "
            f"{baseline - BASELINE + CELL_HEIGHT * (row + 0.25) / 4:.0f}h4v4h-4z"
            for place, character in enumerate(text)
            for column, bits in enumerate(DOT_BITS)
            for row, bit in enumerate(bits)
            if BRAILLE <= ord(character) < BRAILLE + 256 and ord(character) - BRAILLE & bit
        ]
        if not dots:
            return match[0]
        plain = re.sub("[\u2800-\u28ff]", "\N{NO-BREAK SPACE}", match[0])
        return f'{plain}<path class="{match["style"]}" d="{"".join(dots)}"/>'

    pattern = r'<text class="(?P<style>[^"]+)" x="(?P<x>[^"]+)" y="(?P<y>[^"]+)"[^>]*>(?P<text>[^<]*)</text>'
    return re.sub(pattern, drawn, svg)


def main() -> None:
    """Train until the step, and write the picture."""
    config = load_settings(COMMAND.split()).config
    picture = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Drawn):
        train(updated(config, {"out": f"{folder}/run"}, where="picture"), Recorder(picture))
    svg = picture.export_svg(title="quill train modern-python")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # a picture loads nothing
    svg = with_drawn_dots(svg)
    PICTURE.write_text("\n".join(row.rstrip() for row in svg.splitlines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
