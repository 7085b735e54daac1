"""nanoGPT's ckpt.pt: a dict of model_args, the weights under Hugging Face's names, and the state of training.

A model that nanoGPT trained from scratch on GPT-2's tokens has a vocabulary of 50,304: 50,257 tokens, and 47 ids that
occur in no text. Their rows are left out, so that the other logits stay the same and no sample has such a token.
"""

import re
from pathlib import Path
from typing import Any

from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.pretrained.hugging_face import (
    GPT2_VOCABULARY,
    is_ignored,
    open_tokenizer,
    to_hugging_face,
    tokenizer_of,
)
from quillgpt.pretrained.source import Source, Weights
from quillgpt.pretrained.tensor_files import TorchTensors, read_torch_file, tensors_in

CKPT = "ckpt.pt"
PADDED_VOCABULARY = 50304
META = " (nanoGPT's meta.pkl is a pickle, not read)"
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")
"""prefixes that torch.compile and DDP add to every name"""


def open_nanogpt(path: Path) -> Source:
    """Open the model in a ckpt.pt, or in a directory that has one."""
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
        open_weights=lambda: Weights(
            stored=TorchTensors(tensors, path),
            locate=lambda name: (to_hugging_face(name)[0], False),
            is_ignored=is_ignored,
        ),
        open_tokenizer=lambda: open_tokenizer(path.parent, config, tokenizer_name, META),
    )


def config_from_nanogpt(arguments: Any, *, where: str) -> ModelConfig:
    """Return our settings for nanoGPT's model_args. GELU is the exact one; dropout is 0, as it belongs to training."""
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
