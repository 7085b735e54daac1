"""The tokenizer beside the weights, as transformers and `tokenizers` read it."""

import json
from pathlib import Path

from quillgpt import files
from quillgpt.tokenizer import END_OF_TEXT, FILE_NAME, Tokenizer
from quillgpt.tokenizer.tokenizer_json import config_json


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, context_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and generation_config.json.

    Padding is end of text, because the vocabulary has no other mark; what generates never reads behind it.
    """
    end = tokenizer.end_of_text
    write(folder / FILE_NAME, tokenizer.to_json())
    settings = json.loads(config_json()) | {"model_max_length": context_length}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT})
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    write_json(folder / "generation_config.json", {"_from_model_config": False} | ids)


def write(path: Path, text: str) -> None:
    """Write a new file of text (UTF-8)."""
    with files.written_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a new file of indented JSON; NaN and infinity are refused."""
    write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
