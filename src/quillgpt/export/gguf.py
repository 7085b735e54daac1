"""Exporter `gguf`: one file for llama.cpp, with the tokenizer inside. GPT-2-shaped models only.

Names and keys are llama.cpp's for the architecture gpt2 [Gerganov 2023]. As in its converter, f16 and q8_0 apply to
matrices: norms, biases and position embeddings stay f32, and a matrix whose rows are not a multiple of 32 becomes f16
instead of q8_0.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from quillgpt import files
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError, ExportError
from quillgpt.export import Format, Origin, Written, quiet
from quillgpt.export.gpt2 import float32_array, gpt2_config, gpt2_tensors, not_gpt2
from quillgpt.model.gpt import GPT
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import EPSILON
from quillgpt.tokenizer import Tokenizer

VERSION = 3
ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
"""type numbers of the format"""

NORMAL, CONTROL = 1, 3
"""token types of the format"""

Value = bool | int | float | str | Sequence[str] | Sequence[int]

ACTIVATION = "gelu_new"  # the only one of llama.cpp's GPT-2

ROUNDING = {"F32": 0.0, "F16": 2**-11, "Q8_0": 0.5 / 127 + 2**-11}
"""largest rounding error of a number, relative to itself; in Q8_0 to the largest of the 32 numbers of its block

Q8_0 has 127 steps up to the largest number, and rounds the step size to 11 bits, an error that grows with the number of
steps.
"""
SMALLEST = 2.0**-25
"""half of the smallest step of f16, which is added to the error"""


def refuse(config: ModelConfig, tokenizer: str, dtype: str) -> None:
    """Refuse a model that is not GPT-2's network, and a tokenizer that is not byte-level."""
    differences = not_gpt2(config) or (
        [f"mlp = {config.mlp!r}"] if MLPS[config.mlp].gpt2_activation != ACTIVATION else []
    )
    if differences:
        reason = "only GPT-2's network can be expressed"
        raise ConfigError(f"gguf: unsupported {', '.join(differences)} ({reason}); choose another format")
    if tokenizer == "character":
        raise ConfigError(
            "gguf: unsupported tokenizer = 'character' (must be gpt2, bpe or byte); choose another format"
        )


def write_export(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str, origin: Origin) -> str:
    """Write model-DTYPE.gguf and the config.json that transformers needs to read it; check every tensor of the file."""
    path, weights = folder / f"model-{dtype}.gguf", gguf_weights(model)
    write_gguf(path, metadata(model.config, tokenizer, dtype, origin), weights, dtype)
    files.write_json(folder / "config.json", gpt2_config(model.config, tokenizer.end_of_text))
    check_tensors(path, weights)
    return "llama.cpp's gpt2"


def metadata(config: ModelConfig, tokenizer: Tokenizer, dtype: str, origin: Origin) -> dict[str, Value]:
    """The shape of the model and the tokenizer (tokens in GPT-2's spelling, merges) under llama.cpp's keys."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    kinds = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    bpe, end = json.loads(tokenizer.to_json())["model"], tokenizer.end_of_text
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    return {
        "general.architecture": "gpt2",
        "general.type": "model",
        "general.name": origin.name,
        "general.file_type": int(kinds[dtype]),
        "general.quantization_version": GGML_QUANT_VERSION,
        "gpt2.block_count": config.n_layer,
        "gpt2.context_length": config.context_length,
        "gpt2.embedding_length": config.n_embd,
        "gpt2.feed_forward_length": 4 * config.n_embd,
        "gpt2.attention.head_count": config.n_head,
        "gpt2.attention.layer_norm_epsilon": EPSILON,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if i == end else NORMAL for i in range(len(tokens))],
        "tokenizer.ggml.merges": bpe["merges"],
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
    }


def gguf_weights(model: GPT) -> dict[str, Tensor]:
    """The weights under llama.cpp's names, as views; its matrices are (out, in), like ours."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.GPT2, model.config.n_layer)
    found = {}
    for theirs, tensor in gpt2_tensors(model).items():
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, theirs
        is_transposed = tensor.ndim == 2 and ".h." in theirs
        found[name] = tensor.T if is_transposed else tensor
    return found


def write_gguf(path: Path, values: Mapping[str, Value], weights: Mapping[str, Tensor], dtype: str) -> None:
    """Write the key-value pairs and the tensors, each converted only while it is written.

    The library's writer opens the file itself and cannot write an empty array, which a tokenizer without merges needs.
    The format (little-endian): magic, counts, key-value pairs, a table of the tensors, the tensors, each at a multiple
    of 32 bytes [Gerganov 2023].
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quantize

    kinds = {name: GGMLQuantizationType[_kind(name, weight, dtype)] for name, weight in weights.items()}
    head = b"GGUF" + struct.pack("<IQQ", VERSION, len(weights), len(values))
    head += b"".join(_string(key) + _value(value) for key, value in values.items())
    offset = 0
    for name, weight in weights.items():
        dimensions = reversed(weight.shape)  # the format counts columns first
        head += _string(name)
        head += struct.pack(f"<I{weight.ndim}QIQ", weight.ndim, *dimensions, int(kinds[name]), offset)
        block, block_bytes = GGML_QUANT_SIZES[kinds[name]]
        size = weight.numel() // block * block_bytes
        offset += size + _padding(size)
    with files.written_file(path) as file:
        file.write(head + bytes(_padding(len(head))))
        for name, weight in weights.items():
            content = numpy.ascontiguousarray(quantize(float32_array(weight), kinds[name])).data.cast("B")
            file.write(content)
            file.write(bytes(_padding(len(content))))


def _kind(name: str, weight: Tensor, dtype: str) -> str:
    if weight.ndim == 1 or name == "position_embd.weight" or dtype == "f32":
        return "F32"
    return "Q8_0" if dtype == "q8_0" and weight.shape[1] % 32 == 0 else "F16"


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
    numbers = [item for item in value if isinstance(item, int)]
    head = struct.pack("<IIQ", ARRAY, INT32 if numbers else STRING, len(value))
    if numbers:
        return head + struct.pack(f"<{len(numbers)}i", *numbers)
    return head + b"".join(_string(str(item)) for item in value)


def check_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Read every tensor back; one that differs from the weight by more than the rounding is an `ExportError`."""
    from gguf import GGUFReader, dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if stored.keys() != weights.keys():
        raise ExportError(f"{path.name}: has other tensors than the model: {sorted(stored.keys() ^ weights.keys())}")
    for name, weight in weights.items():
        kind = stored[name].tensor_type.name
        back = torch.from_numpy(dequantize(stored[name].data, stored[name].tensor_type).copy())
        weight = weight.to("cpu", torch.float32)
        largest, steps = weight.abs(), 1
        if kind == "Q8_0":
            largest, steps = largest.unflatten(-1, (-1, 32)).amax(dim=-1).repeat_interleave(32, dim=-1), 127
        allowed = largest * ROUNDING[kind] + (0.0 if kind == "F32" else SMALLEST * steps)
        if back.shape != weight.shape or not bool(((back - weight).abs() <= allowed).all()):
            raise ExportError(f"{path.name}: {name}, read back, differs from the weight by more than {kind} rounds")


def read(folder: Path) -> Written:
    """The file as transformers loads it, with the config.json next to it."""
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


def usage(config: ModelConfig, dtype: str, path: str) -> str:
    """Load it with transformers; llama.cpp takes the file directly."""
    file = f'"{path}", gguf_file="model-{dtype}.gguf"'
    return (
        "from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel\n"
        f'config, tokenizer = GPT2Config.from_pretrained("{path}"), AutoTokenizer.from_pretrained({file})\n'
        f"model = GPT2LMHeadModel.from_pretrained({file}, config=config)"
    )


FORMAT = Format(write=write_export, read=read, usage=usage, refuse=refuse)
