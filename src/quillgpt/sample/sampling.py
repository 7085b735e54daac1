"""From logits (B, V) to the next token: top-k, temperature and top-p as pure functions.

Dividing by a temperature keeps the order, so that top-k can go first and leave less to do.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from quillgpt.errors import NonFiniteError
from quillgpt.sample.settings import SamplingSettings


def choose(logits: Tensor, settings: SamplingSettings, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of every sample: the likeliest at temperature 0, otherwise drawn after top-k and then top-p.

    logits: (B, V), on any device and of any precision. generators: one for each of the B samples, on the CPU, so that a
    seed means the same text everywhere. Returns (B,) on the CPU. Logits that say nothing are a `NonFiniteError`.
    """
    logits = logits.detach().to("cpu")
    check_logits(logits)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # in 16 bits all takes 4 times as long
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    candidates, tokens = largest(logits, settings.top_k)
    probabilities = keep_top_p(with_temperature(candidates, settings.temperature), settings.top_p).softmax(dim=-1)
    points = torch.stack([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    return tokens.gather(-1, drawn(probabilities, points))[:, 0]


def check_logits(logits: Tensor) -> None:
    """Raise a `NonFiniteError` for a row with NaN, with +inf, or with nothing but -inf; single -inf are fine."""
    if not logits.amax(dim=-1).isfinite().all():  # the maximum of a row with NaN is NaN
        cause = "its weights are damaged or its training diverged"
        raise NonFiniteError(f"the model's logits are NaN or infinite: {cause}; sample an earlier checkpoint")


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits minus their maximum, divided by a temperature above 0, in float64: (B, V).

    Subtracting first keeps the likeliest at 0 where 1e-30 would make it infinite.
    """
    logits = logits.double()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of V logits and their tokens, both (B, k), in the order of the tokens; all V for 0 or k >= V.

    What follows is then work on k numbers and not on V.
    """
    if k == 0 or k >= logits.shape[-1]:
        return logits, torch.arange(logits.shape[-1]).expand_as(logits)
    tokens = logits.topk(k, dim=-1).indices.sort(dim=-1).values
    return logits.gather(-1, tokens), tokens


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens that together have probability p, the likeliest first [Holtzman 2020, 3.1].

    Example: probabilities 0.5, 0.3, 0.2 and p = 0.6 keep the first two. The likeliest token always stays.
    """
    if p >= 1.0:
        return logits
    ordered, tokens = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    likelier = probabilities.cumsum(dim=-1) - probabilities  # what the tokens before this one have together
    kept = ordered.masked_fill(likelier >= p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, tokens, kept)


def drawn(probabilities: Tensor, points: Tensor) -> Tensor:
    """Where a point from 0 to below 1 falls when the probabilities (B, k) lie one behind the other: (B, 1).

    In the order of the tokens, so that rounding, which may swap two equally likely ones in any other order, seldom
    changes what is drawn. What has probability 0 takes up no room and is never hit.
    """
    ends = probabilities.cumsum(dim=-1)
    return torch.searchsorted(ends, points * ends[:, -1:], right=True).clamp(max=ends.shape[-1] - 1)


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """The random numbers of one sample: they depend on the seed and its index, not on how many samples are drawn."""
    digest = hashlib.sha256(f"{seed} {sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
