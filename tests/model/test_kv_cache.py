"""Reading a text with a cache, in whatever pieces, gives the logits of reading it at once."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache

CUTS = {
    "prefill, then token by token": [5, 1, 1, 1, 1, 1, 1, 1],
    "token by token from the start": [1] * 12,
    "chunks": [3, 4, 5],
    "all at once": [12],
}


def read_in_pieces(model: GPT, tokens: Tensor, lengths: list[int], cache: KVCache) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(piece, cache) for piece in tokens.split(lengths, dim=1)], dim=1)


@pytest.mark.parametrize("lengths", CUTS.values(), ids=CUTS)
def test_cached_forward_equals_full_forward(
    tiny_gpt: Callable[..., GPT], tokens: Tensor, variant: Mapping[str, object], lengths: list[int]
) -> None:
    model = tiny_gpt(**variant).eval()
    cache = KVCache(model.config, batch_size=2, dtype=torch.float64)

    cached = read_in_pieces(model, tokens, lengths, cache)

    torch.testing.assert_close(cached, model(tokens).detach(), rtol=1e-10, atol=1e-12)
    assert cache.length == 12


def test_a_cleared_cache_is_as_good_as_new(tiny_gpt: Callable[..., GPT], tokens: Tensor) -> None:
    model = tiny_gpt().eval()
    cache = KVCache(model.config, batch_size=2, dtype=torch.float64)
    read_in_pieces(model, tokens.flip(1), [12], cache)

    cache.clear()

    torch.testing.assert_close(read_in_pieces(model, tokens, [4, 4, 4], cache), model(tokens).detach())


def test_a_full_cache_refuses_more_and_stays_as_it_was(tiny_gpt: Callable[..., GPT], tokens: Tensor) -> None:
    model = tiny_gpt().eval()
    cache = KVCache(model.config, batch_size=2, dtype=torch.float64)
    read_in_pieces(model, tokens, [12], cache)

    with pytest.raises(ValueError, match=r"got 13 tokens \(12 in the cache, 1 new\).*context_length = 12"):
        read_in_pieces(model, tokens[:, :1], [1], cache)

    assert cache.length == 12


def test_another_batch_size_than_the_caches_is_refused(tiny_gpt: Callable[..., GPT], tokens: Tensor) -> None:
    model = tiny_gpt().eval()

    with pytest.raises(ValueError, match="got 1 sequences; the cache was made for 2"):
        model(tokens[:1], KVCache(model.config, batch_size=2))


def test_a_cache_may_store_fewer_digits_than_the_model_computes_with(
    tiny_gpt: Callable[..., GPT], tokens: Tensor
) -> None:
    model = tiny_gpt().eval()
    cache = KVCache(model.config, batch_size=2, dtype=torch.bfloat16)

    cached = read_in_pieces(model, tokens, [6, 6], cache)

    assert cached.dtype == torch.float64
    torch.testing.assert_close(cached, model(tokens).detach(), rtol=0, atol=0.001)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16], ids=["fp32 cache", "bf16 cache"])
def test_cached_forward_works_under_bf16_autocast(
    tiny_gpt: Callable[..., GPT], tokens: Tensor, variant: Mapping[str, object], cache_dtype: torch.dtype
) -> None:
    model = tiny_gpt(**variant).float().eval()
    cache = KVCache(model.config, batch_size=2, dtype=cache_dtype)

    with torch.autocast("cpu", torch.bfloat16):
        cached = read_in_pieces(model, tokens, [5, 4, 1, 1, 1], cache)

    torch.testing.assert_close(cached.float(), model(tokens).detach(), rtol=0, atol=0.004)
