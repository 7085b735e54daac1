"""A GPT-2 in Hugging Face's format: a directory with config.json, weights and perhaps tokenizer files.

The table of weight names, ours and those of `GPT2LMHeadModel`, serves imports and exports; docs/names.md shows it to
readers. nanoGPT has the same names but stores matrices as we do; Hugging Face, like OpenAI, stores them transposed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError, ConfigError, DataError
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import EPSILON
from quillgpt.pretrained.source import Source, Weights
from quillgpt.pretrained.tensor_files import SafetensorsFiles, StoredTensors, TorchTensors, read_torch_file, tensors_in
from quillgpt.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from quillgpt.tokenizer.load import has_vocabulary_files

HUGGING_FACE: Mapping[str, str] = {
    "token_embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "blocks.N.norm_1": "transformer.h.N.ln_1",
    "blocks.N.attention.qkv": "transformer.h.N.attn.c_attn",
    "blocks.N.attention.projection": "transformer.h.N.attn.c_proj",
    "blocks.N.norm_2": "transformer.h.N.ln_2",
    "blocks.N.mlp.expand": "transformer.h.N.mlp.c_fc",
    "blocks.N.mlp.project": "transformer.h.N.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
"""our module -> theirs; N is the number of the block"""

TRANSPOSED = ("attention.qkv.weight", "attention.projection.weight", "mlp.expand.weight", "mlp.project.weight")
"""endings of our weights that Hugging Face stores as (in, out); ours are (out, in)"""

CONFIG = "config.json"
SAFETENSORS, SHARDED, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PREFIX = "transformer."
MASKS = (".attn.bias", ".attn.masked_bias")
"""endings of the causal masks that old files have among the weights"""

ACTIVATIONS = {entry.gpt2_activation: name for name, entry in MLPS.items() if entry.gpt2_activation}
ACTIVATIONS |= {"gelu_pytorch_tanh": ACTIVATIONS["gelu_new"]}
"""their activation_function -> our mlp; the last is another implementation of the first"""

FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": EPSILON,
}
"""entries of their config.json of which we can represent only the default"""

GPT2_VOCABULARY = 50257
_BLOCK_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def to_hugging_face(name: str) -> tuple[str, bool]:
    """Return their name of our weight, and whether they store it transposed; one they do not have is a `KeyError`.

    "blocks.3.mlp.expand.weight" -> ("transformer.h.3.mlp.c_fc.weight", True).
    """
    module, _, kind = name.rpartition(".")
    number = _BLOCK_NUMBER.search(module)
    theirs = HUGGING_FACE[_BLOCK_NUMBER.sub("N", module, count=1)]
    return f"{theirs.replace('N', number[0], 1) if number else theirs}.{kind}", name.endswith(TRANSPOSED)


def open_hugging_face(directory: Path) -> Source:
    """Open the model in a directory that has a config.json."""
    config = read_config(directory / CONFIG)
    tokenizer_name = tokenizer_of(directory, config)
    return Source(
        name=str(directory),
        config=config,
        tokenizer_name=tokenizer_name,
        open_weights=lambda: hugging_face_weights(directory),
        open_tokenizer=lambda: open_tokenizer(directory, config, tokenizer_name),
    )


def read_config(path: Path) -> ModelConfig:
    """Return our settings for their config.json; a `CheckpointError` names the key that we cannot represent."""
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON in UTF-8: {error}") from None
    if not isinstance(theirs, dict) or theirs.get("model_type") != "gpt2":
        got = theirs.get("model_type") if isinstance(theirs, dict) else type(theirs).__name__
        raise CheckpointError(f"{path}: model_type = {got!r}; expected 'gpt2', the only kind that quill reads")
    try:
        return _config(theirs)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Our settings for the entries of a GPT2Config; a missing key has transformers' default.

    Dropout is 0, because it belongs to training. `reorder_and_upcast_attn` may have any value: it changes the order of
    two operations, not the result.
    """
    width = theirs.get("n_embd", 768)
    inner = 4 * width if isinstance(width, int) else None
    activation = theirs.get("activation_function", "gelu_new")
    accepted = {key: [value] for key, value in FIXED.items()}
    accepted |= {"activation_function": [*ACTIVATIONS], "n_inner": [inner, None]}
    for key, values in accepted.items():
        got = theirs.get(key, values[0])
        if got not in values:
            expected = " or ".join(map(repr, values))
            raise CheckpointError(f"{key} = {got!r} cannot be represented; expected {expected}")
    return ModelConfig(
        n_layer=theirs.get("n_layer", 12),
        n_head=theirs.get("n_head", 12),
        n_embd=width,
        context_length=theirs.get("n_positions", theirs.get("n_ctx", 1024)),
        vocab_size=theirs.get("vocab_size", GPT2_VOCABULARY),
        mlp=ACTIVATIONS[activation],
        tied_head=theirs.get("tie_word_embeddings", True),
    )


def hugging_face_weights(directory: Path) -> Weights:
    """Open the weights of a directory; in old files the names lack the prefix, and there are masks."""
    stored = _stored(directory)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in stored.shapes) else ""

    def locate(name: str) -> tuple[str, bool]:
        theirs, is_transposed = to_hugging_face(name)
        return (prefix + theirs.removeprefix(PREFIX) if theirs.startswith(PREFIX) else theirs), is_transposed

    return Weights(stored=stored, locate=locate, is_ignored=is_ignored)


def _stored(directory: Path) -> StoredTensors:
    if (directory / SAFETENSORS).is_file():
        return SafetensorsFiles([directory / SAFETENSORS])
    if (directory / SHARDED).is_file():
        return SafetensorsFiles(_shards(directory / SHARDED))
    path = directory / PICKLED
    if path.is_file():
        return TorchTensors(tensors_in(read_torch_file(path), path), path)
    raise CheckpointError(f"{directory}: no weights there; expected {SAFETENSORS}, {SHARDED} or {PICKLED}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, in its own directory."""
    try:
        names = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: damaged; expected JSON with a weight_map of names to files") from None
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if wrong:
        raise CheckpointError(f"{index}: names {wrong[0]!r}; expected the name of a file in the same directory")
    return [index.parent / name for name in names]


def is_ignored(name: str) -> bool:
    """Whether a stored tensor is none of our weights but expected: a mask, or a copy of the tied head."""
    return name.endswith(MASKS) or name == "lm_head.weight"


def tokenizer_of(directory: Path, config: ModelConfig) -> str:
    """Return what `load_tokenizer` takes for a directory's tokenizer, gpt2 for its vocabulary's size; "": none."""
    if (directory / FILE_NAME).is_file() or has_vocabulary_files(directory):
        return str(directory)
    return "gpt2" if config.vocab_size == GPT2_VOCABULARY else ""


def open_tokenizer(directory: Path, config: ModelConfig, tokenizer_name: str, note: str = "") -> Tokenizer:
    """Load the tokenizer of a model's directory; a missing one or one of another size is a `DataError`.

    note: why another file of the directory is not used.
    """
    if not tokenizer_name:
        missing = f"{directory}: no tokenizer there{note}, and a vocabulary of {config.vocab_size:,} is not GPT-2's"
        raise DataError(f"{missing}; put its {FILE_NAME} next to the weights")
    tokenizer = load_tokenizer(tokenizer_name)
    if tokenizer.vocab_size != config.vocab_size:
        sizes = f"its tokenizer has {tokenizer.vocab_size:,} tokens, the model {config.vocab_size:,}"
        raise DataError(f"{directory}: {sizes}; put the {FILE_NAME} it was trained with next to the weights")
    return tokenizer
