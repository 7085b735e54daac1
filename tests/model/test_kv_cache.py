"""Tokens read with a cache, in pieces of any length, give the logits of reading them at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache

NewGPT = Callable[..., GPT]
Variants = dict[str, dict[str, Any]]
PIECES = ([5, *[1] * 7], [1] * 12, [3, 4, 5], [12])  # prompt and steps, steps only, chunks, all at once


def read_in_pieces(model: GPT, tokens: Tensor, lengths: list[int], cache: KVCache) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(piece, cache) for piece in tokens.split(lengths, dim=1)], dim=1)


def test_cached_forward_equals_full_forward(
    subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor, variants: Variants
) -> None:
    for name, settings in variants.items():
        model = tiny_gpt(**settings).eval()
        cache, full = KVCache(model.config, batch_size=2, dtype=torch.float64), model(tokens).detach()
        for lengths in PIECES:
            with subtests.test(name, lengths=lengths):
                cache.clear()
                cached = read_in_pieces(model, tokens, lengths, cache)
                torch.testing.assert_close(cached, full, rtol=1e-10, atol=1e-12)
                assert cache.length == 12


def test_cached_bf16_autocast_is_close_to_the_full_forward(
    subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor, variants: Variants
) -> None:
    for name, settings in variants.items():
        model = tiny_gpt(**settings).float().eval()
        full = model(tokens).detach()
        for dtype in (torch.float32, torch.bfloat16):
            with subtests.test(name, dtype=dtype), torch.autocast("cpu", torch.bfloat16):
                cached = read_in_pieces(model, tokens, [5, 4, 1, 1, 1], KVCache(model.config, 2, dtype=dtype))
                torch.testing.assert_close(cached.float(), full, rtol=0, atol=0.004)


def test_a_narrower_cache_rounds_what_it_holds_and_nothing_else(tiny_gpt: NewGPT) -> None:
    model = tiny_gpt()
    query, key, value = torch.randn(3, 2, 2, 7, 8, dtype=torch.float64)
    cache = KVCache(model.config, batch_size=2, dtype=torch.bfloat16)
    attention = model.blocks[0].attention
    attention.attend(query[:, :, :6], key[:, :, :6], value[:, :, :6], cache)
    cache.advance(6)
    out = attention.attend(query[:, :, 6:], key[:, :, 6:], value[:, :, 6:], cache)
    assert out.dtype == torch.float64
    expected = F.scaled_dot_product_attention(query[:, :, 6:], key.bfloat16().double(), value.bfloat16().double())
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_a_full_cache_and_another_batch_size_are_refused_and_change_nothing(tiny_gpt: NewGPT, tokens: Tensor) -> None:
    model = tiny_gpt().eval()
    cache = KVCache(model.config, batch_size=2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got 1 sequences \(must be 2"):
        model(tokens[:1], cache)
    read_in_pieces(model, tokens, [12], cache)
    with pytest.raises(ValueError, match=r"got 13 tokens \(12 in the cache, 1 new\).*context_length = 12"):
        read_in_pieces(model, tokens[:, :1], [1], cache)
    assert cache.length == 12
    small = KVCache(model.config, batch_size=2, dtype=torch.float64, capacity=4)
    with pytest.raises(ValueError, match=r"got 5 tokens \(0 in the cache, 5 new\).*capacity = 4"):
        model(tokens[:, :5], small)
    assert small.length == 0
