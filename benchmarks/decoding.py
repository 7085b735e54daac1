"""How fast GPT-2 124M writes on this CPU, every form of weights beside Hugging Face's `generate` in one run.

    python benchmarks/decoding.py                       # all; about ten minutes on two cores
    python benchmarks/decoding.py --parts one           # one sequence: tokens/s and its ratio to Hugging Face
    python benchmarks/decoding.py --parts batch,prefill,memory
    python benchmarks/decoding.py --parts loss --run runs/python     # bits per byte of a trained model, per form

Random weights, the same for all. The contenders take turns, a text of `--tokens` each, and the ratio is the median over
rounds of the ratio within a round, so that whatever else the machine does disturbs both alike. A time is that of all:
reading the prompt, every step, choosing the token. Greedy. Compiling is a time of its own, in no other.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import as_quill  # noqa: F401  (first)
import torch

from quillgpt.bench.machine import matmul_peak
from quillgpt.errors import ConfigError
from quillgpt.evaluate.held_out_loss import evaluate_held_out
from quillgpt.evaluate.held_out_text import own_split
from quillgpt.hardware import available_cores, cpu_name
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES, parameter_count
from quillgpt.pretrained.gpt2_names import to_hugging_face
from quillgpt.sample.generator import Generator, continued
from quillgpt.sample.prepare import prepared
from quillgpt.sample.settings import SamplingSettings
from quillgpt.tokenizer import bytes_per_token
from quillgpt.train.subject import open_subject

UNPREPARED = "fp32, unprepared"
FORMS = {
    UNPREPARED: {},
    "fp32": {},
    "bf16": {"dtype": torch.bfloat16},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "fp32, compiled": {"compile": True},
    "bf16, compiled": {"dtype": torch.bfloat16, "compile": True},
    "int4, compiled": {"quantize": "int4", "compile": True},
}
GOALS = {
    "bf16": "2 times Hugging Face",
    "bf16, compiled": "2.5 times Hugging Face",
    "int8": "faster than bf16",
    "int4": "4 times Hugging Face",
    "int4, compiled": "4 times Hugging Face",
}
REFERENCE = "Hugging Face, bf16"
Writes = Callable[[int], object]
CLOCK = [time.perf_counter]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time decoding beside Hugging Face's generate")
    parser.add_argument("--parts", default="one,batch,prefill,memory", help="of one, batch, prefill, memory, loss")
    parser.add_argument("--forms", default=";".join(FORMS), help="with semicolons between")
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--cpu-seconds", action="store_true", help="the process's own; with --threads 1, if it is busy")
    parser.add_argument("--run", default="", help="a trained model for the part loss: run, checkpoint or gpt2")
    parser.add_argument("--data", default="", help="prepared data for the part loss; nothing: the run's own")
    parser.add_argument("--eval-tokens", type=int, default=65_536, help="held-out tokens for the part loss")
    return parser.parse_args()


def hugging_face(model: GPT) -> object:
    """Their model with our weights, in bf16."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    sizes = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=config.vocab_size, n_positions=config.context_length))
    tensors = {}
    for name, tensor in model.state_dict().items():
        their_name, is_transposed = to_hugging_face(name)
        rows = tensor[: config.vocab_size] if name == "token_embedding.weight" else tensor
        tensors[their_name] = rows.T if is_transposed else rows
    keys = theirs.load_state_dict(tensors, strict=False)
    assert not keys.unexpected_keys
    assert set(keys.missing_keys) <= {"lm_head.weight"}
    theirs.tie_weights()
    return theirs.to(torch.bfloat16).eval()


def writer_of(theirs: object, prompt: list[int]) -> Writes:
    """A function that writes so many tokens with Hugging Face's generate and its cache."""

    def write(count: int) -> object:
        ids = torch.tensor([prompt])
        kept = {"do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}
        with torch.inference_mode():
            return theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **kept)  # type: ignore[attr-defined]

    return write


def our_writer(model: GPT, prompt: list[int], samples: int = 1) -> Writes:
    """A function that writes so many tokens in each of the samples with our generator."""

    def write(count: int) -> object:
        settings = SamplingSettings(temperature=0, max_new_tokens=count)
        return list(continued(Generator(model, len(prompt) + count), prompt, settings, range(samples)))

    return write


def seconds_of(work: Callable[[], object]) -> float:
    started = CLOCK[0]()
    work()
    return CLOCK[0]() - started


def in_turns(writers: dict[str, Writes], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round for every contender."""
    for write in writers.values():
        write(4)  # memory, kernels
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(rounds):
        for name, write in writers.items():
            seconds[name].append(seconds_of(lambda write=write: write(tokens)))
    return seconds


def ratio(first: list[float], second: list[float]) -> str:
    """How many times as fast the second is: the median over rounds, with the least and the most."""
    ratios = sorted(one / other for one, other in zip(first, second, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def ready_forms(model: GPT, names: list[str]) -> Iterator[tuple[str, GPT]]:
    """The model in every form; of what is compiled, the seconds are printed."""
    for name in names:
        ready = model if name == UNPREPARED else prepared(model, **FORMS[name])  # type: ignore[arg-type]
        if "compiled" in name:
            write = our_writer(ready, [1, 2, 3])
            first, second = seconds_of(lambda w=write: w(4)), seconds_of(lambda w=write: w(4))
            print(f"{name}: {first - second:.1f} s to compile")
        yield name, ready


def one(model: GPT, names: list[str], options: argparse.Namespace) -> None:
    """Tokens a second of one sequence."""
    prompt = torch.randint(0, model.config.vocab_size, (options.prompt_tokens,)).tolist()
    writers = {REFERENCE: writer_of(hugging_face(model), prompt)}
    writers |= {name: our_writer(ready, prompt) for name, ready in ready_forms(model, names)}
    seconds = in_turns(writers, options.tokens, options.rounds)
    print(f"one sequence, prompt {options.prompt_tokens}, {options.tokens} new tokens, {options.rounds} rounds")
    for name, taken in seconds.items():
        speed = options.tokens / statistics.median(taken)
        best = options.tokens / min(taken)
        goal = f"  goal: {GOALS[name]}" if name in GOALS else ""
        print(f"  {name:<20}{speed:7.1f} tokens/s (best {best:6.1f})  x {ratio(seconds[REFERENCE], taken)}{goal}")
    for form, other in (("fp32", UNPREPARED), ("fp32, compiled", UNPREPARED), ("int8", "bf16")):
        if {form, other} <= seconds.keys():
            print(f"  {form} is {ratio(seconds[other], seconds[form])} times as fast as {other}")


def batch(model: GPT, names: list[str], options: argparse.Namespace) -> None:
    """Tokens a second of sixteen sequences together and of one; the goal is 4 times as many."""
    prompt = torch.randint(0, model.config.vocab_size, (options.prompt_tokens,)).tolist()
    for name, ready in ready_forms(model, [name for name in names if "compiled" not in name]):
        writers = {"1": our_writer(ready, prompt), "16": our_writer(ready, prompt, 16)}
        seconds = in_turns(writers, options.tokens, max(1, options.rounds // 2))
        total = [taken / 16 for taken in seconds["16"]]
        speed = options.tokens / statistics.median(total)
        print(f"  {name:<8} 16 sequences: {speed:7.1f} tokens/s, x {ratio(seconds['1'], total)} of one  goal (bf16): 4")


def prefill(model: GPT, names: list[str], options: argparse.Namespace) -> None:
    """Arithmetic a second while 512 tokens are read, against the largest measured in a product of matrices in bf16.

    Counted are two operations for each weight of the blocks and each token, the products of attention below the
    diagonal only, and the head once.
    """
    config, length = model.config, 512
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.ndim > 1)
    attention = 2 * config.n_layer * length * length * config.n_embd  # scores and mixing, half of the pairs
    work = 2 * blocks * length + attention + 2 * config.vocab_size * config.n_embd
    tokens = torch.randint(0, config.vocab_size, (1, length))
    for name, ready in ready_forms(model, [name for name in names if "compiled" not in name]):
        generator = Generator(ready)
        generator.prefill(tokens)
        shares, speeds = [], []
        for _ in range(3 * options.rounds):
            peak = matmul_peak("cpu", "bf16", seconds=0.3).measured
            speeds.append(work / seconds_of(lambda generator=generator: generator.prefill(tokens)))
            shares.append(speeds[-1] / peak)
        share, speed = statistics.median(shares), statistics.median(speeds)
        goal = "  goal: 65 %" if name == "bf16" else ""
        print(f"  {name:<8} prefill of {length}: {speed / 1e9:.0f} GFLOP/s, {share:.0%} of the bf16 peak{goal}")


def memory(model: GPT, names: list[str], options: argparse.Namespace) -> None:
    """Resident memory while 1,000 tokens are written after a prompt; the goal is that it does not grow."""
    for name, ready in ready_forms(model, [name for name in names if "compiled" not in name]):
        settings = SamplingSettings(temperature=0, max_new_tokens=1000)
        held = [resident_bytes() for _ in continued(Generator(ready, 1016), list(range(16)), settings, [0])]
        growth = (held[-1] - held[20]) / 1e6
        print(f"  {name:<8} resident memory: {held[20] / 1e6:.0f} MB after 20 tokens, {growth:+.1f} MB after 1,000")


def resident_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def loss(options: argparse.Namespace) -> None:
    """Bits per byte of held-out text in every form, and how many more than in fp32."""
    subject = open_subject(options.run)
    model = subject.load("cpu").eval()
    if not options.data and subject.own_data is None:
        raise ConfigError(f"{options.run}: which text? give --data")
    text = own_split(Path(options.data) if options.data else subject.own_data.find(options.run), "val")  # type: ignore[union-attr]
    windows = text.windows(model.config.context_length, options.eval_tokens)
    lengths = bytes_per_token(subject.tokenizer)
    size = f"{parameter_count(model.config):,} parameters"
    print(f"{options.run}: {size}, {windows.target_count:,} tokens of {text.name}")
    exact = None
    for name in (name for name in FORMS if "compiled" not in name and name != UNPREPARED):
        ready = prepared(model, **FORMS[name])  # type: ignore[arg-type]
        found = evaluate_held_out(ready, windows, lengths, batch_size=1).bits_per_byte
        exact = exact or found
        print(f"  {name:<8} {found:.4f} bits per byte, {found - exact:+.5f} ({found / exact - 1:+.3%})")


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    if options.cpu_seconds:
        CLOCK[0] = time.process_time
    clock = "processor seconds" if options.cpu_seconds else "seconds of the clock"
    waits = os.environ.get("GOMP_SPINCOUNT", "as long as the library does")
    print(f"{cpu_name()}, {options.threads} threads that spin {waits}, torch {torch.__version__}, {clock}")
    parts = options.parts.split(",")
    if "loss" in parts:
        loss(options)
    rest = [part for part in ("one", "batch", "prefill", "memory") if part in parts]
    if not rest:
        return
    model = GPT(SIZES[options.size]).eval()
    print(f"{parameter_count(model.config):,} parameters, random")
    works = {"one": one, "batch": batch, "prefill": prefill, "memory": memory}
    for part in rest:
        works[part](model, [name.strip() for name in options.forms.split(";")], options)


if __name__ == "__main__":
    main()
