"""Entries `hellaswag-completion` and `hellaswag-harness`: the validation items in two styles [Zellers 2019].

Both score four endings of a scene. They differ in the text before the ending, in how the ending is cut into tokens, and
in what the normalized accuracy divides by, so that one model gets two different scores; docs/evaluation.md shows one
item in both styles.
"""

import re
from functools import partial

from quillgpt.data.sources.download import Download
from quillgpt.evaluate.tasks.task import (
    NORMALIZED,
    Item,
    Record,
    Task,
    accuracy_by_character,
    accuracy_by_token,
    encode_joined,
    encode_separately,
    multiple_choice,
)

MARK = re.compile(r"\[.*?\]")  # WikiHow's [step], [substeps], ...


def completion_item(record: Record) -> Item:
    """Return the scene as it is in `ctx`, with its endings."""
    return _item(record, record.text("ctx"), record.texts("endings"))


def harness_item(record: Record) -> Item:
    """Return the activity, a colon, and the scene with its second part capitalised; WikiHow's marks are removed."""
    scene = f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
    context = cleaned(f"{record.text('activity_label')}: {scene}")
    return _item(record, context, [cleaned(ending) for ending in record.texts("endings")])


def cleaned(text: str) -> str:
    """Return the text stripped, with " [title]" as the end of a sentence, and without any other [...].

    Two spaces become one, in a single pass: four become two, as in lm-evaluation-harness.
    """
    return MARK.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _item(record: Record, context: str, endings: list[str]) -> Item:
    return multiple_choice(record, context, endings, record.index("label", len(endings)))


_hellaswag = partial(
    Task,
    paper="Zellers 2019",
    licence="MIT",
    download=Download(
        url="https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
        sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        bytes=12_246_618,
    ),
    paths=("hellaswag_val.jsonl",),
    items=10_042,
    metrics=NORMALIZED,
)

HELLASWAG_COMPLETION = _hellaswag(
    name="hellaswag-completion",
    title="HellaSwag in completion style",
    meaning="which of four endings follows a scene; raw text, mean loss per token, as build-nanogpt and llm.c",
    item=completion_item,
    encode=encode_separately,
    measure=accuracy_by_token,
    published={
        "gpt2": {"accuracy": (0.2859, "build-nanogpt"), "accuracy_norm": (0.2955, "build-nanogpt")},
        "gpt2-xl": {"accuracy": (0.3842, "build-nanogpt"), "accuracy_norm": (0.4893, "build-nanogpt")},
    },
)

HELLASWAG_HARNESS = _hellaswag(
    name="hellaswag-harness",
    title="HellaSwag in harness style",
    meaning="which of four endings follows a scene; activity label, cleaned text, as lm-evaluation-harness",
    item=harness_item,
    encode=encode_joined,
    measure=accuracy_by_character,
    published={
        "gpt2": {"accuracy": (0.2892, "build-nanogpt"), "accuracy_norm": (0.3114, "build-nanogpt")},
        "gpt2-xl": {"accuracy": (0.4004, "build-nanogpt"), "accuracy_norm": (0.5089, "build-nanogpt")},
    },
    harness_name="hellaswag",
)
