"""HellaSwag's file with questions of our own, for tests that only need some task."""

import json
from pathlib import Path

PLACES = ("the harbour", "a workshop", "the kitchen", "an orchard", "the attic")
DOINGS = (
    "mends a net",
    "counts the jars",
    "whistles",
    "sweeps the floor",
    "opens a window",
    "writes a letter",
    "waits",
)


def write_hellaswag(folder: Path, count: int = 12) -> Path:
    """Write the file into the folder and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [
        {
            "ind": number,
            "activity_label": "Working",
            "ctx_a": f"Somebody stands in {PLACES[number % 5]} at {number} o'clock.",
            "ctx_b": "she",
            "ctx": f"Somebody stands in {PLACES[number % 5]} at {number} o'clock. She",
            "endings": [f"{DOINGS[(number + 2 * place) % 7]}." for place in range(4)],
            "label": number % 4,
        }
        for number in range(count)
    ]
    (folder / "hellaswag_val.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return folder
