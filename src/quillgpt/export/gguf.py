"""Entry `gguf`: one file for llama.cpp and what is built on it, with the tokenizer inside. GPT-2-shaped models only.

Names and keys are llama.cpp's for the architecture gpt2 [Gerganov 2023]. As its converter does, f16 and q8_0 are for
the matrices: norms, biases and positions stay f32, and a row that is no multiple of 32 numbers becomes f16, not q8_0.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError, ExportError
from quillgpt.export.format import Format, Origin, Written
from quillgpt.export.gguf_file import StoredTensor, Value, write_gguf
from quillgpt.export.gpt2_shape import gpt2_config, gpt2_tensors, in_the_way
from quillgpt.export.quiet import quiet
from quillgpt.export.safetensors_file import float32_bytes
from quillgpt.export.tokenizer_files import write_json
from quillgpt.model.gpt import GPT
from quillgpt.model.norm import EPSILON
from quillgpt.tokenizer import Tokenizer

ARCHITECTURE = "gpt2"
NORMAL, CONTROL = 1, 3
"""the format's types of tokens"""

ROUNDING = {"F32": 0.0, "F16": 2**-11, "Q8_0": 0.5 / 127 + 2**-11}
"""how far a number may be off, as a fraction of the largest of the 32 it is stored with (F16: of itself).

Q8_0 has 127 steps up to the largest, and rounds the size of a step to 11 bits, an error that grows with their number.
"""
SMALLEST = 2.0**-25
"""half of the smallest step of f16, added to the above"""


def refuse(config: ModelConfig, tokenizer: str, dtype: str) -> None:
    """Refuse a model that is not GPT-2's network, and a tokenizer that is not byte-level."""
    other = in_the_way(config)
    if not other and config.mlp != "gelu":
        other = [f"mlp = {config.mlp!r}"]
    if other:
        raise ConfigError(
            f"gguf: {', '.join(other)} cannot be expressed, only GPT-2's network can; take another format"
        )
    if tokenizer == "character":
        raise ConfigError(
            "gguf: tokenizer = 'character' cannot be expressed, only gpt2, bpe and byte; take another format"
        )


def write_export(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str, origin: Origin) -> None:
    """Write model-DTYPE.gguf, and the config.json that transformers needs to read it; check every tensor of it."""
    config = model.config
    tensors = gguf_tensors(model, dtype)
    path = folder / f"model-{dtype}.gguf"
    write_gguf(path, hyperparameters(config, dtype, origin) | vocabulary(tokenizer), tensors)
    write_json(folder / "config.json", gpt2_config(config, tokenizer.end_of_text))
    check_tensors(path, gguf_names(model))


def hyperparameters(config: ModelConfig, dtype: str, origin: Origin) -> dict[str, Value]:
    """The model's shape under llama.cpp's keys."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    kinds = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    return {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": origin.name,
        "general.file_type": int(kinds[dtype]),
        "general.quantization_version": GGML_QUANT_VERSION,
        f"{ARCHITECTURE}.block_count": config.n_layer,
        f"{ARCHITECTURE}.context_length": config.context_length,
        f"{ARCHITECTURE}.embedding_length": config.n_embd,
        f"{ARCHITECTURE}.feed_forward_length": 4 * config.n_embd,
        f"{ARCHITECTURE}.attention.head_count": config.n_head,
        f"{ARCHITECTURE}.attention.layer_norm_epsilon": EPSILON,
    }


def vocabulary(tokenizer: Tokenizer) -> dict[str, Value]:
    """The tokenizer under llama.cpp's keys: its tokens in GPT-2's spelling, and its merges (none for bytes)."""
    model = json.loads(tokenizer.to_json())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if i == tokenizer.end_of_text else NORMAL for i in range(len(tokens))],
        "tokenizer.ggml.merges": model["merges"],
        "tokenizer.ggml.bos_token_id": tokenizer.end_of_text,
        "tokenizer.ggml.eos_token_id": tokenizer.end_of_text,
        "tokenizer.ggml.add_bos_token": False,
    }


def gguf_names(model: GPT) -> dict[str, Tensor]:
    """The weights under llama.cpp's names, as views; its matrices are (out, in), as ours."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.GPT2, model.config.n_layer)
    found = {}
    for theirs, tensor in gpt2_tensors(model).items():
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, theirs
        is_transposed = tensor.ndim == 2 and ".h." in theirs
        found[name] = tensor.T if is_transposed else tensor
    return found


def gguf_tensors(model: GPT, dtype: str) -> Mapping[str, StoredTensor]:
    """The weights as they are stored, each made when it is written."""
    return {name: _stored(name, tensor, dtype) for name, tensor in gguf_names(model).items()}


def _stored(name: str, tensor: Tensor, dtype: str) -> StoredTensor:
    import numpy
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quantize

    kind = GGMLQuantizationType[_kind(name, tensor, dtype)]
    block, block_bytes = GGML_QUANT_SIZES[kind]

    def content() -> memoryview:
        numbers = numpy.frombuffer(float32_bytes(tensor), dtype=numpy.float32).reshape(tensor.shape)
        return numpy.ascontiguousarray(quantize(numbers, kind)).data.cast("B")

    size = tensor.numel() // block * block_bytes
    return StoredTensor(shape=tuple(tensor.shape), kind=int(kind), bytes=size, content=content)


def _kind(name: str, tensor: Tensor, dtype: str) -> str:
    if tensor.ndim == 1 or name == "position_embd.weight" or dtype == "f32":
        return "F32"
    return "Q8_0" if dtype == "q8_0" and tensor.shape[1] % 32 == 0 else "F16"


def check_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Read every tensor back and compare it with the weight; more than its format's rounding is an `ExportError`."""
    from gguf import GGUFReader, dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if stored.keys() != weights.keys():
        raise ExportError(f"{path.name}: has other tensors than the model: {sorted(stored.keys() ^ weights.keys())}")
    for name, weight in weights.items():
        kind = stored[name].tensor_type
        back = torch.from_numpy(dequantize(stored[name].data, kind).copy())
        if back.shape != weight.shape or not bool((_error(back, weight) <= _allowed(weight, kind.name)).all()):
            raise ExportError(f"{path.name}: {name}, read back, is further from the weight than {kind.name} rounds")


def _error(back: Tensor, weight: Tensor) -> Tensor:
    return (back - weight.to("cpu", torch.float32)).abs()


def _allowed(weight: Tensor, kind: str) -> Tensor:
    size = weight.to("cpu", torch.float32).abs()
    if kind == "Q8_0":
        size = size.unflatten(-1, (-1, 32)).amax(dim=-1).repeat_interleave(32, dim=-1)
    return size * ROUNDING[kind] + (0.0 if kind == "F32" else SMALLEST * (127 if kind == "Q8_0" else 1))


def read(folder: Path) -> Written:
    """The file as transformers loads it; the configuration comes from beside it."""
    path = next(folder.glob("*.gguf"))
    with quiet():
        from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

        config: Any = GPT2Config.from_pretrained(folder, local_files_only=True)
        options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
        model = GPT2LMHeadModel.from_pretrained(folder, config=config, dtype=torch.float32, **options).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
    return Written(
        logits=lambda tokens: model(input_ids=tokens, use_cache=False).logits,
        encode=lambda text: tokenizer(text)["input_ids"],
        ends={tokenizer.eos_token_id, config.eos_token_id},
    )


def describe(config: ModelConfig) -> str:
    """What llama.cpp makes of the model."""
    return "llama.cpp's gpt2"


def usage(config: ModelConfig, dtype: str, path: str) -> str:
    """How to load it with transformers; llama.cpp takes the file as it is."""
    file = f'"{path}", gguf_file="model-{dtype}.gguf"'
    return (
        "from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel\n"
        f'config, tokenizer = GPT2Config.from_pretrained("{path}"), AutoTokenizer.from_pretrained({file})\n'
        f"model = GPT2LMHeadModel.from_pretrained({file}, config=config)"
    )


FORMAT = Format(
    refuse=refuse,
    write=write_export,
    read=read,
    describe=describe,
    usage=usage,
    tolerance={"f32": 1e-5, "f16": 5e-3, "q8_0": 5e-2},
)
