"""What an exporter consists of: the functions behind an entry of the menu, and what they are given."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which model is exported, for the files that tell it; no paths, because the files are given away."""

    name: str
    """the run's name"""
    step: int | None
    """optimizer steps done, where that is known"""


@dataclass(frozen=True, kw_only=True)
class Written:
    """An export read back by the format's own library."""

    logits: Callable[[Tensor], Tensor]
    """tokens (B, T) int64 -> logits (B, T, V) float32"""
    encode: Callable[[str], list[int]]
    """the tokens of a text, by the tokenizer in the export"""
    ends: Set[int | None] = frozenset()
    """the ids that end a text, wherever the format tells them"""


@dataclass(frozen=True, kw_only=True)
class Format:
    """The functions of an exporter; each refusal is a `ConfigError` that names the setting in the way."""

    refuse: Callable[[ModelConfig, str, str], None]
    """(model's settings, tokenizer's name, dtype): raise what cannot be expressed, before anything is loaded"""
    write: Callable[[GPT, Tokenizer, Path, str, Origin], None]
    """(model, tokenizer, empty directory, dtype, origin): write the files; the model may be changed and is dropped"""
    read: Callable[[Path], Written]
    """load the files of a directory, with nothing of the model"""
    describe: Callable[[ModelConfig], str]
    """what the model becomes, in a few words"""
    usage: Callable[[ModelConfig, str, str], str]
    """(model's settings, dtype, path): a few lines of code that use the export"""
    tolerance: Mapping[str, float]
    """by dtype, how far a logit may be off, as a fraction of the largest one"""
