"""Likelihoods equal the slow way (one candidate at a time, the entire sequence) and transformers."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from quillgpt.checkpoint import load_model
from quillgpt.config import ModelConfig
from quillgpt.errors import DataError, NonFiniteError
from quillgpt.evaluate import likelihood
from quillgpt.evaluate.likelihood import Likelihood, Request, likelihoods
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.positions import POSITIONS

logging.disable_progress_bar()


def tiny_gpt(**settings: object) -> GPT:
    torch.manual_seed(1)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 24, "vocab_size": 67}
    return GPT(ModelConfig(**(shape | settings))).double()


def request(context: Sequence[int], continuation: Sequence[int]) -> Request:
    return Request(context=tuple(context), continuation=tuple(continuation))


def random_requests() -> list[Request]:
    """Candidates of several lengths, of one token, and alone, after contexts of equal and of different lengths."""
    generator = random.Random(3)

    def words(count: int) -> list[int]:
        return [generator.randrange(67) for _ in range(count)]

    found = []
    for length in (5, 5, 5, 1, 9):
        context = words(length)
        found += [request(context, words(generator.randrange(1, 9))) for _ in range(4)]
    context = words(7)
    found += [request(context, [token]) for token in (1, 2, 3)]  # no token is read after the context
    return found + [request(words(generator.randrange(1, 12)), words(generator.randrange(1, 6))) for _ in range(6)]


REQUESTS = random_requests()


@torch.no_grad()
def slow_likelihood(model: GPT, one: Request) -> tuple[float, bool]:
    """Log-probability and greediness from all logits of the sequence."""
    model.eval()
    tokens = torch.tensor([*one.context, *one.continuation])
    logits = F.log_softmax(model(tokens[None, :-1])[0], dim=-1)[len(one.context) - 1 :]
    targets = tokens[len(one.context) :]
    return logits.gather(1, targets[:, None]).sum().item(), bool((logits.argmax(dim=-1) == targets).all())


def values(found: list[Likelihood]) -> list[float]:
    return [one.log_probability for one in found]


def test_likelihoods_equal_the_slow_way_for_every_attention_and_position() -> None:
    entries = list(ATTENTION)
    for i, attention in enumerate(entries):  # every attention with one position, every position with two attentions
        for position in POSITIONS if i < 2 else [list(POSITIONS)[i % len(POSITIONS)]]:
            model = tiny_gpt(attention=attention, position=position)
            found = likelihoods(model, REQUESTS)
            expected = [slow_likelihood(model, one)[0] for one in REQUESTS]
            assert values(found) == pytest.approx(expected, rel=1e-10), (attention, position)
            assert [one.tokens for one in found] == [len(one.continuation) for one in REQUESTS]


def test_only_the_models_own_continuation_is_greedy() -> None:
    model = tiny_gpt()
    tokens = [5, 6, 7]
    for _ in range(6):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    greedy = tokens[3:]
    other = [*greedy[:3], (greedy[3] + 1) % 67, *greedy[4:]]
    found = likelihoods(model, [request(tokens[:3], greedy), request(tokens[:3], other), request([5, 6], [7])])
    assert [one.is_greedy for one in found] == [True, False, slow_likelihood(model, request([5, 6], [7]))[1]]


def test_likelihoods_equal_transformers(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=24, vocab_size=67, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(4)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    for one, found in zip(REQUESTS, likelihoods(load_model(tmp_path)[0], REQUESTS), strict=True):
        tokens = torch.tensor([[*one.context, *one.continuation]])
        with torch.no_grad():
            logits = F.log_softmax(theirs(tokens).logits[0, len(one.context) - 1 : -1], dim=-1)
        expected = logits.gather(1, tokens[0, len(one.context) :, None]).sum().item()
        assert found.log_probability == pytest.approx(expected, rel=1e-5)


def test_the_batch_size_changes_no_likelihood() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        model = tiny_gpt().to(dtype)
        expected = [slow_likelihood(model, one) for one in REQUESTS]
        for batch_tokens in (1, 13, 40, 4096):
            found = likelihoods(model, REQUESTS, batch_tokens=batch_tokens)
            assert values(found) == pytest.approx([value for value, _ in expected], rel=tolerance), batch_tokens
            assert [one.is_greedy for one in found] == [is_greedy for _, is_greedy in expected], batch_tokens


def test_order_and_padding_change_no_likelihood() -> None:
    model = tiny_gpt().float()
    expected = dict(zip(REQUESTS, likelihoods(model, REQUESTS, batch_tokens=50), strict=True))
    shuffled = random.Random(1).sample(REQUESTS, len(REQUESTS))
    assert likelihoods(model, shuffled, batch_tokens=50) == [expected[one] for one in shuffled]
    model = tiny_gpt()
    pair = [request([1, 2, 3], [4]), request([1, 2, 3], [5, 6])]
    with_long_one = likelihoods(model, [*pair, request([1, 2, 3], range(20))])
    assert values(with_long_one[:2]) == pytest.approx(values(likelihoods(model, pair)), rel=1e-12)


Seen = dict[str, list[int]]


def recorded(model: GPT, monkeypatch: pytest.MonkeyPatch, requests: list[Request], **settings: int) -> Seen:
    """Tokens of each forward pass, room of each cache, and rows of each product that gives logits."""
    seen: Seen = {"read": [], "room": [], "logits": []}
    hidden, logits, initialize = GPT.hidden, GPT.logits, KVCache.__init__

    def record_hidden(self: GPT, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        seen["read"].append(tokens.numel())
        return hidden(self, tokens, cache)

    def record_logits(self: GPT, states: Tensor) -> Tensor:
        seen["logits"].append(states.shape[:-1].numel())
        return logits(self, states)

    def record_cache(self: KVCache, *arguments: object, **options: int) -> None:
        initialize(self, *arguments, **options)
        seen["room"].append(self.batch_size * self.capacity)

    with monkeypatch.context() as patch:
        patch.setattr(GPT, "hidden", record_hidden)
        patch.setattr(GPT, "logits", record_logits)
        patch.setattr(KVCache, "__init__", record_cache)
        likelihoods(model, requests, **settings)
    return seen


def test_a_shared_context_is_read_once_and_only_continuations_get_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]]
    requests = [request(context, [first, 9, 9]) for context in contexts for first in (1, 2, 3, 4)]
    seen = recorded(tiny_gpt(), monkeypatch, requests)
    assert seen["read"] == [2 * 7, 8 * 2]  # both contexts; of each candidate all but the last token
    assert seen["room"] == [2 * 7, 8 * (7 + 2)]  # and not context_length for each
    assert sum(seen["logits"]) == 8 * 3


def test_equal_requests_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, twice = tiny_gpt().float(), [*REQUESTS, *reversed(REQUESTS)]
    assert recorded(model, monkeypatch, REQUESTS) == recorded(model, monkeypatch, twice)
    found = likelihoods(model, twice)
    assert found == found[::-1]


def test_memory_is_bounded_by_the_batch_or_by_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "LOGIT_ELEMENTS", 67 * 3)
    longest = max(len(one.context) + len(one.continuation) - 1 for one in REQUESTS)
    for batch_tokens in (1, 13, 40):
        seen = recorded(tiny_gpt(), monkeypatch, REQUESTS, batch_tokens=batch_tokens)
        assert max(seen["read"] + seen["room"]) <= max(batch_tokens, longest), batch_tokens
        assert max(seen["logits"]) <= 3


def test_a_context_that_is_too_long_loses_its_left_end_and_is_counted() -> None:
    model = tiny_gpt()
    long = [token % 67 for token in range(40)]
    fits, cut = request(long[:22], [1, 2, 3]), request(long[:23], [1, 2, 3])  # 24 are read, the last is not
    longer = [request(long, [1, 2, 3]), request(long, [4]), request(long, range(24))]
    found = likelihoods(model, [fits, cut, *longer])
    assert [one.was_cut for one in found] == [False, True, True, True, True]
    kept = [request(long[-22:], [1, 2, 3]), request(long[-24:], [4]), request(long[-1:], range(24))]
    assert values(found[2:]) == pytest.approx([slow_likelihood(model, one)[0] for one in kept], rel=1e-10)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match=r"^a continuation of 25 tokens .* context_length = 24; use a model with.*$"):
        likelihoods(tiny_gpt(), [request([1], range(25))])
    for context, continuation in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="at least one token"):
            request(context, continuation)
    model = tiny_gpt()
    model.final_norm.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the model gives NaN"):
        likelihoods(model, REQUESTS)
    assert likelihoods(model, []) == []


def test_no_random_number_is_drawn_and_the_mode_stays() -> None:
    model = tiny_gpt(dropout=0.5).train()
    before = torch.get_rng_state()
    first = likelihoods(model, REQUESTS)
    assert likelihoods(model, REQUESTS) == first  # with dropout on, these would differ
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_counts_up_to_all_requests() -> None:
    counts: list[int] = []
    likelihoods(tiny_gpt(), [*REQUESTS, *REQUESTS], batch_tokens=40, progress=counts.append)
    assert counts == sorted(counts)
    assert counts[-1] == 2 * len(REQUESTS)
    assert len(counts) > 5


def test_bf16_is_near_fp32() -> None:
    model = tiny_gpt().float()
    exact, rounded = likelihoods(model, REQUESTS), likelihoods(model, REQUESTS, dtype=torch.bfloat16)
    assert values(rounded) == pytest.approx(values(exact), rel=1e-2)
    assert values(rounded) != values(exact)
