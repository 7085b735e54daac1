"""`quill demo`: train on Python's standard library for two minutes, judge the result honestly, read what it writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quillgpt import files
from quillgpt.cli.output import run_console
from quillgpt.cli.prepare import progress_display
from quillgpt.cli.settings import load_settings
from quillgpt.config import RunConfig, updated

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = """\
Train the recipe `modern-python` for two minutes, compare it with file compressors, and read what it writes.

With --dry-run nothing is trained or written: it shows every setting with its value, origin and meaning, and what \
follows from them."""

PROMPTS = (
    'def read(self, size):\n    """Read',
    'class Reader:\n    """',
    "def main():",
)  # no space behind: it is the next token's
SAMPLE_TOKENS = 150
DRAWN = {"temperature": 0.9, "top_p": 0.9, "top_k": 0}  # cooler, a small model repeats itself

NEXT = """\
what to do next
  more of this model        quill sample {run} -p "import" -m 300
  one that trained longer   quill sample quill-python -p "import" -m 300
  more minutes              quill train modern-python --minutes 10 --out {run}
  your own text             quill train modern-python --source text --path my_folder --out runs/mine
  OpenAI's GPT-2            quill sample gpt2 -p "Once upon a time"    (fetches 550 MB, once)
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
        from quillgpt.cli.dry_run import show

        return show(replace(settings, config=config))
    from quillgpt.train.loop import train
    from quillgpt.train.progress import Terminal

    console = run_console()
    outcome = train(config, Terminal(console, progress_display))
    console.print()
    show_comparison(console, outcome.held_out.bits_per_byte, config)
    show_samples(console, outcome.run)
    console.print(Text(NEXT.format(run=outcome.run)), soft_wrap=True)
    return 0


def unfinished_run(runs: Path) -> Path:
    """runs/demo, runs/demo-2, ...: the first that is not finished yet, so that a new demo loses nothing."""
    from quillgpt.checkpoint import STATE, committed
    from quillgpt.run_dir import RunDirectory

    number = 1
    while True:
        path = runs / ("demo" if number == 1 else f"demo-{number}")
        checkpoints = committed(RunDirectory(path))
        if not checkpoints or checkpoints[-1].step < checkpoints[-1].read_json(STATE)["steps"]:
            return path
        number += 1


def show_comparison(console: "Console", bits_per_byte: float, config: RunConfig) -> None:
    """Print the model's bits per byte among those of compressors on the same held-out text."""
    from rich.table import Table

    from quillgpt.data.directory import data_directory

    directory = data_directory(config.data, config.model.vocab_size)
    baselines = compressor_figures(directory)
    table = Table(title="the same held-out text, in bits per byte (less is better)", box=None, title_justify="left")
    table.add_column("")
    table.add_column("bits/byte", justify="right")
    table.add_column("of gzip's", justify="right")
    for name, figure in sorted({"this model": bits_per_byte, **baselines}.items(), key=lambda entry: -entry[1]):
        style = "bold green" if name == "this model" else ""
        table.add_row(name, f"{figure:.3f}", f"{figure / baselines['gzip -9']:.2f}", style=style)
    console.print(table)
    console.print(
        "gzip and xz know nothing when they begin; the model and the last xz have read the training text.\n",
        style="dim",
    )


def compressor_figures(directory: Path) -> dict[str, float]:
    """The compressors' figures for a data set, computed once and kept beside it."""
    from quillgpt.data import load_data_tokenizer
    from quillgpt.data.token_dataset import TokenDataset
    from quillgpt.evaluate.compressors import compressor_bits_per_byte, split_text

    kept = directory / "compressors.json"
    train = TokenDataset.open(directory, "train")
    if kept.is_file():
        figures = json.loads(kept.read_text())
        if figures.pop("data", "") == train.fingerprint:
            return figures
    tokenizer = load_data_tokenizer(directory)
    held_out = TokenDataset.open(directory, "val")
    figures = compressor_bits_per_byte(split_text(held_out, tokenizer), split_text(train, tokenizer))
    files.write_json(kept, {"data": train.fingerprint, **figures})
    return figures


def show_samples(console: "Console", run: Path) -> None:
    """Print what the model writes after a few beginnings."""
    from rich.text import Text

    from quillgpt.checkpoint import load_model
    from quillgpt.sample.generate import generate

    model, tokenizer = load_model(run)
    for prompt in PROMPTS:
        text = generate(model, tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS, **DRAWN, seed=1)[0]
        console.rule(f"after {prompt!r}", style="dim", align="left")
        console.print(Text(prompt, style="bold") + Text(text) + Text("\n"), soft_wrap=True)
