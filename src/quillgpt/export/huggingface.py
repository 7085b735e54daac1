"""Exporter `huggingface`: a directory for transformers.

A GPT-2-shaped model becomes `GPT2LMHeadModel`, which every program that supports GPT-2 can read. Any other model comes
with its own code, which transformers runs with `trust_remote_code=True`: `modeling_quillgpt.py` and a copy of each
module of this package that it needs.
"""

import ast
import dataclasses
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quillgpt import files
from quillgpt.config import ModelConfig
from quillgpt.export import Format, Origin, Written, quiet
from quillgpt.export.gpt2 import PADDED, float32_array, gpt2_config, gpt2_tensors, not_gpt2
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import parameter_count
from quillgpt.tokenizer import END_OF_TEXT, FILE_NAME, Tokenizer
from quillgpt.tokenizer.tokenizer_json import config_json

MODELING = "modeling_quillgpt"


def write_export(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str, origin: Origin) -> str:
    """Write config.json, model.safetensors, the tokenizer, a model card, and its code if the model is not a GPT-2."""
    config, end = model.config, tokenizer.end_of_text
    differences = not_gpt2(config)
    if differences:
        files.write_json(folder / "config.json", custom_config(config, end))
        weights = {f"gpt.{k}": x[: config.vocab_size] if k in PADDED else x for k, x in model.state_dict().items()}
        write_safetensors(folder / "model.safetensors", weights)
        for name, source in standalone_modules(f"{__package__}.{MODELING}").items():
            files.write_text(folder / f"{name}.py", source)
    else:
        files.write_json(folder / "config.json", gpt2_config(config, end))
        write_safetensors(folder / "model.safetensors", gpt2_tensors(model))
    files.write_text(folder / FILE_NAME, tokenizer.to_json())
    settings = json.loads(config_json()) | {"model_max_length": config.context_length}
    files.write_json(folder / "tokenizer_config.json", settings)
    files.write_json(folder / "special_tokens_map.json", {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT})
    # the vocabulary has no padding token; end of text is safe, because nothing after it is read in generation
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    files.write_json(folder / "generation_config.json", {"_from_model_config": False} | ids)
    files.write_text(folder / "README.md", model_card(config, tokenizer, origin, usage(config, dtype, origin.name)))
    return f"its own code, because of {', '.join(differences)}" if differences else "GPT2LMHeadModel"


def custom_config(config: ModelConfig, end_of_text: int) -> dict[str, object]:
    """The config.json of a model with its own code: our settings under our names."""
    return {
        "architectures": ["QuillGPTForCausalLM"],
        "model_type": "quillgpt",
        "auto_map": {
            "AutoConfig": f"{MODELING}.QuillGPTConfig",
            "AutoModelForCausalLM": f"{MODELING}.QuillGPTForCausalLM",
        },
        **dataclasses.asdict(config),
        "tie_word_embeddings": False,  # a tied head is one weight here, not two that are kept equal
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def standalone_modules(root: str) -> dict[str, str]:
    """File names (without .py) and sources of a module and all that it imports from its package, also indirectly.

    transformers loads sibling files only, and finds them by their `from .NAME import`. So
    `from quillgpt.model.mlp import MLPS` becomes `from .quillgpt_model_mlp import MLPS`; an imported submodule is taken
    from `sys.modules`. `import quillgpt` and `from quillgpt import ...` are a `ValueError`.
    """
    package = root.split(".")[0]
    modules, sources = {_file_name(root): root}, {}
    while len(sources) < len(modules):
        name, module = list(modules.items())[len(sources)]
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
                statements = _relative_imports(node)
                for imported in statements:
                    if modules.setdefault(_file_name(imported), imported) != imported:
                        both = f"{modules[_file_name(imported)]} and {imported}"
                        raise ValueError(f"{both} have the same file name {_file_name(imported)}.py")
                indented = [" " * node.col_offset + statement + "\n" for statement in statements.values()]
                lines[node.lineno - 1] = "".join(indented)
                lines[node.lineno : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno)
            elif isinstance(node, ast.Import | ast.ImportFrom) and re.search(rf"\b{package}\b", ast.unparse(node)):
                place = f"{module}, line {node.lineno}"
                raise ValueError(f"{place}: invalid import (must be `from {package}.x.y import Z`)")
        sources[name] = f"# Copied from {module} of {package} {version('quillgpt')}.\n{''.join(lines)}"
    return sources


def _relative_imports(node: ast.ImportFrom) -> dict[str, str]:
    """The modules that an import statement needs, each with the statement that imports it from a sibling file."""
    module, names, statements = node.module or "", [], {}
    for alias in node.names:
        submodule, bound = f"{module}.{alias.name}", alias.asname or alias.name
        if _is_submodule(module, alias.name):
            load = f"from .{_file_name(submodule)} import __name__ as {bound}"
            statements[submodule] = f"{load}; {bound} = __import__('sys').modules[{bound}]"
        else:
            names.append(ast.unparse(alias))
    if names:
        statements[module] = f"from .{_file_name(module)} import {', '.join(names)}"
    return statements


def _is_submodule(package: str, name: str) -> bool:
    spec = importlib.util.find_spec(package)
    folders = None if spec is None else spec.submodule_search_locations  # None: not a package
    return folders is not None and PathFinder.find_spec(f"{package}.{name}", folders) is not None


def _file_name(module: str) -> str:
    return module.removeprefix(f"{__package__}.").replace(".", "_")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors as float32; a view (transposed, cut) is copied only while it is written.

    The library's `save` holds the file in memory twice. The format: the length of the header in 8 bytes, the header
    (JSON: dtype, shape and offsets of each tensor, padded to a multiple of 8 bytes), the tensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.written_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(float32_array(tensor).data.cast("B"))


def model_card(config: ModelConfig, tokenizer: Tokenizer, origin: Origin, usage: str) -> str:
    """The README.md of the directory, which a hub shows; the owner adds licence and training data."""
    kind = "a GPT whose code is in this directory" if not_gpt2(config) else "GPT-2's network"
    facts = {
        "parameters": f"{parameter_count(config):,}",
        "layers, heads, channels": f"{config.n_layer}, {config.n_head}, {config.n_embd}",
        "context": f"{config.context_length:,} tokens",
        "tokenizer": f"{tokenizer.name}, {tokenizer.vocab_size:,} tokens",
        "attention, mlp, norm, positions": f"{config.attention}, {config.mlp}, {config.norm}, {config.position}",
        "trained for": "not known" if origin.step is None else f"{origin.step:,} steps",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- quillgpt\n---\n\n"
        f"# {origin.name}\n\nA language model, {kind}, exported by quillgpt {version('quillgpt')}.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n```python\n{usage}\n```\n"
    )


def read(folder: Path) -> Written:
    """The directory as transformers loads it; its own code is run in place, without a copy in the user's cache."""
    with quiet():
        from transformers import AutoTokenizer, GPT2LMHeadModel

        is_custom = (folder / f"{MODELING}.py").exists()
        kind: Any = custom_class(folder) if is_custom else GPT2LMHeadModel
        model = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Written(
        logits=lambda tokens: model(input_ids=tokens, use_cache=False).logits,
        encode=lambda text: tokenizer(text)["input_ids"],
        ends={tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id},
    )


def custom_class(folder: Path) -> Any:
    """The model's class, from the code in the folder; no __pycache__ is left there."""
    package = ModuleType("quillgpt_export_being_checked")
    package.__path__ = [str(folder)]
    for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
        del sys.modules[name]  # of an earlier export
    sys.modules[package.__name__] = package
    writes_no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return importlib.import_module(f"{package.__name__}.{MODELING}").QuillGPTForCausalLM
    finally:
        sys.dont_write_bytecode = writes_no_bytecode


def usage(config: ModelConfig, dtype: str, path: str) -> str:
    """Generate text."""
    trusted = ", trust_remote_code=True" if not_gpt2(config) else ""
    return (
        "from transformers import pipeline\n"
        f'write = pipeline("text-generation", model="{path}"{trusted})\n'
        'print(write("Once upon a time", max_new_tokens=50)[0]["generated_text"])'
    )


FORMAT = Format(write=write_export, read=read, usage=usage)
