"""Writes docs/reproduce.md from recipes and published speeds: `python tests/reproduce_page.py`. A test compares it."""

from dataclasses import dataclass
from pathlib import Path

from quillgpt.evaluate.loss import PUBLISHED_LOSSES
from quillgpt.model.sizes import SIZES, flops_per_token
from quillgpt.recipes import recipe_config

PAGE = Path(__file__).parents[1] / "docs" / "reproduce.md"

PEAK = {"A100": 312e12, "H100": 989e12}
"""dense bf16, from the maker's data sheets"""
NODE_PRICE = {"A100": 200 / 13.7, "H100": 672 / 24}
"""dollars per hour for eight cards, from the runs below whose cost is published"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A published run: its size, eight cards of a kind, tokens per second, and the reported result."""

    who: str
    size: str
    card: str
    rate: float
    tokens: float
    result: str

    @property
    def mfu(self) -> float:
        """The share of the cards' peak, by our formula."""
        return self.rate * flops_per_token(SIZES[self.size]) / (8 * PEAK[self.card])


RUNS = {
    "nanogpt": Run(
        who="nanoGPT (README)",
        size="gpt2",
        card="A100",
        rate=600_000 * 491_520 / (4 * 86_400),
        tokens=600_000 * 491_520,
        result="loss about 2.85 on OpenWebText; about 4 days",
    ),
    "fraserlove": Run(
        who="fraserlove/gpt (README)",
        size="gpt2",
        card="A100",
        rate=10e9 / (3.5 * 3600),
        tokens=45e9,
        result="GPT-2's HellaSwag passed after 5 billion tokens, GPT-3 125M's (33.7 %) after 38; not compiled",
    ),
    "llmc-124m-a100": Run(
        who="llm.c (scripts)",
        size="gpt2",
        card="A100",
        rate=524_288 / 0.300,
        tokens=18_865 * 524_288,
        result="HellaSwag 29.9 %; 94 min, about $20",
    ),
    "llmc-124m-h100": Run(
        who="llm.c (in modded-nanogpt)",
        size="gpt2",
        card="H100",
        rate=524_288 / 0.140,
        tokens=19_560 * 524_288,
        result="loss 3.2722 on FineWeb; 45 min",
    ),
    "llmc-350m": Run(
        who="llm.c (scripts)",
        size="gpt2-medium",
        card="A100",
        rate=31.5e9 / (13.7 * 3600),
        tokens=31.5e9,
        result="13.7 h, about $200",
    ),
    "llmc-774m": Run(
        who="llm.c (dev/eval)",
        size="gpt2-large",
        card="A100",
        rate=150e9 / (5.6 * 86_400),
        tokens=150e9,
        result="HellaSwag, 10 examples shown, 57.81 %; 5.6 days, about $2,000; the card is guessed from the price",
    ),
    "llmc-1558m": Run(
        who="llm.c (scripts)",
        size="gpt2-xl",
        card="H100",
        rate=1_048_576 / 2.80,
        tokens=32e9,
        result="24 h, about $672",
    ),
}

RECIPES = {
    "gpt2-124m": ("nanogpt", "llmc-124m-h100"),
    "gpt2-350m": ("llmc-350m", "llmc-1558m"),
    "gpt2-774m": ("llmc-774m", "llmc-1558m"),
    "gpt2-1558m": ("llmc-774m", "llmc-1558m"),
    "fineweb-edu-124m": ("nanogpt", "llmc-124m-h100"),
    "fineweb-edu-124m-3x": ("nanogpt", "llmc-124m-h100"),
    "modern-124m": ("nanogpt", "llmc-124m-h100"),
}
"""recipe -> the runs whose MFU is assumed for A100 and H100"""

HELLASWAG = {"gpt2": 0.2945, "gpt2-medium": 0.3752, "gpt2-large": 0.4320, "gpt2-xl": 0.4889}
"""acc_norm in completion style, 0 examples shown (build-nanogpt, play.ipynb)"""

PLATEAU = {
    "2.85 on OpenWebText": ("gpt2-124m", 295e9, "nanogpt"),
    "GPT-2's HellaSwag after 5 billion tokens of FineWeb-Edu": ("fineweb-edu-124m-3x", 5e9, "fraserlove"),
}
"""the two headlines: recipe, tokens, and the run it was published of"""


def recipe_tokens(recipe: str) -> int:
    """Tokens of all its steps."""
    train = recipe_config(recipe).train
    return train.steps * train.batch_tokens


def hours(recipe: str, run: str, *, cards: int = 8, tokens: float = 0.0) -> float:
    """Hours on N cards of a published run, at its MFU; that of one card is assumed to be equal."""
    operations = (tokens or recipe_tokens(recipe)) * flops_per_token(recipe_config(recipe).model)
    return operations / (cards * PEAK[RUNS[run].card] * RUNS[run].mfu) / 3600


def dollars(recipe: str, run: str) -> float:
    """Cost of those hours on a node of eight."""
    return hours(recipe, run) * NODE_PRICE[RUNS[run].card]


def time_of(value: float) -> str:
    """Hours in words: minutes below two hours, days from two days on."""
    return f"{60 * value:.0f} min" if value < 2 else (f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} days")


def page() -> str:
    """The entire page."""
    published = [
        (
            run.who,
            run.size,
            f"8 {run.card}",
            f"{run.tokens / 1e9:.1f}",
            f"{run.rate / 1e3:,.0f}",
            f"{run.mfu:.0%}",
            run.result,
        )
        for run in RUNS.values()
    ]
    ours = []
    for recipe, (on_a100, on_h100) in RECIPES.items():
        tokens, operations = recipe_tokens(recipe), flops_per_token(recipe_config(recipe).model)
        ours.append(
            (
                f"`{recipe}`",
                f"{tokens / 1e9:.1f}",
                f"{operations / 1e9:.2f}",
                f"{time_of(hours(recipe, on_a100))}, ${dollars(recipe, on_a100):,.0f}",
                f"{time_of(hours(recipe, on_h100))}, ${dollars(recipe, on_h100):,.0f}",
                time_of(hours(recipe, on_h100, cards=1)),
                f"{RUNS[on_a100].mfu:.0%}, {RUNS[on_h100].mfu:.0%}",
            )
        )
    theirs = [
        (name, f"{PUBLISHED_LOSSES[name]['val']}", f"{HELLASWAG[name]:.2%}", f"{flops_per_token(shape) / 1e9:.2f}")
        for name, shape in SIZES.items()
    ]
    headlines = [
        (
            what,
            f"`quill train {recipe}`",
            f"{tokens / 1e9:g} billion",
            RUNS[run].who,
            time_of(hours(recipe, run, tokens=tokens)),
            time_of(hours(recipe, "llmc-124m-h100", tokens=tokens)),
            time_of(hours(recipe, "llmc-124m-h100", tokens=tokens, cards=1)),
        )
        for what, (recipe, tokens, run) in PLATEAU.items()
    ]
    return TEXT.format(
        hellaswag=f"{HELLASWAG['gpt2']:.2%}",
        published=_table(("run", "size", "cards", "billion tokens", "thousand tokens/s", "MFU", "reported"), published),
        ours=_table(
            (
                *("recipe", "billion tokens", "GFLOP a token", "8 A100", "8 H100", "1 H100"),
                "MFU taken: A100, H100",
            ),
            ours,
        ),
        theirs=_table(("OpenAI's", "validation loss, OpenWebText", "HellaSwag", "GFLOP a token"), theirs),
        headlines=_table(
            ("headline", "command", "tokens", "published by", "8 A100, as published", "8 H100", "1 H100"), headlines
        ),
    )


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [heading, tuple("---" for _ in heading), *rows])


TEXT = """\
# From 124 million to 1.5 billion: time and cost

*This page is written by `python tests/reproduce_page.py`; a test compares it with the recipes and the formula.*

**None of this was run here.** It is arithmetic on published runs:

    hours = tokens * operations per token / (cards * peak of a card * MFU)

with 6 N + 12 L C T operations per token, N without lookup tables (`src/quillgpt/model/sizes.py`), dense bf16 peaks of
312 and 989 TFLOP/s, and the share of the peak (MFU) that was reached with a model of that shape. Before a long run,
measure your own with `quill bench train gpt2-124m`.

## Published runs

{published}
Rates are of entire runs, from tokens and time, or from the time of a step. llm.c is CUDA written for these shapes;
nanoGPT's figure is of PyTorch in early 2023. This code should be between them; that was not measured either.

## Two results to reproduce

{headlines}
Watch the second with `--eval-every 500 --eval-tasks hellaswag`: GPT-2's own accuracy is {hellaswag}. There it was
reached within a schedule of 45 billion tokens, 4.5 epochs; the recipe has one epoch of 10 billion. OpenAI's model
itself has 3.12 on OpenWebText, and about 2.85 after fine-tuning on it (nanoGPT README), which is what the first
compares with. Users of nanoGPT reported 2.90 to 2.95 as well.

## Our recipes

{ours}
Dollars are for a node of eight at $14.60 (A100) and $28.00 (H100) an hour, which is what the runs above paid. A size
without a published run on a card takes the MFU of the nearest size that has one. Published losses are, for
`gpt2-124m`, about 2.85 on OpenWebText; for `fineweb-edu-124m`, GPT-2's HellaSwag within one epoch, about an hour on 8
A100 (build-nanogpt; an independent repetition in 2026 paid $61 and stayed at 27.0 %); for `modern-124m`, 3.2787 on
FineWeb in 503 s on 8 H100 [Jordan 2024b, track 3], by other kernels than ours. For the larger three at this length
nothing is published. 295 billion tokens follow nanoGPT; 20 tokens per parameter are 7, 15 and 31 billion (`--steps`).

## OpenAI's models

{theirs}
HellaSwag in completion style, without examples, as `quill eval --tasks hellaswag` scores it; the loss with windows of
1,024 (nanoGPT README). GPT-3's models of about these sizes: 33.7, 43.6, 51.0 and 54.7 %.
"""
if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
