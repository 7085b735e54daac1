"""Entries `hellaswag-completion` and `hellaswag-harness`: the validation items, asked in two ways [Zellers 2019].

Both score four endings of a scene. They differ in the text before the ending, in how the ending is cut into tokens, and
in what the normalised accuracy divides by, so that the same model gets two different scores; docs/evaluation.md shows
one item in both styles.
"""

import re
from collections.abc import Iterator
from functools import partial

from quillgpt.data.download import Download
from quillgpt.evaluate.tasks.encode import encode_apart, encode_joined
from quillgpt.evaluate.tasks.multiple_choice import NORMALIZED, chosen_by_character, chosen_by_token
from quillgpt.evaluate.tasks.records import DataFiles, Record
from quillgpt.evaluate.tasks.task import Candidate, Item, Task

FILE = "hellaswag_val.jsonl"
ENDINGS = 4
REMARK = re.compile(r"\[.*?\]")  # WikiHow's [step], [substeps], ...


def records(files: DataFiles) -> Iterator[Record]:
    """The records as published."""
    return files.records(FILE)


def completion_item(record: Record) -> Item:
    """The scene as it stands in `ctx`, and each ending after a space."""
    return _item(record, record.text("ctx"), record.texts("endings"))


def harness_item(record: Record) -> Item:
    """The activity, a colon, and the scene with its second part capitalised; WikiHow's marks are taken out."""
    scene = f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
    context = cleaned(f"{record.text('activity_label')}: {scene}")
    return _item(record, context, [cleaned(ending) for ending in record.texts("endings")])


def cleaned(text: str) -> str:
    """The text without spaces around it, " [title]" as the end of a sentence, and no other [...].

    Two spaces become one, once through the text: four are two afterwards, as in lm-evaluation-harness.
    """
    return REMARK.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _item(record: Record, context: str, endings: list[str]) -> Item:
    return Item(
        key=record.key,
        candidates=tuple(
            Candidate(context=context, continuation=f" {ending}", characters=len(ending)) for ending in endings
        ),
        right=record.index("label", len(endings)),
    )


_hellaswag = partial(
    Task,
    paper="Zellers 2019",
    licence="MIT",
    download=Download(
        url="https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
        sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        bytes=12_246_618,
    ),
    paths=(FILE,),
    items=10_042,
    records=records,
    metrics=NORMALIZED,
)

HELLASWAG_COMPLETION = _hellaswag(
    name="hellaswag-completion",
    meaning="which of four endings follows a scene; raw text, mean loss per token, as build-nanogpt and llm.c",
    item=completion_item,
    encode=encode_apart,
    measure=chosen_by_token,
    published={
        "gpt2": {"accuracy": (0.2859, "build-nanogpt"), "accuracy_norm": (0.2955, "build-nanogpt")},
        "gpt2-xl": {"accuracy": (0.3842, "build-nanogpt"), "accuracy_norm": (0.4893, "build-nanogpt")},
    },
)

HELLASWAG_HARNESS = _hellaswag(
    name="hellaswag-harness",
    meaning="which of four endings follows a scene; activity label, cleaned text, as lm-evaluation-harness",
    item=harness_item,
    encode=encode_joined,
    measure=chosen_by_character,
    published={
        "gpt2": {"accuracy": (0.2892, "build-nanogpt"), "accuracy_norm": (0.3114, "build-nanogpt")},
        "gpt2-xl": {"accuracy": (0.4004, "build-nanogpt"), "accuracy_norm": (0.5089, "build-nanogpt")},
    },
    harness_name="hellaswag",
)
