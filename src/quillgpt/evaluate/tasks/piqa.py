"""Entry `piqa`: which of two ways to reach a physical goal works [Bisk 2020]. The validation items."""

from collections.abc import Iterator

from quillgpt.data.sources.download import Download
from quillgpt.errors import DataError
from quillgpt.evaluate.tasks.task import (
    NORMALIZED,
    DataFiles,
    Item,
    Record,
    Task,
    accuracy_by_character,
    encode_joined,
    multiple_choice,
)

FILE = "physicaliqa-train-dev/dev.jsonl"
LABELS = "physicaliqa-train-dev/dev-labels.lst"


def records(files: DataFiles) -> Iterator[Record]:
    """Yield the records with their labels, which are in another file, one a line."""
    found, labels = list(files.records(FILE)), list(files.lines(LABELS))
    if len(found) != len(labels):
        raise DataError(f"{files.directory}: {len(found):,} items in {FILE}, {len(labels):,} in {LABELS}; fetch both")
    for record, (where, label) in zip(found, labels, strict=True):
        number = Record(where=where, values={"label": label.decode(errors="replace").strip()}).index("label", 2)
        yield Record(where=record.where, values=record.values | {"label": number})


def item(record: Record) -> Item:
    """Return the goal as a question, with the solutions as answers."""
    context = f"Question: {record.text('goal')}\nAnswer:"
    return multiple_choice(record, context, [record.text("sol1"), record.text("sol2")], record.index("label", 2))


PIQA = Task(
    name="piqa",
    title="PIQA",
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
    item=item,
    encode=encode_joined,
    metrics=NORMALIZED,
    measure=accuracy_by_character,
    published={
        "gpt2": {"accuracy": (0.6289, "model card of crumb/gpt2023")},
        "gpt2-xl": {"accuracy": (0.7078, "gpt-neo README")},
    },
    harness_name="piqa",
    records=records,
)
