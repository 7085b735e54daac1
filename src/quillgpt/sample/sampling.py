"""From logits (B, V) to the next token: top-k, temperature and top-p as pure functions.

Dividing by a temperature keeps the order, so top-k comes first and leaves less work.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from quillgpt.errors import NonFiniteError
from quillgpt.sample.settings import SamplingSettings


def sample_tokens(logits: Tensor, settings: SamplingSettings, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of every sample: argmax at temperature 0, otherwise sampled after top-k and then top-p.

    logits: (B, V), on any device, any dtype. generators: one for each sample, on the CPU, so that a seed gives the same
    text on every device. Returns (B,) on the CPU. Non-finite logits are a `NonFiniteError`.
    """
    logits = logits.detach().to("cpu")
    check_logits(logits)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # in 16 bits everything takes 4 times as long
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    candidates, tokens = top_k_logits(logits, settings.top_k)
    probabilities = keep_top_p(with_temperature(candidates, settings.temperature), settings.top_p).softmax(dim=-1)
    points = torch.stack([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    return tokens.gather(-1, multinomial(probabilities, points))[:, 0]


def check_logits(logits: Tensor) -> None:
    """Raise a `NonFiniteError` for a row with NaN, with +inf, or with only -inf; single -inf are valid."""
    if not logits.amax(dim=-1).isfinite().all():  # the maximum of a row with NaN is NaN
        cause = "its weights are damaged or its training diverged"
        raise NonFiniteError(f"the model's logits are NaN or infinite: {cause}; sample an earlier checkpoint")


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits minus their maximum, divided by a temperature above 0, in float64: (B, V).

    Subtracting first keeps the maximum at 0, which a temperature of 1e-30 would otherwise make infinite.
    """
    logits = logits.double()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def top_k_logits(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of V logits and their tokens, both (B, k), ordered by token; all V for k = 0 or k >= V."""
    if k == 0 or k >= logits.shape[-1]:
        return logits, torch.arange(logits.shape[-1]).expand_as(logits)
    tokens = logits.topk(k, dim=-1).indices.sort(dim=-1).values
    return logits.gather(-1, tokens), tokens


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens with total probability p [Holtzman 2020, 3.1].

    Example: probabilities 0.5, 0.3, 0.2 and p = 0.6 keep the first two. The most likely token is always kept.
    """
    if p >= 1.0:
        return logits
    ordered, tokens = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # total probability of the more likely tokens
    kept = ordered.masked_fill(before >= p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, tokens, kept)


def multinomial(probabilities: Tensor, points: Tensor) -> Tensor:
    """The index (B, 1) whose interval of the cumulative probabilities (B, k) contains the point in [0, 1).

    Ordered by token and not by probability, because rounding may swap two equally likely tokens. An index of
    probability 0 has an empty interval and is never sampled.
    """
    ends = probabilities.cumsum(dim=-1)
    return torch.searchsorted(ends, points * ends[:, -1:], right=True).clamp(max=ends.shape[-1] - 1)


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """The random generator of one sample: it depends on the seed and the index, not on the number of samples."""
    digest = hashlib.sha256(f"{seed} {sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
