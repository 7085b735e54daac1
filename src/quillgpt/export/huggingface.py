"""Entry `huggingface`: a directory that transformers loads, exactly.

A GPT-2-shaped model becomes `GPT2LMHeadModel`, which everything that knows GPT-2 can read. Any other comes with its own
code: two files made from ours (`one_file.py`), which transformers runs when it is told `trust_remote_code=True`.
"""

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.export.format import Format, Origin, Written
from quillgpt.export.gpt2_shape import PADDED, gpt2_config, gpt2_tensors, in_the_way
from quillgpt.export.model_card import model_card
from quillgpt.export.one_file import one_file
from quillgpt.export.quiet import quiet
from quillgpt.export.safetensors_file import write_safetensors
from quillgpt.export.tokenizer_files import write, write_json, write_tokenizer
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer

CONFIGURATION, MODELING = "configuration_quillgpt", "modeling_quillgpt"
CODE = "quillgpt.export.custom_code"
AUTO_MAP = {
    "AutoConfig": f"{CONFIGURATION}.QuillGPTConfig",
    "AutoModelForCausalLM": f"{MODELING}.QuillGPTForCausalLM",
}


def refuse(config: ModelConfig, tokenizer: str, dtype: str) -> None:
    """Everything can be expressed: what is no GPT-2 brings its own code."""


def write_export(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str, origin: Origin) -> None:
    """Write config.json, model.safetensors, the tokenizer, a model card, and the code where it is no GPT-2."""
    config = model.config
    if in_the_way(config):
        write_json(folder / "config.json", custom_config(config, tokenizer.end_of_text))
        write_safetensors(folder / "model.safetensors", custom_tensors(model))
        configuration = one_file(f"{CODE}.{CONFIGURATION}")
        modeling = one_file(f"{CODE}.{MODELING}", beside={CONFIGURATION: configuration})
        write(folder / f"{CONFIGURATION}.py", configuration.text)
        write(folder / f"{MODELING}.py", modeling.text)
    else:
        write_json(folder / "config.json", gpt2_config(config, tokenizer.end_of_text))
        write_safetensors(folder / "model.safetensors", gpt2_tensors(model))
    write_tokenizer(tokenizer, folder, context_length=config.context_length)
    use = usage(config, dtype, origin.name)
    write(folder / "README.md", model_card(config, tokenizer, origin, is_gpt2=not in_the_way(config), usage=use))


def custom_config(config: ModelConfig, end_of_text: int) -> dict[str, object]:
    """The config.json of a model that brings its own code: our settings under our names."""
    return {
        "architectures": ["QuillGPTForCausalLM"],
        "model_type": "quillgpt",
        "auto_map": AUTO_MAP,
        **dataclasses.asdict(config),
        "tie_word_embeddings": False,  # a tied head is one weight here, not two that are kept equal
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def custom_tensors(model: GPT) -> dict[str, Tensor]:
    """The weights under our names, without the padding rows, as views."""
    tokens = model.config.vocab_size
    return {f"gpt.{name}": x[:tokens] if name in PADDED else x for name, x in model.state_dict().items()}


def read(folder: Path) -> Written:
    """The directory as transformers loads it; its own code is run without a copy in the user's cache."""
    with quiet():
        from transformers import AutoTokenizer, GPT2LMHeadModel

        is_custom = (folder / f"{MODELING}.py").exists()
        kind: Any = _custom_class(folder) if is_custom else GPT2LMHeadModel
        model = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Written(
        logits=lambda tokens: model(input_ids=tokens, use_cache=False).logits,
        encode=lambda text: tokenizer(text)["input_ids"],
        ends={tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id},
    )


def _custom_class(folder: Path) -> Any:
    """The model's class, from the code in the folder."""
    package = ModuleType("quillgpt_export_being_checked")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    try:
        return importlib.import_module(f"{package.__name__}.{MODELING}").QuillGPTForCausalLM
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
            del sys.modules[name]


def describe(config: ModelConfig) -> str:
    """The class that transformers makes of the model."""
    other = in_the_way(config)
    return f"its own code, because of {', '.join(other)}" if other else "GPT2LMHeadModel"


def usage(config: ModelConfig, dtype: str, path: str) -> str:
    """How to write text with it."""
    trusted = ", trust_remote_code=True" if in_the_way(config) else ""
    return (
        "from transformers import pipeline\n"
        f'write = pipeline("text-generation", model="{path}"{trusted})\n'
        'print(write("Once upon a time", max_new_tokens=50)[0]["generated_text"])'
    )


FORMAT = Format(
    refuse=refuse,
    write=write_export,
    read=read,
    describe=describe,
    usage=usage,
    tolerance={"f32": 1e-5},
)
