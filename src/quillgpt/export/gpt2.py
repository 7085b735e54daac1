"""Which models are GPT-2's network in some size, and their weights and config.json for `GPT2LMHeadModel`.

A model that differs from GPT-2 in any setting except its sizes is not a GPT-2, so a new setting is refused until it is
listed here.
"""

import dataclasses
from collections.abc import Mapping

import numpy
import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.errors import shown
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.initialization import INIT_STD
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import EPSILON
from quillgpt.pretrained.hugging_face import to_hugging_face

SIZES = {"n_layer", "n_head", "n_embd", "context_length", "vocab_size"}
FREE = SIZES | {"bias", "tied_head", "dropout", "pointwise_length_power", "initialization"}
"""settings that may have any value: an absent bias is a bias of zeros, and the last three do not change the logits"""

SAME = {
    "attention": {name for name, entry in ATTENTION.items() if entry.is_softmax},
    "mlp": {name for name, entry in MLPS.items() if entry.gpt2_activation},
}
"""values other than the default that `GPT2LMHeadModel` computes"""

PADDED = {"token_embedding.weight", "head.weight"}
"""weights with one row per token, padded with unused rows"""

WITHOUT_BIAS = PADDED | {"position_embedding.weight"}


def not_gpt2(config: ModelConfig) -> list[str]:
    """The settings in which a model differs from GPT-2, as `name = value`; empty for a GPT-2 of any size."""
    return [
        f"{setting.name} = {shown(getattr(config, setting.name))}"
        for setting in dataclasses.fields(config)
        if setting.name not in FREE and getattr(config, setting.name) not in SAME.get(setting.name, {setting.default})
    ]


def gpt2_tensors(model: GPT) -> dict[str, Tensor]:
    """The weights with the names and shapes of `GPT2LMHeadModel`, as views: only zero biases are new memory.

    The padding rows are cut off, four matrices of a block transposed, absent biases zeros.
    """
    found: dict[str, Tensor] = {}
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, tensor in weights.items():
        theirs, is_transposed = to_hugging_face(name)
        if name in PADDED:
            tensor = tensor[: model.config.vocab_size]
        found[theirs] = tensor.T if is_transposed else tensor
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("weight") and name not in WITHOUT_BIAS and bias not in weights:
            found[to_hugging_face(bias)[0]] = torch.zeros(len(tensor))
    return found


def gpt2_config(config: ModelConfig, end_of_text: int) -> Mapping[str, object]:
    """The config.json of `GPT2LMHeadModel`; `n_ctx` is for llama.cpp's converter."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": MLPS[config.mlp].gpt2_activation,
        "layer_norm_epsilon": EPSILON,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "initializer_range": INIT_STD,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def float32_array(tensor: Tensor) -> numpy.ndarray:
    """The values of a tensor as float32 in row-major order; a view is copied, other memory is shared."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
