"""vocab.json and merges.txt, the two files in which OpenAI published GPT-2's tokenizer; others followed."""

import json
from pathlib import Path
from typing import Any

from quillgpt.errors import DataError
from quillgpt.tokenizer.protocol import END_OF_TEXT
from quillgpt.tokenizer.tokenizer_json import BYTE_LEVEL

VOCABULARY, MERGES = "vocab.json", "merges.txt"


def has_vocabulary_files(directory: Path) -> bool:
    """Whether both files are there."""
    return (directory / VOCABULARY).is_file() and (directory / MERGES).is_file()


def document_of(directory: Path) -> dict[str, Any]:
    """The tokenizer.json that the two files amount to: byte-level BPE, and end of text as the only special token."""
    path = directory / VOCABULARY
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        path = directory / MERGES
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable: {error}") from None
    if not isinstance(ids, dict) or END_OF_TEXT not in ids:
        raise DataError(
            f"{directory / VOCABULARY}: no token {END_OF_TEXT}; expected tokens and their ids, that among them"
        )
    merges = [line for line in lines[lines[0].startswith("#version") :] if line]
    return {
        "added_tokens": [{"content": END_OF_TEXT, "id": ids[END_OF_TEXT]}],
        "pre_tokenizer": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": ids, "merges": merges},
    }
