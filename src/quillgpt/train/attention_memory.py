"""What an attention of the menu keeps for the backward pass beyond the fused softmax kernel."""

import torch

from quillgpt.config import ModelConfig
from quillgpt.model.attention import gaussian_poly
from quillgpt.model.attention.softmax import is_written_out
from quillgpt.model.written_out import BLOCK_QUERIES

VALUE_DTYPES = {2: torch.bfloat16, 4: torch.float32}
WEIGHT_BYTES = 4  # weights are computed in fp32


def attention_bytes(model: ModelConfig, *, batch_size: int, value_bytes: int, kind: str) -> int:
    """Bytes on the device kind, for values of `value_bytes`; the numbers are measured, and a test holds the whole.

    Written-out weights are kept for every layer up to a block of queries; of a longer context they are computed anew in
    the backward pass, and only a block of one layer exists at a time.
    """
    tokens = batch_size * model.context_length
    numbers = tokens * model.n_layer * model.n_embd
    pairs = tokens * model.n_head * model.context_length
    drops = model.dropout > 0
    if model.attention == "softmax" and is_written_out(kind, VALUE_DTYPES[value_bytes], model.context_length):
        blocks = -(-model.context_length // BLOCK_QUERIES)
        return value_bytes * model.n_layer * pairs * (3 if drops else 1) * (blocks + 1) // (2 * blocks)
    if model.attention == "softmax":
        return 12 * model.n_layer * pairs if drops and kind == "cpu" else 0
    if model.attention == "explicit":
        return model.n_layer * pairs * value_bytes * (3 if drops else 1)
    if model.attention in ("gaussian", "gaussian-normalized") and not drops:
        return numbers * (4 * value_bytes + 3)  # queries, keys and values again, with channels for the norms
    pair_bytes = value_bytes + WEIGHT_BYTES * (_steps(model.attention) + drops)
    if model.context_length > BLOCK_QUERIES:
        return pair_bytes * pairs * BLOCK_QUERIES // model.context_length
    of_distances = 13 * numbers if model.attention.startswith("gaussian") else 0
    return of_distances + model.n_layer * pairs * pair_bytes


def _steps(attention: str) -> int:
    """How many matrices lie between the scores and the weights."""
    if attention.startswith(gaussian_poly.PREFIX):
        power = gaussian_poly.power_of(attention)
        return power.bit_length() - 2 + power.bit_count()
    return {"pointwise-identity": 0, "power": 4}.get(attention, 1)
