"""`quill demo`: train on Python's standard library for two minutes, compare with compressors, and print samples."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quillgpt import files
from quillgpt.cli.arguments import load_settings
from quillgpt.cli.console import messages, plain_table, progress_display, run_console
from quillgpt.cli.train import show_plan
from quillgpt.config import RunConfig, updated
from quillgpt.run_dir import RunDirectory

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = """\
Train the recipe `modern-python` for two minutes, compare it with file compressors, and read what it writes.

With --dry-run nothing is trained or written: it shows every setting with its value, origin and meaning, and what is \
derived from them."""

PROMPTS = ('def read(self, size):\n    """Read', 'class Reader:\n    """', "def main():")
"""no space at the end, because it belongs to the next token"""
MODEL = "this model"
SAMPLE_TOKENS = 150
SAMPLING = {"temperature": 0.9, "top_p": 0.9, "top_k": 0}  # at lower temperatures a small model repeats itself

NEXT = """\
what to do next
  more of this model        quill sample {run} -p "import" -m 300
  one that trained longer   quill sample quill-python -p "import" -m 300
  more minutes              quill train modern-python --minutes 10 --out {run}
  your own text             quill train modern-python --source text --path my_folder --out runs/mine
  OpenAI's GPT-2            quill sample gpt2 -p "Once upon a time"    (downloads 550 MB once)
  GPT-2 from scratch        quill train gpt2-124m --dry-run
  every setting explained   quill train modern-python --dry-run
  the tests                 make test"""


def main(arguments: list[str]) -> int:
    """Train the recipe `modern-python` (flags change it), compare with file compressors, print samples."""
    from rich.text import Text

    settings = load_settings(["modern-python", *arguments], prog="quill demo", description=DESCRIPTION)
    config = settings.config
    if not settings.origins["out"].startswith("flag"):
        config = updated(config, {"out": str(unfinished_run(Path("runs")))}, where="--out")
    if settings.is_dry_run:
        show_plan(replace(settings, config=config))
        return 0
    from quillgpt.training.loop import train
    from quillgpt.training.screen import Terminal

    console = run_console()
    with messages(console):
        outcome = train(config, Terminal(console, progress_display))
    console.print()
    show_comparison(console, outcome.validation.bits_per_byte, config)
    show_samples(console, outcome.run)
    console.print(Text(NEXT.format(run=outcome.run)), soft_wrap=True)
    return 0


def unfinished_run(runs: Path) -> Path:
    """Return the first of runs/demo, runs/demo-2, ... that is not finished."""
    from quillgpt.checkpoint import RUNTIME, committed

    def is_finished(path: Path) -> bool:
        checkpoints = committed(RunDirectory(path))
        return bool(checkpoints) and checkpoints[-1].step >= checkpoints[-1].read_json(RUNTIME)["steps"]

    names = ("demo" if number == 1 else f"demo-{number}" for number in itertools.count(1))
    return next(path for path in map(runs.joinpath, names) if not is_finished(path))


def show_comparison(console: "Console", bits_per_byte: float, config: RunConfig) -> None:
    """Print the bits per byte of the model and of compressors on the same validation text."""
    from quillgpt.data.prepare import data_directory

    figures = compressor_figures(data_directory(config.data, config.model.vocab_size)) | {MODEL: bits_per_byte}
    title = "the same validation text, in bits per byte (less is better)"
    table = plain_table("", "bits/byte", "of gzip's", left=[0], title=title)
    for name, figure in sorted(figures.items(), key=lambda entry: -entry[1]):
        style = "bold green" if name == MODEL else ""
        table.add_row(name, f"{figure:.3f}", f"{figure / figures['gzip -9']:.2f}", style=style)
    console.print(table)
    note = "gzip and xz start without knowledge; the model and the last xz have read the training text.\n"
    console.print(note, style="dim")


def compressor_figures(directory: Path) -> dict[str, float]:
    """Return the compressors' bits per byte on a data set, computed once and stored in its directory."""
    from quillgpt.data import load_data_tokenizer
    from quillgpt.data.dataset import TokenDataset
    from quillgpt.evaluate.text import compressor_bits_per_byte, split_text

    path = directory / "compressors.json"
    train = TokenDataset.open(directory, "train")
    if path.is_file():
        figures = json.loads(path.read_text())
        if figures.pop("data", "") == train.fingerprint:
            return figures
    tokenizer = load_data_tokenizer(directory)
    val = TokenDataset.open(directory, "val")
    figures = compressor_bits_per_byte(split_text(val, tokenizer), split_text(train, tokenizer))
    files.write_json(path, {"data": train.fingerprint, **figures})
    return figures


def show_samples(console: "Console", run: Path) -> None:
    """Print what the model writes after a few prompts."""
    from rich.text import Text

    from quillgpt.checkpoint import load_model
    from quillgpt.sample.engine import generate

    model, tokenizer = load_model(run)
    for prompt in PROMPTS:
        text = generate(model, tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS, **SAMPLING, seed=1)[0]
        console.rule(f"after {prompt!r}", style="dim", align="left")
        console.print(Text(prompt, style="bold") + Text(text) + Text("\n"), soft_wrap=True)
