"""The figures alone, as PNG files for a paper or a slide."""

from pathlib import Path

from quillgpt import files
from quillgpt.report.contents import Contents
from quillgpt.report.drawing import png


def write_figures(contents: Contents, directory: Path) -> list[Path]:
    """Write every figure as KEY.png; each replaces an older one at once. Return the files."""
    written = []
    for plot in [*contents.figures, *contents.score_figures, *contents.statistics]:
        path = directory / f"{plot.key}.png"
        with files.atomic_file(path) as file:
            file.write(png(plot))
        written.append(path)
    return written
