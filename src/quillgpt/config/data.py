"""The settings of the data: where text comes from and how it becomes tokens."""

from dataclasses import dataclass

from quillgpt.config.checks import check, check_choice, check_each


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    source: str = "python"
    """text source: python, text, jsonl, parquet, shakespeare, openwebtext, fineweb-edu, nanogpt"""
    path: str = ""
    """files, folder or glob of the sources text, jsonl, parquet and nanogpt"""
    data: str = "auto"
    """directory of the prepared tokens; auto: data/SOURCE-TOKENIZER"""
    tokenizer: str = "gpt2"
    """tokenizer: gpt2, bpe (trained on the source), byte, character, or a tokenizer.json"""
    text_field: str = "text"
    """name of the field or column that holds the text (jsonl, parquet)"""
    subset: str = "sample-10BT"
    """which part of fineweb-edu"""
    documents: int = 0
    """use only the first so many documents; 0: all"""
    errors: str = "strict"
    """bytes that are not UTF-8: strict (stop and name the place) or replace (and count them)"""

    def __post_init__(self) -> None:
        check_each(self)
        check(self, "documents", self.documents >= 0, "at least 0")
        check_choice(self, "errors", "strict", "replace")
