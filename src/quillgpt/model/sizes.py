"""What follows from the shape of a model: parameters, FLOPs and memory; and the four published GPT-2 models."""

import functools
from collections.abc import Mapping

import torch

from quillgpt.config import ModelConfig
from quillgpt.model.attention import find_attention
from quillgpt.model.attention.entry import AttentionSize
from quillgpt.model.gpt import GPT, padded_vocab_size
from quillgpt.model.lora import adapter_parameter_count
from quillgpt.model.loss import LOSS_CHUNK_ELEMENTS
from quillgpt.model.mlp import MLPS
from quillgpt.model.positions import POSITIONS

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
    """Number of parameters: every weight once, the vocabulary's padding not counted."""
    with torch.device("meta"):  # shapes without memory
        model = GPT(config)
    padding = (padded_vocab_size(config.vocab_size) - config.vocab_size) * config.n_embd
    return sum(parameter.numel() for parameter in model.parameters()) - _vocabulary_tables(config) * padding


def lookup_parameter_count(config: ModelConfig) -> int:
    """Parameters of the tables that are only looked up, and so cost no arithmetic; one table multiplies: the head."""
    positions = config.context_length if POSITIONS[config.position].has_table else 0
    return (positions + (_vocabulary_tables(config) - 1) * config.vocab_size) * config.n_embd


def _vocabulary_tables(config: ModelConfig) -> int:
    """Number of matrices with a row for each token: embedding and head, or one for both, and value embeddings."""
    return (1 if config.tied_head else 2) + ((config.n_layer + 1) // 2 if config.value_embeddings else 0)


def flops_per_token(config: ModelConfig, lora_rank: int = 0) -> int:
    """Floating-point operations to train on one token: 6 N + 12 L C T [Chowdhery 2022, Appendix B].

    N is every parameter but the tables that are only looked up: learned positions, value embeddings, and the token
    embedding where the head has its own weight. A weight costs a multiplication and an addition forward and twice that
    backward: 6. Scores and weighted sums cost as much for each of T = context_length positions and C channels of L
    layers: 12. Attention is counted in full although causality needs half of it, as is usual, so that utilizations can
    be compared. With LoRA a frozen weight needs no gradient, so 4, and a parameter of the adapters 6.
    """
    attention = 12 * config.n_layer * config.n_embd * config.context_length
    weights = parameter_count(config) - lookup_parameter_count(config)
    if lora_rank:
        return 4 * weights + 6 * adapter_parameter_count(config, lora_rank) + attention
    return 6 * weights + attention


def prefill_flops(config: ModelConfig, tokens: int) -> int:
    """Floating-point operations to read a prompt: a third of training's, and the head for one position.

    With P tokens: 2 (N - V C) P + 2 V C + 4 L C P P, attention in full as there.
    """
    head = config.vocab_size * config.n_embd
    blocks = parameter_count(config) - lookup_parameter_count(config) - head
    return 2 * blocks * tokens + 2 * head + 4 * config.n_layer * config.n_embd * tokens * tokens


def estimated_memory_bytes(
    model: ModelConfig, batch_size: int, dtype: str, kind: str = "cpu", lora_rank: int = 0
) -> int:
    """Memory to train: weights, gradients, AdamW's two moments, activations kept for the backward pass, one loss chunk.

    Activations: 34 bytes for each of C channels per token and layer in 16 bits, with a fused attention kernel, which
    keeps no T x T matrix [Korthikanti 2022, section 4.1, less the attention term]. The other terms are measured: what
    the variants of a block and the other attentions keep more. A test holds all to 0.75 to 1.3 times the measured peak.

    With LoRA only the adapters have gradients and moments [Hu 2021, section 4.1]; a frozen weight is its 4 bytes, and
    in 16 bits the copy kept for the backward pass. The activations stay: gradients pass through the frozen layers.
    """
    value_bytes = 4 if dtype == "fp32" else 2
    state = 16 * parameter_count(model)
    if lora_rank:
        frozen_bytes = 4 if dtype == "fp32" else 4 + value_bytes
        state = frozen_bytes * parameter_count(model) + 16 * adapter_parameter_count(model, lora_rank)
    tokens = batch_size * model.context_length
    channels = tokens * model.n_layer * model.n_embd
    channel_bytes = 17 * value_bytes + 4
    channel_bytes += value_bytes * (2 * model.qk_norm + POSITIONS[model.position].saved_values)
    channel_bytes += MLPS[model.mlp].saved_bytes + 9 * (model.dropout > 0)
    size = AttentionSize(
        layers=model.n_layer,
        channels=channels,
        pairs=tokens * model.n_head * model.context_length,
        context_length=model.context_length,
        value_bytes=value_bytes,
        device=kind,
        has_dropout=model.dropout > 0,
    )
    activations = channels * channel_bytes + find_attention(model.attention).saved_bytes(size)
    logits = 2 * 4 * min(tokens * model.vocab_size, LOSS_CHUNK_ELEMENTS)
    return state + activations + logits
