"""Likelihoods against the slow way (one candidate at a time, the whole sequence) and against transformers."""

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

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 24, "vocab_size": 67}


def tiny_gpt(**settings: object) -> GPT:
    torch.manual_seed(1)
    return GPT(ModelConfig(**(SHAPE | settings))).double()


def request(context: Sequence[int], continuation: Sequence[int]) -> Request:
    return Request(context=tuple(context), continuation=tuple(continuation))


def some_requests() -> list[Request]:
    """Items with four candidates of unequal lengths, of one token, with contexts of equal and other lengths, alone."""
    draw = random.Random(3)

    def words(count: int) -> list[int]:
        return [draw.randrange(67) for _ in range(count)]

    found = []
    for length in (5, 5, 5, 1, 9):
        context = words(length)
        found += [request(context, words(draw.randrange(1, 9))) for _ in range(4)]
    context = words(7)
    found += [request(context, [token]) for token in (1, 2, 3)]  # nothing is read after the context
    found += [request(words(draw.randrange(1, 12)), words(draw.randrange(1, 6))) for _ in range(6)]
    return found


@torch.no_grad()
def slowly(model: GPT, one: Request) -> tuple[float, bool]:
    """The whole sequence by itself, all logits."""
    model.eval()
    tokens = torch.tensor([*one.context, *one.continuation])
    logits = F.log_softmax(model(tokens[None, :-1])[0], dim=-1)[len(one.context) - 1 :]
    targets = tokens[len(one.context) :]
    return logits.gather(1, targets[:, None]).sum().item(), bool((logits.argmax(dim=-1) == targets).all())


def values(found: list[Likelihood]) -> list[float]:
    return [one.log_probability for one in found]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_every_attention_and_position_gives_what_the_slow_way_gives(attention: str, position: str) -> None:
    model = tiny_gpt(attention=attention, position=position)
    requests = some_requests()
    found = likelihoods(model, requests)
    assert values(found) == pytest.approx([slowly(model, one)[0] for one in requests], rel=1e-10)
    assert [one.tokens for one in found] == [len(one.continuation) for one in requests]


def test_the_model_s_own_choices_are_greedy_and_one_other_token_is_not() -> None:
    model = tiny_gpt()
    tokens = [5, 6, 7]
    for _ in range(6):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    chosen = tokens[3:]
    other = [*chosen[:3], (chosen[3] + 1) % 67, *chosen[4:]]
    found = likelihoods(model, [request(tokens[:3], chosen), request(tokens[:3], other), request([5, 6], [7])])
    assert [one.is_greedy for one in found] == [True, False, slowly(model, request([5, 6], [7]))[1]]


def test_the_same_as_transformers_gpt2(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=24, vocab_size=67, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(4)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)[0]
    for one, found in zip(some_requests(), likelihoods(model, some_requests()), strict=True):
        tokens = torch.tensor([[*one.context, *one.continuation]])
        with torch.no_grad():
            logits = F.log_softmax(theirs(tokens).logits[0, len(one.context) - 1 : -1], dim=-1)
        expected = logits.gather(1, tokens[0, len(one.context) :, None]).sum().item()
        assert found.log_probability == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 13, 40, 4096])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["64", "32"])
def test_the_batch_size_does_not_change_a_likelihood(batch_tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    model = tiny_gpt().to(dtype)
    requests = some_requests()
    expected = [slowly(model, one) for one in requests]
    found = likelihoods(model, requests, batch_tokens=batch_tokens)
    assert values(found) == pytest.approx([value for value, _ in expected], rel=tolerance)
    assert [one.is_greedy for one in found] == [is_greedy for _, is_greedy in expected]


def test_the_order_of_the_requests_does_not_change_a_bit() -> None:
    model = tiny_gpt().float()
    requests = some_requests()
    of = dict(zip(requests, likelihoods(model, requests, batch_tokens=50), strict=True))
    shuffled = random.Random(1).sample(requests, len(requests))
    assert likelihoods(model, shuffled, batch_tokens=50) == [of[one] for one in shuffled]


def test_what_a_candidate_is_padded_to_does_not_change_it() -> None:
    model = tiny_gpt()
    short, other = request([1, 2, 3], [4]), request([1, 2, 3], [5, 6])
    alone = likelihoods(model, [short, other])
    beside_a_long_one = likelihoods(model, [short, other, request([1, 2, 3], range(20))])
    assert values(beside_a_long_one[:2]) == pytest.approx(values(alone), rel=1e-12)


def test_equal_requests_get_equal_likelihoods_and_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gpt().float()
    requests = some_requests()
    once = watched(model, monkeypatch, requests)
    twice = watched(model, monkeypatch, [*requests, *reversed(requests)])
    assert once == twice
    found = likelihoods(model, [*requests, *reversed(requests)])
    assert found == found[::-1]


Seen = dict[str, list[int]]


def watched(model: GPT, monkeypatch: pytest.MonkeyPatch, requests: list[Request], **settings: int) -> Seen:
    """Tokens of each reading, tokens that each cache has room for, and rows of logits made at a time."""
    seen: Seen = {"read": [], "room": [], "logits": []}
    hidden, logits, made = GPT.hidden, GPT.logits, KVCache.__init__

    def read(self: GPT, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        seen["read"].append(tokens.numel())
        return hidden(self, tokens, cache)

    def read_off(self: GPT, states: Tensor) -> Tensor:
        seen["logits"].append(states.shape[:-1].numel())
        return logits(self, states)

    def make(self: KVCache, config: ModelConfig, *arguments: object) -> None:
        made(self, config, *arguments)
        seen["room"].append(self.batch_size * config.context_length)

    with monkeypatch.context() as patch:
        patch.setattr(GPT, "hidden", read)
        patch.setattr(GPT, "logits", read_off)
        patch.setattr(KVCache, "__init__", make)
        likelihoods(model, requests, **settings)
    return seen


def test_a_shared_context_is_read_once_and_logits_are_made_for_continuations_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contexts = [[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]]
    requests = [request(context, [first, 9, 9]) for context in contexts for first in (1, 2, 3, 4)]
    seen = watched(tiny_gpt(), monkeypatch, requests)
    assert seen["read"] == [2 * 7, 8 * 2]  # both contexts; of each candidate all but the last token
    assert seen["room"] == [2 * 7, 8 * (7 + 2)]  # and not context_length for each
    assert sum(seen["logits"]) == 8 * 3


@pytest.mark.parametrize("batch_tokens", [1, 13, 40])
def test_memory_is_bounded_by_the_batch_or_by_one_sequence(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "LOGIT_ELEMENTS", 67 * 3)
    seen = watched(tiny_gpt(), monkeypatch, some_requests(), batch_tokens=batch_tokens)
    longest = max(len(one.context) + len(one.continuation) - 1 for one in some_requests())
    assert max(seen["read"] + seen["room"]) <= max(batch_tokens, longest)
    assert max(seen["logits"]) <= 3


def test_a_context_that_is_too_long_loses_its_left_end_and_is_counted() -> None:
    model = tiny_gpt()
    long = [token % 67 for token in range(40)]
    whole, cut = request(long[:22], [1, 2, 3]), request(long[:23], [1, 2, 3])  # 24 are read, the last is not
    longer = [request(long, [1, 2, 3]), request(long, [4]), request(long, range(24))]
    found = likelihoods(model, [whole, cut, *longer])
    assert [one.was_cut for one in found] == [False, True, True, True, True]
    kept = [request(long[-22:], [1, 2, 3]), request(long[-24:], [4]), request(long[-1:], range(24))]
    assert values(found[2:]) == pytest.approx([slowly(model, one)[0] for one in kept], rel=1e-10)


def test_a_continuation_longer_than_the_context_is_one_clear_error() -> None:
    with pytest.raises(
        DataError, match=r"a continuation of 25 tokens .* context_length = 24; use a model with"
    ) as found:
        likelihoods(tiny_gpt(), [request([1], range(25))])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([1], [])])
def test_nothing_to_score_or_nothing_to_score_it_after_is_refused(context: list[int], continuation: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        request(context, continuation)


def test_no_random_number_is_drawn_and_the_mode_stays() -> None:
    model = tiny_gpt(dropout=0.5).train()
    before = torch.get_rng_state()
    first = likelihoods(model, some_requests())
    assert likelihoods(model, some_requests()) == first  # with dropout on, these would differ
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_heartbeat_counts_up_to_all_requests() -> None:
    beats: list[int] = []
    requests = [*some_requests(), *some_requests()]
    likelihoods(tiny_gpt(), requests, batch_tokens=40, heartbeat=beats.append)
    assert beats == sorted(beats)
    assert beats[-1] == len(requests)
    assert len(beats) > 5


def test_nothing_asked_is_nothing_answered() -> None:
    assert likelihoods(tiny_gpt(), []) == []


def test_bf16_is_near_fp32_with_a_cache_and_without() -> None:
    model = tiny_gpt().float()
    exact = likelihoods(model, some_requests())
    rounded = likelihoods(model, some_requests(), dtype=torch.bfloat16)
    assert values(rounded) == pytest.approx(values(exact), rel=1e-2)
    assert values(rounded) != values(exact)


def test_a_model_that_gives_nan_is_no_result() -> None:
    model = tiny_gpt()
    with torch.no_grad():
        model.final_norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the model gives NaN"):
        likelihoods(model, some_requests())
