"""Entry `winogrande`: which of two nouns fills the blank of a sentence [Sakaguchi 2020]. The validation items.

Partial evaluation [Trinh 2018]: each noun is put into the blank, and the rest of the sentence after it is scored, the
same text for both, so that a rare noun is not at a disadvantage. The contexts differ and cannot be shared.
"""

from quillgpt.data.sources.download import Download
from quillgpt.errors import DataError
from quillgpt.evaluate.tasks.task import PLAIN, Candidate, Item, Record, Task, accuracy, encode_joined


def item(record: Record) -> Item:
    """Return the sentence up to the blank with each noun as context, and its rest as the continuation."""
    before, blank, rest = record.text("sentence").partition("_")
    if not blank:
        raise DataError(f"{record.where}: the field 'sentence' has no blank (_); fix or remove the line")
    rest = rest.strip()
    return Item(
        key=record.key,
        candidates=tuple(
            Candidate(context=before + record.text(option), continuation=f" {rest}", characters=len(rest))
            for option in ("option1", "option2")
        ),
        right=record.index("answer", 2, first=1),
    )


WINOGRANDE = Task(
    name="winogrande",
    title="WinoGrande",
    meaning="which of two nouns fills the blank of a sentence",
    paper="Sakaguchi 2020",
    licence="CC BY",
    download=Download(
        url="https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip",
        sha256="3619ab104d8be2977b25c90ff420cb42d491707dcc75362a1e5d22bc082b7318",
        bytes=3_395_492,
    ),
    paths=("winogrande_1.1/dev.jsonl",),
    items=1_267,
    item=item,
    encode=encode_joined,
    metrics=PLAIN,
    measure=accuracy,
    published={
        "gpt2": {"accuracy": (0.5161, "model card of crumb/gpt2023")},
        "gpt2-xl": {"accuracy": (0.5940, "gpt-neo README")},
    },
    harness_name="winogrande",
)
