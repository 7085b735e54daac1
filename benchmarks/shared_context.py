"""How much it saves to read the context of a multiple-choice item once: GPT-2 124M with random weights.

    python benchmarks/shared_context.py               # 36 items shaped as HellaSwag's, four endings each, fp32
    python benchmarks/shared_context.py --items 3 --turn-items 1   # a quick look

Four ways score the same items, in turns of a few items in one run, so that whatever else the machine does disturbs all
alike: with shared contexts (what `quill eval` does); all candidates of a turn in batches, each with its own context;
one candidate at a time, with logits only where an ending's token is predicted; and one candidate at a time as it is
written down first, `model(tokens)` with the logits of every position. The goal, at least 2 times the rate, is against
the last; the third says what of it is the sharing alone.

HellaSwag itself is not needed: random tokens take as long. A third of its items are captions of videos and two thirds
passages of how-to articles [Zellers 2019, 3]; the lengths are drawn so that a mean item has the bytes that its
published file has: about 60 tokens of context and 29 of each ending. With 10,042 items there are a hundred of each
length of context, so the contexts of a turn have one length.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from quillgpt.evaluate.likelihood import Request, likelihoods
from quillgpt.hardware import available_cores, cpu_name
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES, parameter_count

GOAL = 2.0
ENDINGS = 4
CONTEXT_TOKENS = ((18, 45), (50, 100), (50, 100))  # a caption of a video, two passages of how-to articles
ENDING_TOKENS = ((8, 16), (25, 50), (25, 50))


class Contender:
    """One way to score, the likelihoods it has found so far and the seconds it took for them."""

    def __init__(self, name: str, score: Callable[[Sequence[Request]], list[float]]) -> None:
        self.name = name
        self.found: list[float] = []
        self.seconds = 0.0
        self._score = score

    def take_turn(self, requests: Sequence[Request]) -> None:
        """Score the candidates of a few items."""
        started = time.perf_counter()
        self.found += self._score(requests)
        self.seconds += time.perf_counter() - started


def turns(count: int, turn_items: int, vocab_size: int) -> list[list[Request]]:
    """The candidates of `turn_items` items, turn by turn: random tokens of HellaSwag's lengths."""
    draw = random.Random(1)

    def words(length: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(vocab_size), k=length))

    found: list[list[Request]] = []
    for number, start in enumerate(range(0, count, turn_items)):
        kind = number % len(CONTEXT_TOKENS)
        length = draw.randint(*CONTEXT_TOKENS[kind])
        contexts = [words(length) for _ in range(min(turn_items, count - start))]
        found.append(
            [
                Request(context=context, continuation=words(draw.randint(*ENDING_TOKENS[kind])))
                for context in contexts
                for _ in range(ENDINGS)
            ]
        )
    return found


def contenders(model: GPT, batch_tokens: int) -> list[Contender]:
    """The four ways; a request that is alone in its call, or has its context to itself, shares nothing."""

    def shared(requests: Sequence[Request]) -> list[float]:
        return [one.log_probability for one in likelihoods(model, requests, batch_tokens=batch_tokens)]

    def batched(requests: Sequence[Request]) -> list[float]:
        found: list[float] = [0.0] * len(requests)
        for ending in range(ENDINGS):  # no two of these have the same context
            found[ending::ENDINGS] = shared(requests[ending::ENDINGS])
        return found

    def one_at_a_time(requests: Sequence[Request]) -> list[float]:
        return [shared([request])[0] for request in requests]

    @torch.no_grad()
    def plainly(requests: Sequence[Request]) -> list[float]:
        found = []
        for request in requests:
            tokens = torch.tensor([[*request.context, *request.continuation]])
            logits = model(tokens[:, :-1])[0, len(request.context) - 1 :]
            found.append(-F.cross_entropy(logits, tokens[0, len(request.context) :], reduction="sum").item())
        return found

    return [
        Contender("shared contexts", shared),
        Contender("batched, not shared", batched),
        Contender("one at a time, only the logits needed", one_at_a_time),
        Contender("one at a time", plainly),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="time likelihoods with and without shared contexts")
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--items", type=int, default=36)
    parser.add_argument("--turn-items", type=int, default=12, help="items that are scored together")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    model = GPT(SIZES[options.size]).eval()
    asked = turns(options.items, options.turn_items, model.config.vocab_size)
    candidates = [request for turn in asked for request in turn]
    print(f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}, fp32")
    context = statistics.fmean(len(request.context) for request in candidates)
    ending = statistics.fmean(len(request.continuation) for request in candidates)
    print(f"{parameter_count(model.config):,} parameters, {options.items} items, {len(candidates)} candidates")
    print(f"on average {context:.0f} tokens of context and {ending:.0f} of ending")
    for contender in contenders(model, options.batch_tokens):
        contender.take_turn(candidates[:ENDINGS])  # the first passes also allocate memory and choose kernels
    race = contenders(model, options.batch_tokens)
    for turn in asked:
        for contender in race:
            contender.take_turn(turn)
    shared = race[0]
    for contender in race:
        worst = max(abs(a - b) for a, b in zip(contender.found, shared.found, strict=True))
        print(
            f"{contender.name:<38} {len(contender.found) / contender.seconds:7.2f} candidates/s  "
            f"{contender.seconds:7.1f} s  {contender.seconds / shared.seconds:5.2f} x the time  "
            f"(at most {worst:.1e} nats apart)"
        )
    ratio = race[-1].seconds / shared.seconds
    print(f"ratio {ratio:.2f} (goal: at least {GOAL:g} times the rate of one at a time)")


if __name__ == "__main__":
    main()
