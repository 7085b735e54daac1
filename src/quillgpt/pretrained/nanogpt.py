"""nanoGPT's ckpt.pt: a dict of model_args, the weights under Hugging Face's names, and what training kept.

Its vocabulary is 50,304 where it trained from scratch on GPT-2's tokens: 50,257, and 47 ids that never occur in text.
Their rows are left out, so that the others' logits stay the same and no sample has such a token.
"""

import re
from pathlib import Path
from typing import Any

from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError, ConfigError, DataError
from quillgpt.pretrained.gpt2_names import to_hugging_face
from quillgpt.pretrained.hugging_face import (
    GPT2_VOCABULARY,
    is_ignored,
    known_fingerprint,
    open_tokenizer,
    tokenizer_of,
)
from quillgpt.pretrained.source import Source, Weights
from quillgpt.pretrained.torch_files import TorchTensors, read_torch_file, tensors_in
from quillgpt.tokenizer import Tokenizer

CKPT = "ckpt.pt"
PADDED_VOCABULARY = 50304
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")
"""what torch.compile and DDP put before every name"""


def open_nanogpt(path: Path) -> Source:
    """The model in a ckpt.pt, or in the directory that holds one."""
    path = path / CKPT if path.is_dir() else path
    content = read_torch_file(path)
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        raise CheckpointError(f"{path}: not a checkpoint of nanoGPT: expected a dict with model and model_args")
    config = config_from_nanogpt(content["model_args"], where=str(path))
    tensors = {WRAPPERS.sub("", name): x for name, x in tensors_in(content["model"], path).items()}
    tokenizer_name = tokenizer_of(path.parent, config)
    return Source(
        name=str(path),
        config=config,
        tokenizer_name=tokenizer_name,
        known_tokenizer_fingerprint=known_fingerprint(tokenizer_name),
        open_weights=lambda: Weights(stored=TorchTensors(tensors, path), place=_place, ignored=is_ignored),
        open_tokenizer=lambda: _tokenizer(path, config, tokenizer_name),
    )


def config_from_nanogpt(arguments: Any, *, where: str) -> ModelConfig:
    """Our settings for nanoGPT's model_args; its GELU is the exact one. Dropout, which belongs to training, is 0."""
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    missing = [name for name in names if not isinstance(arguments, dict) or name not in arguments]
    if missing:
        raise CheckpointError(f"{where}: model_args has no {missing[0]}; expected nanoGPT's, with {', '.join(names)}")
    vocab_size = arguments["vocab_size"]
    try:
        return ModelConfig(
            n_layer=arguments["n_layer"],
            n_head=arguments["n_head"],
            n_embd=arguments["n_embd"],
            context_length=arguments["block_size"],
            vocab_size=GPT2_VOCABULARY if vocab_size == PADDED_VOCABULARY else vocab_size,
            bias=arguments.get("bias", True),
            mlp="gelu-exact",
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: model_args: {error}") from None


def _place(name: str) -> tuple[str, bool]:
    return to_hugging_face(name)[0], False


def _tokenizer(path: Path, config: ModelConfig, tokenizer_name: str) -> Tokenizer:
    if tokenizer_name:
        return open_tokenizer(path.parent, config, tokenizer_name)
    missing = f"{path}: its {config.vocab_size:,} tokens are not GPT-2's, and nanoGPT's meta.pkl is a pickle, not read"
    remedy = "put a tokenizer.json of as many tokens beside it, or use the model with token ids from Python"
    raise DataError(f"{missing}; {remedy}")
