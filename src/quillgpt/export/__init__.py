"""Exporters: a trained model in other people's formats. To add one: a file with a `FORMAT`, and a line in `EXPORTERS`.

Whatever a format writes is read back by that format's own library, and its logits compared with the model's, before it
appears (`checked.py`). The packages it needs come with `quillgpt[export]` and are imported when they are used.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """An entry of the menu."""

    module: str
    """where its `FORMAT` is; a name, so that the menu loads nothing"""
    meaning: str
    """one line for help texts"""
    dtypes: tuple[str, ...]
    """number formats of the weights it can write; the first unless another is asked for"""
    packages: tuple[str, ...]
    """what has to be installed"""


EXPORTERS: Mapping[str, Exporter] = {
    "huggingface": Exporter(
        module="quillgpt.export.huggingface",
        meaning="a directory for transformers: as GPT2LMHeadModel where the model is one, else with its own code",
        dtypes=("f32",),
        packages=("transformers",),
    ),
    "gguf": Exporter(
        module="quillgpt.export.gguf",
        meaning="one file for llama.cpp and what is built on it; GPT-2-shaped models",
        dtypes=("f32", "f16", "q8_0"),
        packages=("gguf", "transformers", "accelerate"),
    ),
    "onnx": Exporter(
        module="quillgpt.export.onnx",
        meaning="a graph for onnxruntime: tokens in, logits out, any batch size and length",
        dtypes=("f32",),
        packages=("onnx", "onnxscript", "onnxruntime"),
    ),
}
