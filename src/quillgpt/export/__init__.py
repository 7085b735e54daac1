"""Exporters: a trained model in the formats of other projects.

An export is read back by the format's own library, and its logits are compared with the model's, before it appears
(`export.py`). The packages of a format come with `quillgpt[export]` and are imported on first use.
To add a format: a file with a `FORMAT`, and a line in `EXPORTERS`.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the menu is read by `quill export --help`, which imports no torch
    from torch import Tensor

    from quillgpt.config import ModelConfig
    from quillgpt.model.gpt import GPT
    from quillgpt.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A menu entry."""

    module: str
    """where its `FORMAT` is; a name, so that reading the menu imports nothing"""
    meaning: str
    """one line for help texts"""
    tolerance: Mapping[str, float]
    """largest accepted difference of a logit, as a fraction of the largest logit, by dtype; the first is the default"""
    packages: tuple[str, ...]
    """required packages"""


EXPORTERS: Mapping[str, Exporter] = {
    "huggingface": Exporter(
        module="quillgpt.export.huggingface",
        meaning="a directory for transformers: GPT2LMHeadModel if the model is a GPT-2, else with its own code",
        tolerance={"f32": 1e-5},
        packages=("transformers",),
    ),
    "gguf": Exporter(
        module="quillgpt.export.gguf",
        meaning="one file for llama.cpp and the programs built on it; GPT-2-shaped models",
        tolerance={"f32": 1e-5, "f16": 5e-3, "q8_0": 5e-2},
        packages=("gguf", "transformers", "accelerate"),
    ),
    "onnx": Exporter(
        module="quillgpt.export.onnx",
        meaning="a graph for onnxruntime: tokens in, logits out, any batch size and length",
        tolerance={"f32": 1e-5},
        packages=("onnx", "onnxscript", "onnxruntime"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Name of the run and number of optimizer steps (None: unknown) of the exported model.

    It is written into the files, so it has no paths.
    """

    name: str
    step: int | None


@dataclass(frozen=True, kw_only=True)
class Written:
    """An export as the format's own library reads it."""

    logits: "Callable[[Tensor], Tensor]"
    """tokens (B, T) int64 -> logits (B, T, V) float32"""
    encode: Callable[[str], list[int]]
    """text -> tokens, by the exported tokenizer"""
    ends: Set[int | None] = frozenset()
    """end-of-text ids, from every file that has one"""


@dataclass(frozen=True, kw_only=True)
class Format:
    """The functions of an exporter."""

    write: "Callable[[GPT, Tokenizer, Path, str, Origin], str]"
    """(model, tokenizer, empty directory, dtype, origin): write the files and return what the model has become, in a
    few words; the model may be modified"""
    read: Callable[[Path], Written]
    """load a directory without using the model"""
    usage: "Callable[[ModelConfig, str, str], str]"
    """(config, dtype, path): a few lines of code that use the export"""
    refuse: "Callable[[ModelConfig, str, str], None]" = lambda config, tokenizer, dtype: None
    """(config, name of the tokenizer, dtype): raise a `ConfigError` that names the settings the format cannot express,
    before anything is loaded"""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what other libraries print, log or warn of in the block; exceptions pass."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
