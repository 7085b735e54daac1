"""Small files in the published form of each task, with sentences of our own."""

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

THINGS = ("a kettle", "two ladders", "the old map", "a bicycle", "seven jars of honey", "the radio", "a wool coat")
VERBS = ("polishes", "drops", "paints", "hides", "carries upstairs", "sells", "forgets", "weighs", "photographs")


def thing(number: int) -> str:
    return THINGS[number % len(THINGS)]


def verb(number: int) -> str:
    return VERBS[number % len(VERBS)]


def hellaswag(number: int) -> dict[str, Any]:
    first = f"A woman looks at {thing(number)} in room {number}."
    second = "the gardener" if number % 3 else ""
    endings = [f"{verb(number + 2 * place)} {thing(number + 3 * place)}{'.' * place}" for place in range(4)]
    if number % 4 == 0:  # as the part from WikiHow
        first = f"How to care for {thing(number)} [title] Begin early. [step] Take  your time."
        endings = [f"{ending} [substeps] Then rest." for ending in endings]
    return {
        "ind": number,
        "activity_label": f"Caring for {thing(number)}",
        "ctx_a": first,
        "ctx_b": second,
        "ctx": f"{first} {second}".rstrip(),
        "split": "val",
        "split_type": "indomain",
        "label": number % 4,
        "endings": endings,
        "source_id": f"made~{number}",
    }


def lambada(number: int) -> dict[str, Any]:
    text = f"He {verb(number)} {thing(number)}, and waits.\nIn the evening he {verb(number + 1)} {thing(number)}"
    return {"text": text}


def piqa(number: int) -> dict[str, Any]:
    return {
        "goal": f"How does one clean {thing(number)}?",
        "sol1": f"Wash {thing(number)} with warm water.",
        "sol2": f"Set {thing(number)} on fire, then wait {number} minutes.",
    }


def arc(number: int) -> dict[str, Any]:
    letters = "12345" if number % 3 == 0 else "ABCDE"
    choices = [{"text": thing(number + place), "label": letters[place]} for place in range(3 + number % 3)]
    return {
        "id": f"made_{number}",
        "question": {"stem": f"Which of these {verb(number)} light number {number}?", "choices": choices},
        "answerKey": letters[number % 3],
    }


def winogrande(number: int) -> dict[str, Any]:
    return {
        "qID": f"made-{number}",
        "sentence": f"The tailor {verb(number)} {thing(number)} because the _ of it was {'very ' * (number % 3)}old.",
        "option1": "lining",
        "option2": "handle",
        "answer": str(1 + number % 2),
    }


def lines(records: Iterable[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


FILES: dict[str, Callable[[int], dict[str, str]]] = {
    "hellaswag": lambda count: {"hellaswag_val.jsonl": lines(map(hellaswag, range(count)))},
    "lambada": lambda count: {"lambada_test.jsonl": lines(map(lambada, range(count)))},
    "piqa": lambda count: {
        "physicaliqa-train-dev/dev.jsonl": lines(map(piqa, range(count))),
        "physicaliqa-train-dev/dev-labels.lst": lines(number % 2 for number in range(count)),
    },
    "arc": lambda count: {
        "ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl": lines(map(arc, range(count))),
        "ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Test.jsonl": lines(map(arc, range(7, 7 + count))),
    },
    "winogrande": lambda count: {"winogrande_1.1/dev.jsonl": lines(map(winogrande, range(count)))},
}


def write_tasks(directory: Path, *names: str, count: int = 12) -> Path:
    """Write the files of some tasks or all, with `count` items each, and return the directory."""
    for name in names or FILES:
        for path, content in FILES[name](count).items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(content)
    return directory


def write_archive(path: Path, files: dict[str, str]) -> Path:
    """Write the same as a published archive, and return its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
