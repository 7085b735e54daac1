"""Entry `winogrande`: which of two nouns fills the blank of a sentence [Sakaguchi 2020]. The validation items.

Partial evaluation [Trinh 2018]: both nouns are put into the blank, and what is scored is the rest of the sentence
behind it, the same for both, so that a rare noun is no disadvantage. The contexts differ and cannot be shared.
"""

from collections.abc import Iterator

from quillgpt.data.download import Download
from quillgpt.errors import DataError
from quillgpt.evaluate.tasks.encode import encode_joined
from quillgpt.evaluate.tasks.multiple_choice import PLAIN, chosen
from quillgpt.evaluate.tasks.records import DataFiles, Record
from quillgpt.evaluate.tasks.task import Candidate, Item, Task

FILE = "winogrande_1.1/dev.jsonl"


def records(files: DataFiles) -> Iterator[Record]:
    """The records as published."""
    return files.records(FILE)


def item(record: Record) -> Item:
    """The sentence up to the blank with either noun, and the rest of it."""
    before, blank, rest = record.text("sentence").partition("_")
    if not blank:
        raise DataError(f"{record.where}: the field 'sentence' has no blank (_); mend or remove the line")
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
    meaning="which of two nouns fills the blank of a sentence",
    paper="Sakaguchi 2020",
    licence="CC BY",
    download=Download(
        url="https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip",
        sha256="3619ab104d8be2977b25c90ff420cb42d491707dcc75362a1e5d22bc082b7318",
        bytes=3_395_492,
    ),
    paths=(FILE,),
    items=1_267,
    records=records,
    item=item,
    encode=encode_joined,
    measure=chosen,
    metrics=PLAIN,
    published={
        "gpt2": {"accuracy": (0.5161, "model card of crumb/gpt2023")},
        "gpt2-xl": {"accuracy": (0.5940, "gpt-neo README")},
    },
    harness_name="winogrande",
)
