"""A directory in Hugging Face's format: config.json of a GPT-2, its weights, and perhaps tokenizer files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError, ConfigError, DataError
from quillgpt.model.norm import EPSILON
from quillgpt.pretrained.gpt2_names import to_hugging_face
from quillgpt.pretrained.source import Source, Weights
from quillgpt.pretrained.tensor_files import SafetensorsFiles, StoredTensors
from quillgpt.pretrained.torch_files import TorchTensors, read_torch_file, tensors_in
from quillgpt.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT
from quillgpt.tokenizer.vocabulary_files import has_vocabulary_files

CONFIG = "config.json"
SAFETENSORS, SHARDED, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
GPT2_VOCABULARY = 50257
PREFIX = "transformer."
MASKS = (".attn.bias", ".attn.masked_bias")
"""endings of the causal masks that old files hold among the weights"""

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu-exact"}
"""their activation_function -> our mlp"""


def open_hugging_face(directory: Path, *, name: str = "") -> Source:
    """The model in a directory that holds a config.json."""
    config = read_config(directory / CONFIG)
    tokenizer_name = tokenizer_of(directory, config)
    return Source(
        name=name or str(directory),
        config=config,
        tokenizer_name=tokenizer_name,
        known_tokenizer_fingerprint=known_fingerprint(tokenizer_name),
        open_weights=lambda: hugging_face_weights(directory),
        open_tokenizer=lambda: open_tokenizer(directory, config, tokenizer_name),
    )


def read_config(path: Path) -> ModelConfig:
    """Our settings for their config.json; what we cannot represent is refused, naming the key, got and expected."""
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON in UTF-8: {error}") from None
    if not isinstance(theirs, dict) or theirs.get("model_type") != "gpt2":
        got = theirs.get("model_type") if isinstance(theirs, dict) else type(theirs).__name__
        raise CheckpointError(f"{path}: model_type = {got!r}; expected 'gpt2', the only kind that quill reads")
    return config_from_hugging_face(theirs, where=str(path))


def config_from_hugging_face(theirs: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Our settings for the entries of a GPT2Config; a key that is not there has transformers' default.

    Dropout is 0, because it belongs to training. `reorder_and_upcast_attn` is taken either way: it changes the order
    of two operations and not the result.
    """
    width = theirs.get("n_embd", 768)
    inner = 4 * width if isinstance(width, int) else None
    activation = theirs.get("activation_function", "gelu_new")
    rules = [
        ("activation_function", activation, activation in [*ACTIVATIONS], f"one of {', '.join(ACTIVATIONS)}"),
        ("n_inner", theirs.get("n_inner"), theirs.get("n_inner") in (None, inner), f"4 * n_embd = {inner}"),
        _is("scale_attn_weights", theirs, True),
        _is("scale_attn_by_inverse_layer_idx", theirs, False),
        _is("add_cross_attention", theirs, False),
        _is("layer_norm_epsilon", theirs, EPSILON),
    ]
    for key, got, holds, expected in rules:
        if not holds:
            raise CheckpointError(f"{where}: {key} = {got!r} cannot be represented; expected {expected}")
    try:
        return ModelConfig(
            n_layer=theirs.get("n_layer", 12),
            n_head=theirs.get("n_head", 12),
            n_embd=width,
            context_length=theirs.get("n_positions", theirs.get("n_ctx", 1024)),
            vocab_size=theirs.get("vocab_size", GPT2_VOCABULARY),
            mlp=ACTIVATIONS[activation],
            tied_head=theirs.get("tie_word_embeddings", True),
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _is(key: str, theirs: Mapping[str, Any], expected: Any) -> tuple[str, Any, bool, str]:
    got = theirs.get(key, expected)
    return key, got, got == expected, repr(expected)


def hugging_face_weights(directory: Path) -> Weights:
    """The tensors of a directory under Hugging Face's names, with or without the prefix and the masks of old files."""
    stored = _stored(directory)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in stored.shapes) else ""
    return Weights(stored=stored, place=_place(prefix), ignored=is_ignored)


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
    """The files that an index names; they lie beside it."""
    try:
        names = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: damaged; expected JSON with a weight_map of names to files") from None
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if wrong:
        raise CheckpointError(f"{index}: names {wrong[0]!r}; expected the name of a file beside it")
    return [index.parent / name for name in names]


def _place(prefix: str) -> Callable[[str], tuple[str, bool]]:
    def place(name: str) -> tuple[str, bool]:
        theirs, is_transposed = to_hugging_face(name)
        return (prefix + theirs.removeprefix(PREFIX) if theirs.startswith(PREFIX) else theirs), is_transposed

    return place


def is_ignored(name: str) -> bool:
    """Whether a tensor may be there that is no weight of ours: a mask, or the head written out though it is tied."""
    return name.endswith(MASKS) or name == "lm_head.weight"


def tokenizer_of(directory: Path, config: ModelConfig) -> str:
    """What `load_tokenizer` takes for a directory's tokenizer: itself, gpt2 where only the size tells, or ""."""
    if (directory / FILE_NAME).is_file() or has_vocabulary_files(directory):
        return str(directory)
    return "gpt2" if config.vocab_size == GPT2_VOCABULARY else ""


def known_fingerprint(tokenizer_name: str) -> str:
    """The tokenizer's fingerprint where the name alone tells it, so that nothing has to be read."""
    return GPT2_FINGERPRINT if tokenizer_name == "gpt2" else ""


def open_tokenizer(directory: Path, config: ModelConfig, tokenizer_name: str) -> Tokenizer:
    """The tokenizer of a model's directory; one with another vocabulary than the model's is a `DataError`."""
    if not tokenizer_name:
        missing = f"{directory}: no tokenizer there, and a vocabulary of {config.vocab_size:,} is not GPT-2's"
        raise DataError(f"{missing}; put its {FILE_NAME} beside the weights")
    tokenizer = load_tokenizer(tokenizer_name)
    if tokenizer.vocab_size != config.vocab_size:
        sizes = f"its tokenizer has {tokenizer.vocab_size:,} tokens, the model {config.vocab_size:,}"
        raise DataError(f"{directory}: {sizes}; put the {FILE_NAME} it was trained with beside the weights")
    return tokenizer
