"""Entry `piqa`: which of two ways to reach a physical goal works [Bisk 2020]. The validation items."""

from collections.abc import Iterator

from quillgpt.data.download import Download
from quillgpt.errors import DataError
from quillgpt.evaluate.tasks.encode import encode_joined
from quillgpt.evaluate.tasks.multiple_choice import NORMALIZED, chosen_by_character
from quillgpt.evaluate.tasks.records import DataFiles, Record
from quillgpt.evaluate.tasks.task import Candidate, Item, Task

FILE = "physicaliqa-train-dev/dev.jsonl"
LABELS = "physicaliqa-train-dev/dev-labels.lst"


def records(files: DataFiles) -> Iterator[Record]:
    """The records with their labels, which stand in a file of their own, one a line."""
    found, labels = list(files.records(FILE)), files.lines(LABELS)
    if len(found) != len(labels):
        raise DataError(f"{files.directory}: {len(found):,} items in {FILE}, {len(labels):,} in {LABELS}; fetch both")
    for record, (where, label) in zip(found, labels, strict=True):
        number = Record(where=where, values={"label": label}).index("label", 2)
        yield Record(where=record.where, values=record.values | {"label": number})


def item(record: Record) -> Item:
    """The goal as a question; each solution is an answer."""
    context = f"Question: {record.text('goal')}\nAnswer:"
    solutions = [record.text("sol1"), record.text("sol2")]
    return Item(
        key=record.key,
        candidates=tuple(
            Candidate(context=context, continuation=f" {solution}", characters=len(solution)) for solution in solutions
        ),
        right=record.index("label", 2),
    )


PIQA = Task(
    name="piqa",
    meaning="which of two ways to reach a physical goal works",
    paper="Bisk 2020",
    licence="AFL 3.0",
    download=Download(
        url="https://storage.googleapis.com/ai2-mosaic/public/physicaliqa/physicaliqa-train-dev.zip",
        sha256="54d32a04f59a7e354396f321723c8d7ec35cc6b08506563d8d1ffcc15ce98ddd",
        bytes=1_824_009,
    ),
    paths=(FILE, LABELS),
    items=1_838,
    records=records,
    item=item,
    encode=encode_joined,
    measure=chosen_by_character,
    metrics=NORMALIZED,
    published={
        "gpt2": {"accuracy": (0.6289, "model card of crumb/gpt2023")},
        "gpt2-xl": {"accuracy": (0.7078, "gpt-neo README")},
    },
    harness_name="piqa",
)
