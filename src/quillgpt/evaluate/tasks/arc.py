"""Entries `arc-easy` and `arc-challenge`: science questions from school exams [Clark 2018]. The test items.

The archive also has 14 million sentences of science text, which are not used: 681 MB are fetched for one.
"""

from collections.abc import Iterator
from functools import partial

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

EASY = "ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl"
CHALLENGE = "ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Test.jsonl"


def records(files: DataFiles, path: str) -> Iterator[Record]:
    """Yield the records of a part, with question, choices and labels as separate fields, as on the hub."""
    for record in files.records(path):
        question = record.record("question")
        choices = question.records("choices")
        yield Record(
            where=record.where,
            values={
                "id": record.text("id"),
                "question": question.text("stem"),
                "choices": {name: [choice.text(name) for choice in choices] for name in ("text", "label")},
                "answerKey": record.text("answerKey"),
            },
        )


def item(record: Record) -> Item:
    """Return the question with three to five answers, without their letters."""
    context = f"Question: {record.text('question')}\nAnswer:"
    choices, key = record.record("choices"), record.text("answerKey")
    labels = choices.texts("label")
    if key not in labels:
        raise DataError(f"{record.where}: the field 'answerKey' is {key!r}, expected one of {', '.join(labels)}")
    return multiple_choice(record, context, choices.texts("text"), labels.index(key))


_arc = partial(
    Task,
    paper="Clark 2018",
    licence="CC BY-SA 4.0",
    download=Download(
        url="https://s3-us-west-2.amazonaws.com/ai2-website/data/ARC-V1-Feb2018.zip",
        sha256="6d2d5ab50b2ceec6ba5f79c921be77cf2de712ea25a2b3f4fff3acc101cecfa0",
        bytes=680_841_265,
    ),
    item=item,
    encode=encode_joined,
    metrics=NORMALIZED,
    measure=accuracy_by_character,
)

ARC_EASY = _arc(
    name="arc-easy",
    title="ARC easy",
    meaning="science questions from school exams",
    items=2_376,
    paths=(EASY,),
    records=partial(records, path=EASY),
    published={},  # no score of this form of the task was found
    harness_name="arc_easy",
)

ARC_CHALLENGE = _arc(
    name="arc-challenge",
    title="ARC challenge",
    meaning="science questions that looking up words does not answer",
    items=1_172,
    paths=(CHALLENGE,),
    records=partial(records, path=CHALLENGE),
    published={"gpt2": {"accuracy": (0.1903, "model card of crumb/gpt2023")}},
    harness_name="arc_challenge",
)
