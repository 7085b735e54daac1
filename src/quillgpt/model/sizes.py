"""The four published GPT-2 models, and what follows from a model's shape: parameters and arithmetic."""

import functools
from collections.abc import Mapping

import torch

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT, padded_vocab_size
from quillgpt.model.lora import adapter_parameter_count

SIZES: Mapping[str, ModelConfig] = {
    "gpt2": ModelConfig(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": ModelConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": ModelConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": ModelConfig(n_layer=48, n_head=25, n_embd=1600),
}
"""[Radford 2019, Table 2]; the head counts are those of the released weights"""

PUBLISHED_PARAMETERS: Mapping[str, int] = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
"""numbers in the released weights (Table 2's 117M and 345M are miscounts)"""


@functools.cache
def parameter_count(config: ModelConfig) -> int:
    """How many numbers the model learns: every weight once, the vocabulary's padding not counted."""
    with torch.device("meta"):  # shapes without memory, so that any size can be asked for
        model = GPT(config)
    padding = (padded_vocab_size(config.vocab_size) - config.vocab_size) * config.n_embd
    tables = (1 if config.tied_head else 2) + ((config.n_layer + 1) // 2 if config.value_embeddings else 0)
    return sum(parameter.numel() for parameter in model.parameters()) - tables * padding


def flops_per_token(config: ModelConfig, lora_rank: int = 0) -> int:
    """Floating-point operations to train on one token: 6 N + 12 L C T [Chowdhery 2022, Appendix B].

    N is every parameter but the tables that are only looked up: learned positions, value embeddings, and the token
    embedding where the head has its own weight. A weight costs a multiplication and an addition forward and twice that
    backward: 6. Scores and mixing cost as much for each of the T = context_length positions and C channels of L layers:
    12. Attention is
    counted in full although causality needs half of it, as others do, so that utilisations can be compared.

    With LoRA a frozen weight costs no gradient of its own, so 4, and a number of the adapters 6.
    """
    attention = 12 * config.n_layer * config.n_embd * config.context_length
    weights = parameter_count(config) - looked_up(config)
    if lora_rank:
        return 4 * weights + 6 * adapter_parameter_count(config, lora_rank) + attention
    return 6 * weights + attention


def looked_up(config: ModelConfig) -> int:
    """Parameters of the tables that are only looked up, and so cost no arithmetic."""
    positions = config.context_length * config.n_embd if config.position == "learned" else 0
    tables = (not config.tied_head) + ((config.n_layer + 1) // 2 if config.value_embeddings else 0)
    return positions + tables * config.vocab_size * config.n_embd


def prefill_flops(config: ModelConfig, tokens: int) -> int:
    """Floating-point operations to read a prompt: a third of training's, and the head for one position.

    With P tokens: 2 (N - V C) P + 2 V C + 4 L C P P, attention in full as there.
    """
    head = config.vocab_size * config.n_embd
    blocks = parameter_count(config) - looked_up(config) - head
    return 2 * blocks * tokens + 2 * head + 4 * config.n_layer * config.n_embd * tokens * tokens
