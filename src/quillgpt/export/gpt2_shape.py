"""Whether a model is GPT-2's network in some size, and its weights under Hugging Face's names.

A model that differs from GPT-2 in any setting but its sizes is not GPT-2, so that a new setting is refused until it is
named here.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.errors import shown
from quillgpt.model.gpt import GPT
from quillgpt.model.initialization import INIT_STD
from quillgpt.model.norm import EPSILON
from quillgpt.pretrained.gpt2_names import to_hugging_face

SIZES = {"n_layer", "n_head", "n_embd", "context_length", "vocab_size"}
FREE = SIZES | {"bias", "tied_head", "dropout", "pointwise_length_power", "initialization"}
"""settings that may be anything: a missing bias is a bias of zeros, and the last three change nothing here"""

ACTIVATIONS = {"gelu": "gelu_new", "gelu-exact": "gelu"}
"""our mlp -> their activation_function; the second is nanoGPT's, which transformers knows and llama.cpp does not"""

SAME = {"attention": {"softmax", "explicit"}, "mlp": {*ACTIVATIONS}}
"""values that compute what GPT-2 computes, or what `GPT2LMHeadModel` can be told to"""

PADDED = {"token_embedding.weight", "head.weight"}
"""weights with a row for each token and further rows that belong to nobody"""

WITHOUT_BIAS = PADDED | {"position_embedding.weight"}


def in_the_way(config: ModelConfig) -> list[str]:
    """The settings that make a model something else than GPT-2, as `name = value`; none for a GPT-2 of any size."""
    return [
        f"{setting.name} = {shown(getattr(config, setting.name))}"
        for setting in dataclasses.fields(config)
        if setting.name not in FREE and getattr(config, setting.name) not in SAME.get(setting.name, {setting.default})
    ]


def gpt2_tensors(model: GPT) -> dict[str, Tensor]:
    """The weights by their name and in their shape in `GPT2LMHeadModel`, as views: nothing is copied but zero biases.

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
    """The config.json of `GPT2LMHeadModel`; `n_ctx` is there for llama.cpp's converter."""
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
        "activation_function": ACTIVATIONS[config.mlp],
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
