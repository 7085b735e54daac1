"""The speed of GPT-2 124M in generating and scoring on this CPU, in every form of weights, against Hugging Face.

    python benchmarks/decoding.py one                 # one sequence: tokens/s and its ratio to Hugging Face
    python benchmarks/decoding.py batch               # 16 sequences against one
    python benchmarks/decoding.py prefill             # GFLOP/s, and the share of the fastest matrix product
    python benchmarks/decoding.py memory              # resident memory over 1,000 tokens
    python benchmarks/decoding.py cache               # with the key-value cache and without it
    python benchmarks/decoding.py shared-context      # candidates of multiple-choice items that share a context
    python benchmarks/decoding.py loss runs/python    # bits per byte of a trained model, per form of its weights

All forms have the same random weights. They take turns, so that other work on the machine disturbs all alike; a ratio
is the median over rounds of the ratio within a round. A time includes the prompt, all steps and greedy sampling.
Compilation is timed separately. `quill bench sample` measures any model.
"""

import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import torch
import tyro
from measuring import in_turns, resident_bytes, seconds_of, speedup
from torch.nn import functional as F

from quillgpt.data.dataset import TokenDataset
from quillgpt.errors import ConfigError
from quillgpt.evaluate.likelihood import Request, likelihoods
from quillgpt.evaluate.loss import evaluate_loss
from quillgpt.evaluate.model import open_evaluated_model
from quillgpt.export.gpt2 import gpt2_config, gpt2_tensors
from quillgpt.lab.bench.measure import measure_peak
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES, parameter_count, prefill_flops
from quillgpt.runtime import available_cores
from quillgpt.sample.engine import Generator, RecomputingGenerator, generate_tokens
from quillgpt.sample.optimize import optimize_for_inference
from quillgpt.sample.settings import SamplingSettings
from quillgpt.tokenizer import bytes_per_token

UNPREPARED = "fp32, unprepared"
BF16, INT8, INT4, COMPILED = {"dtype": torch.bfloat16}, {"quantize": "int8"}, {"quantize": "int4"}, {"compile": True}
FORMS: dict[str, dict[str, Any]] = {UNPREPARED: {}, "fp32": {}, "bf16": BF16, "int8": INT8, "int4": INT4}
FORMS |= {"fp32, compiled": COMPILED, "bf16, compiled": BF16 | COMPILED, "int4, compiled": INT4 | COMPILED}
GOALS = {"bf16": "2 times Hugging Face", "bf16, compiled": "2.5 times Hugging Face", "int8": "faster than bf16"}
GOALS |= dict.fromkeys(("int4", "int4, compiled"), "4 times Hugging Face")
REFERENCE = "Hugging Face, bf16"
CACHE_GOAL, SHARING_GOAL, TURN_TOKENS, ENDINGS = 5, 2, 16, 4
CONTEXT_TOKENS = ((18, 45), (50, 100), (50, 100))  # a caption of a video, two passages of how-to articles
ENDING_TOKENS = ((8, 16), (25, 50), (25, 50))


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The model and the lengths. cpu_seconds: processor time, for --threads 1 on a machine with other work."""

    size: str = "gpt2"
    threads: int = available_cores()
    tokens: int = 256
    prompt_tokens: int = 32
    rounds: int = 5
    forms: str = ";".join(FORMS)
    cpu_seconds: bool = False

    def model(self) -> GPT:
        """Print the machine, and return a model of random weights."""
        torch.manual_seed(1)
        kind = "processor seconds" if self.cpu_seconds else "seconds"
        spins = os.environ.get("GOMP_SPINCOUNT", "the library's number of")
        measuring.print_machine(self.threads, f"{kind}; a waiting thread spins {spins} turns")
        model = GPT(SIZES[self.size]).eval()
        print(f"{parameter_count(model.config):,} parameters, random")
        return model

    def prompt(self, model: GPT) -> list[int]:
        return torch.randint(0, model.config.vocab_size, (self.prompt_tokens,)).tolist()

    def clock(self) -> measuring.Clock:
        return time.process_time if self.cpu_seconds else time.perf_counter

    def ready_forms(self, model: GPT, *, compiled: bool = False) -> Iterator[tuple[str, GPT]]:
        """The model in each form, after printing the seconds to compile it."""
        for name in [name.strip() for name in self.forms.split(";")]:
            if "compiled" in name and not compiled:
                continue
            ready = model if name == UNPREPARED else optimize_for_inference(model, **FORMS[name])
            if "compiled" in name:
                first, second = (seconds_of(partial(generate, ready, [1, 2, 3], 4), self.clock()) for _ in range(2))
                print(f"{name}: {first - second:.1f} s to compile")
            yield name, ready


def generate(model: GPT, prompt: list[int], count: int, samples: int = 1) -> object:
    settings = SamplingSettings(temperature=0, max_new_tokens=count)
    return list(generate_tokens(Generator(model, len(prompt) + count), prompt, settings, range(samples)))


def hugging_face(model: GPT) -> Any:
    """Hugging Face's model with our weights, in bf16."""
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config.from_dict(dict(gpt2_config(model.config, end_of_text=0))))
    keys = theirs.load_state_dict(gpt2_tensors(model), strict=False)
    assert not keys.unexpected_keys
    assert set(keys.missing_keys) <= {"lm_head.weight"}
    theirs.tie_weights()
    return theirs.to(torch.bfloat16).eval()


@torch.inference_mode()
def generate_theirs(theirs: Any, prompt: list[int], count: int) -> object:
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}
    return theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **settings)


def one(setup: Setup = Setup()) -> None:
    """Tokens per second of one sequence."""
    model = setup.model()
    prompt = setup.prompt(model)
    writers: dict[str, Callable[[int], object]] = {REFERENCE: partial(generate_theirs, hugging_face(model), prompt)}
    forms = setup.ready_forms(model, compiled=True)
    writers |= {name: partial(generate, ready, prompt) for name, ready in forms}
    for write in writers.values():
        write(4)  # warm-up
    works = {name: partial(write, setup.tokens) for name, write in writers.items()}
    seconds = in_turns(works, setup.rounds, setup.clock())
    print(f"one sequence, prompt {setup.prompt_tokens}, {setup.tokens} new tokens, {setup.rounds} rounds")
    for name, taken in seconds.items():
        speed, best = setup.tokens / statistics.median(taken), setup.tokens / min(taken)
        goal = f"  goal: {GOALS[name]}" if name in GOALS else ""
        print(f"  {name:<20}{speed:7.1f} tokens/s (best {best:6.1f})  x {speedup(seconds[REFERENCE], taken)}{goal}")
    for form, other in (("fp32", UNPREPARED), ("fp32, compiled", UNPREPARED), ("int8", "bf16")):
        if {form, other} <= seconds.keys():
            print(f"  {form} is {speedup(seconds[other], seconds[form])} times as fast as {other}")


def batch(setup: Setup = Setup()) -> None:
    """Tokens per second of sixteen sequences in a batch and of one; the goal is 4 times as many."""
    model = setup.model()
    prompt = setup.prompt(model)
    for name, ready in setup.ready_forms(model):
        generate(ready, prompt, 4)
        works = {count: partial(generate, ready, prompt, setup.tokens, count) for count in (1, 16)}
        taken = in_turns({str(count): work for count, work in works.items()}, max(1, setup.rounds // 2), setup.clock())
        total = [seconds / 16 for seconds in taken["16"]]
        speed = f"{setup.tokens / statistics.median(total):7.1f} tokens/s, x {speedup(taken['1'], total)} of one"
        print(f"  {name:<8} 16 sequences: {speed}  goal (bf16): 4")


def prefill(setup: Setup = Setup(), length: int = 512) -> None:
    """FLOP/s of reading a prompt, against the fastest matrix product in bf16.

    Attention counts below the diagonal only, and the head once.
    """
    model = setup.model()
    config = model.config
    work = prefill_flops(config, length) - 2 * config.n_layer * config.n_embd * length * length
    tokens = torch.randint(0, config.vocab_size, (1, length))
    for name, ready in setup.ready_forms(model):
        generator = Generator(ready)
        generator.prefill(tokens)
        shares, speeds = [], []
        for _ in range(3 * setup.rounds):
            peak = measure_peak("cpu", "bf16", seconds=0.3).measured_flops
            speeds.append(work / seconds_of(partial(generator.prefill, tokens), setup.clock()))
            shares.append(speeds[-1] / peak)
        share, speed = statistics.median(shares), statistics.median(speeds)
        goal = "  goal: 65 %" if name == "bf16" else ""
        print(f"  {name:<8} prefill of {length}: {speed / 1e9:.0f} GFLOP/s, {share:.0%} of the bf16 peak{goal}")


def memory(setup: Setup = Setup()) -> None:
    """Resident memory while 1,000 tokens are generated; the goal is no growth."""
    for name, ready in setup.ready_forms(setup.model()):
        settings = SamplingSettings(temperature=0, max_new_tokens=1000)
        held = [resident_bytes() for _ in generate_tokens(Generator(ready, 1016), list(range(16)), settings, [0])]
        growth = (held[-1] - held[20]) / 1e6
        print(f"  {name:<8} resident memory: {held[20] / 1e6:.0f} MB after 20 tokens, {growth:+.1f} MB after 1,000")


def cache(setup: Setup = Setup(prompt_tokens=256)) -> None:
    """The speed of generating the same text with the key-value cache and without it, in turns of a few tokens.

    The reference also computes the logits of the last position only.
    """
    model = setup.model()
    prompt = setup.prompt(model)
    settings = SamplingSettings(temperature=0, max_new_tokens=setup.tokens)
    sides: dict[str, Generator | RecomputingGenerator] = {
        "with the cache": Generator(model),
        "recomputing": RecomputingGenerator(model),
    }
    texts: dict[str, list[int]] = {name: [] for name in sides}
    seconds = dict.fromkeys(sides, 0.0)
    for side in sides.values():
        list(generate_tokens(side, prompt, replace(settings, max_new_tokens=2), [0]))  # warm-up
    steps = {name: generate_tokens(side, prompt, settings, [0]) for name, side in sides.items()}
    for _ in range(0, setup.tokens, TURN_TOKENS):
        for name, tokens in steps.items():
            part = itertools.islice(tokens, TURN_TOKENS)
            seconds[name] += seconds_of(lambda to=texts[name], part=part: to.extend(int(token) for token in part))
    for name, taken in seconds.items():
        print(f"{name:<15} {setup.tokens / taken:7.2f} tokens/s  {taken:8.1f} s")
    cached, recomputing = seconds.values()
    equal = len({tuple(text) for text in texts.values()}) == 1
    print(f"ratio {recomputing / cached:.2f} (goal: at least {CACHE_GOAL}); tokens equal: {equal}")


def shared_context(setup: Setup = Setup(), items: int = 36, turn_items: int = 12, batch_tokens: int = 4096) -> None:
    """The gain from reading the context of a multiple-choice item once.

    Four ways score the same items in turns: with shared contexts (as `quill eval` does); all candidates of a turn in
    batches, each with its own context; one candidate at a time, with only the logits that are needed; and one at a
    time with all logits, `model(tokens)`. The goal, at least 2 times the rate, is against the last one.

    The items are random tokens with the lengths of HellaSwag: a third are captions of videos and two thirds passages
    of how-to articles [Zellers 2019, 3], with the mean size of the published file. The contexts of a turn have the same
    length, as the complete set has a hundred of each length.

    Args:
        turn_items: items that are scored together
    """
    model = setup.model()
    turns = items_in_turns(items, turn_items, model.config.vocab_size)
    candidates = [request for turn in turns for request in turn]
    context = statistics.fmean(len(request.context) for request in candidates)
    ending = statistics.fmean(len(request.continuation) for request in candidates)
    print(f"{items} items, {len(candidates)} candidates of {context:.0f} tokens of context and {ending:.0f} of ending")
    ways = ways_to_score(model, batch_tokens)
    found: dict[str, list[float]] = {name: [] for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for score in ways.values():
        score(candidates[:ENDINGS])  # warm-up
    for turn in turns:
        for name, score in ways.items():
            seconds[name] += seconds_of(lambda to=found[name], score=score, turn=turn: to.extend(score(turn)))
    shared = next(iter(ways))
    for name, taken in seconds.items():
        worst = max(abs(a - b) for a, b in zip(found[name], found[shared], strict=True))
        rate, ratio = len(candidates) / taken, taken / seconds[shared]
        print(f"{name:<38} {rate:7.2f} candidates/s  {ratio:5.2f} x the time  (at most {worst:.1e} nats apart)")
    print(f"goal: at least {SHARING_GOAL} times the rate of one at a time")


def items_in_turns(count: int, turn_items: int, vocab_size: int) -> list[list[Request]]:
    """The candidates of `turn_items` items per turn: random tokens of HellaSwag's lengths."""
    generator = random.Random(1)

    def words(length: int) -> tuple[int, ...]:
        return tuple(generator.choices(range(vocab_size), k=length))

    found: list[list[Request]] = []
    for number, start in enumerate(range(0, count, turn_items)):
        kind = number % len(CONTEXT_TOKENS)
        length = generator.randint(*CONTEXT_TOKENS[kind])
        contexts = [words(length) for _ in range(min(turn_items, count - start))]
        endings = [(context, generator.randint(*ENDING_TOKENS[kind])) for context in contexts for _ in range(ENDINGS)]
        found.append([Request(context=context, continuation=words(size)) for context, size in endings])
    return found


def ways_to_score(model: GPT, batch_tokens: int) -> dict[str, Callable[[Sequence[Request]], list[float]]]:
    """The four ways of scoring; a request that is alone in its call, or has its own context, shares nothing."""

    def shared(requests: Sequence[Request]) -> list[float]:
        return [one.log_probability for one in likelihoods(model, requests, batch_tokens=batch_tokens)]

    def batched(requests: Sequence[Request]) -> list[float]:
        found = [0.0] * len(requests)
        for ending in range(ENDINGS):  # no two of these have the same context
            found[ending::ENDINGS] = shared(requests[ending::ENDINGS])
        return found

    @torch.no_grad()
    def plain(requests: Sequence[Request]) -> list[float]:
        found = []
        for request in requests:
            tokens = torch.tensor([[*request.context, *request.continuation]])
            logits = model(tokens[:, :-1])[0, len(request.context) - 1 :]
            found.append(-F.cross_entropy(logits, tokens[0, len(request.context) :], reduction="sum").item())
        return found

    return {
        "shared contexts": shared,
        "batched, not shared": batched,
        "one at a time, only the logits needed": lambda requests: [shared([request])[0] for request in requests],
        "one at a time": plain,
    }


def loss(run: tyro.conf.Positional[str], data: str = "", eval_tokens: int = 65_536) -> None:
    """Validation bits per byte in every form, and the difference to fp32.

    Args:
        run: a trained model: run, checkpoint or gpt2
        data: prepared data; empty: the run's own
    """
    opened = open_evaluated_model(run)
    model = opened.load("cpu").eval()
    if not data and opened.own_data is None:
        raise ConfigError(f"{run}: its own data is unknown; give --data")
    directory = Path(data) if data or opened.own_data is None else opened.own_data.find(run)
    text = TokenDataset.open(directory, "val")
    windows = text.windows(model.config.context_length, eval_tokens)
    size = f"{parameter_count(model.config):,} parameters"
    print(f"{run}: {size}, {windows.target_count:,} tokens of {text.name}")
    exact = None
    for name in (name for name in FORMS if "compiled" not in name and name != UNPREPARED):
        ready = optimize_for_inference(model, **FORMS[name])
        found = evaluate_loss(ready, windows, bytes_per_token(opened.tokenizer), batch_size=1).bits_per_byte
        exact = exact or found
        print(f"  {name:<8} {found:.4f} bits per byte, {found - exact:+.5f} ({found / exact - 1:+.3%})")


if __name__ == "__main__":
    commands = {"one": one, "batch": batch, "prefill": prefill, "memory": memory, "cache": cache}
    measuring.run_script(__doc__, commands | {"shared-context": shared_context, "loss": loss})
