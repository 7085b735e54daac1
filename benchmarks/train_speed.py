"""How fast training is on a CPU: our step against the same net in fp32 by torch's own operations, in turns.

    python benchmarks/train_speed.py                     # both nets, about two minutes
    python benchmarks/train_speed.py --net char --seconds 4 --rounds 7
    python benchmarks/train_speed.py --busy              # one thread, processor time: a machine with other work
    python benchmarks/train_speed.py --parts             # where a run's time goes: data, passes, update, the rest
    python benchmarks/train_speed.py --memory            # what the loss of a large vocabulary takes

The baseline is a bare loop: fp32, eager, no derivative by hand, F.cross_entropy of all logits, clipping, AdamW. Ours is
what `quill train` does by itself. Nets: `char` is nanoGPT's for Shakespeare's characters (6 layers, 384 wide, context
256), `demo` the demo's (4 layers, 192 wide, vocabulary 1,024, modern block; ours with Muon). The medians of the rounds
are compared.
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import as_quill  # noqa: F401  (first)
import torch
from rich.console import Console
from torch.nn import functional as F
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from quillgpt.config import ModelConfig, OptimConfig, RunConfig, TrainConfig, updated
from quillgpt.data.loader import BatchLoader
from quillgpt.distributed import Ranks
from quillgpt.hardware import cpu_name, detect, peak_memory_bytes
from quillgpt.model import mlp, norm, rotary
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer
from quillgpt.train import loop, update
from quillgpt.train.guard import Guard
from quillgpt.train.linear_loss import linear_cross_entropy
from quillgpt.train.progress import Terminal
from quillgpt.train.resolve import LOSS_CHUNK_ELEMENTS, resolve
from quillgpt.train.setup import set_up_torch

MODERN = {"mlp": "relu2", "norm": "rmsnorm", "position": "rotary", "qk_norm": True, "bias": False, "tied_head": False}
MODERN |= {"embedding_norm": True, "residual": "mixed", "value_embeddings": True, "logit_softcap": 15.0}
MUON = OptimConfig(optimizer="muon", lr=0.02, embedding_lr=0.1, head_lr=0.004, scalar_lr=0.01, gradient_clip=0.0)
NETS = {
    "demo": (ModelConfig(n_layer=4, n_head=3, n_embd=192, context_length=256, vocab_size=1024, **MODERN), MUON, 8),
    "char": (
        ModelConfig(n_layer=6, n_head=6, n_embd=384, context_length=256, vocab_size=257, bias=False),
        OptimConfig(lr=1e-3),
        12,
    ),
}
GOALS = {"char": 1.8}


class Ours:
    """A step of `quill train`, with the choices it makes by itself."""

    def __init__(self, model: ModelConfig, optim: OptimConfig, rows: int, **train: Any) -> None:
        config = RunConfig(model=model, optim=optim, train=TrainConfig(batch_size=rows, **train))
        self.choices, _ = resolve(config, detect(), Ranks())
        torch.manual_seed(0)
        self.model = GPT(model)
        self.wrapped = update.wrap(self.model, self.choices)
        self.optimizer = build_optimizer(self.model, optim)
        self.optim, self.guard = optim, Guard()
        tokens = torch.randint(model.vocab_size, (rows, model.context_length + 1))
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def __call__(self) -> None:
        """One step."""
        count = self.inputs.numel()
        numbers = {"target_count": count, "seed": 0, "step": 0, "rank": 0}
        loss = update.gradients(self.wrapped, self.inputs, self.targets, choices=self.choices, **numbers).item() / count
        rates = {"lr": self.optim.lr, "momentum": self.optim.momentum, "gradient_clip": self.optim.gradient_clip}
        update.apply_update(self.wrapped, self.optimizer, self.guard, loss=loss, **rates)


class Baseline:
    """The bare loop."""

    def __init__(self, model: ModelConfig, optim: OptimConfig, rows: int) -> None:
        torch.manual_seed(0)
        self.model = GPT(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        tokens = torch.randint(model.vocab_size, (rows, model.context_length + 1))
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()

    def __call__(self) -> None:
        """One step."""
        with contextlib.ExitStack() as stack:
            for module in (mlp, norm, rotary):
                stack.enter_context(mock.patch.object(module, "pays_by_hand", return_value=False))
            loss = F.cross_entropy(self.model(self.inputs).flatten(0, 1), self.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()


def compare(net: str, *, seconds: float, rounds: int, compiled: bool, clock: Callable[[], float]) -> None:
    """Print tokens per second of each side, median and range, and the ratio to the baseline's."""
    model, optim, rows = NETS[net]
    sides: dict[str, Callable[[], None]] = {
        "fp32, torch's own operations": Baseline(model, optim, rows),
        "ours in fp32": Ours(model, optim, rows, dtype="fp32"),
        "ours, by itself": Ours(model, optim, rows),
    }
    if compiled:
        sides["ours, compiled"] = Ours(model, optim, rows, compile="on")
    first_seconds = {name: timed(side) for name, side in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            rates[name].append(rows * model.context_length / mean_seconds(side, seconds, clock))
    base = statistics.median(next(iter(rates.values())))
    print(f"\n{net}: {model.n_layer} layers, {model.n_embd} wide, {rows} x {model.context_length} tokens a step")
    for name, found in rates.items():
        median = statistics.median(found)
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"  {name:<30} {median:>7,.0f} tokens/s ({spread:>16})  {median / base:4.2f} x", end="")
        print(f"  first step {first_seconds[name]:.1f} s" if first_seconds[name] > 5 else "")
    if net in GOALS:
        print(f"  goal: {GOALS[net]} x")


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def mean_seconds(step: Callable[[], None], seconds: float, clock: Callable[[], float]) -> float:
    """Seconds a step takes, over about so many."""
    started, count = clock(), 0
    while count < 2 or clock() - started < seconds:
        step()
        count += 1
    return (clock() - started) / count


class Clock:
    """Adds up the time of named parts, from the `skip`-th step on."""

    def __init__(self, skip: int) -> None:
        self.skip, self.steps, self.spent, self.depth = skip, 0, dict.fromkeys(PARTS, 0.0), 0
        self.began = self.ended = 0.0

    def add(self, name: str, seconds: float) -> None:
        """Count seconds, once the first steps are over."""
        if self.steps > self.skip:
            self.spent[name] += seconds

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            if name == "data":
                self.steps += 1
                self.began = self.began if self.steps != self.skip + 1 else started
            result = function(*args, **kwargs)
            self.ended = time.perf_counter()
            self.add(name, self.ended - started)
            return result

        return call

    def before_optimizer(self, *_: Any) -> None:
        """A hook of torch's."""
        self.depth += 1  # Muon calls AdamW
        self.optimizer_began = time.perf_counter() if self.depth == 1 else self.optimizer_began

    def after_optimizer(self, *_: Any) -> None:
        """A hook of torch's."""
        self.depth -= 1
        if not self.depth:
            self.add("of which the optimizer", time.perf_counter() - self.optimizer_began)


PARTS = ("data", "forward and backward", "update", "of which the optimizer", "of which the norm")


def parts(net: str, steps: int) -> None:
    """Train by `quillgpt.train`, with its live view and a line of metrics every 10 steps, and print where time went."""
    model, optim, rows = NETS[net]
    clock = Clock(skip=5)
    BatchLoader.batch = clock.watched("data", BatchLoader.batch)
    loop.gradients = clock.watched("forward and backward", update.gradients)
    loop.apply_update = clock.watched("update", update.apply_update)
    for name in ("get_total_norm", "clip_grad_norm_"):
        setattr(torch.nn.utils, name, clock.watched("of which the norm", getattr(torch.nn.utils, name)))
    handles = [register_optimizer_step_pre_hook(clock.before_optimizer)]
    handles += [register_optimizer_step_post_hook(clock.after_optimizer)]
    train = {"steps": steps, "log_every": 10, "batch_size": rows, "eval_every": 0, "save_every": 0, "eval_tokens": 2048}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("text.txt").write_text("".join(chr(97 + i * i % 23) + " \n"[i % 37 == 0] for i in range(2_000_000)))
        data = {"source": "text", "path": "text.txt", "tokenizer": "byte"}
        config = RunConfig(model=model, optim=optim)
        config = updated(config, {**train, **data, "out": "run"}, where="here")
        loop.train(config, Terminal(Console(file=io.StringIO(), force_terminal=True)))
    for handle in handles:
        handle.remove()
    total = clock.ended - clock.began
    rest = total - sum(clock.spent[name] for name in PARTS[:3])
    optimizer, norm = clock.spent["of which the optimizer"], clock.spent["of which the norm"]
    counted = clock.steps - clock.skip
    print(f"\n{net}, {counted} steps of {1e3 * total / counted:.1f} ms (byte tokens)")
    lines = {"data": clock.spent["data"], "forward and backward": clock.spent["forward and backward"]}
    lines |= {
        "optimizer": optimizer,
        "gradient norm": norm,
        "giving gradients back": clock.spent["update"] - optimizer - norm,
    }
    for name, seconds in (lines | {"logging, screen, counting": rest}).items():
        print(f"  {name:<28} {1e3 * seconds / counted:8.2f} ms {seconds / total:7.2%}")


def memory() -> None:
    """Print the memory that the loss over GPT-2's vocabulary adds, for more and more tokens; a process each."""
    print("\nloss over 50,257 tokens of vocabulary, forward and backward: peak resident memory added")
    for tokens in (1024, 4096, 16384):
        command = [sys.executable, __file__, "--added-by", str(tokens)]
        added = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"  {tokens:>6,} tokens: {added:6,.0f} MiB; their logits in fp32 are {tokens * 50304 * 4 / 2**20:6,.0f} MiB"
        )


def added_by(tokens: int) -> float:
    """MiB that the loss of so many tokens adds to this process, the gradients of its arguments included."""
    hidden = torch.randn(tokens, 64).bfloat16().requires_grad_()
    weight = torch.randn(50304, 64).requires_grad_()
    targets = torch.zeros(tokens, dtype=torch.int64)
    before = peak_memory_bytes(torch.device("cpu"))
    chunk_tokens = LOSS_CHUNK_ELEMENTS // 50257
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, vocab_size=50257, softcap=0.0, chunk_tokens=chunk_tokens)
    loss.backward()
    return (peak_memory_bytes(torch.device("cpu")) - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side in a round")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile, which takes half a minute")
    parser.add_argument("--busy", action="store_true", help="one thread, and seconds of processor time")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--added-by", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.added_by:
        print(added_by(asked.added_by))
        return
    machine = detect()
    threads, clock = (1, time.process_time) if asked.busy else (machine.cores, time.perf_counter)
    print(f"{cpu_name()}, {threads} of {machine.cores} cores, torch {torch.__version__}")
    set_up_torch("cpu", threads=threads, matmul_precision="high")
    for net in [asked.net] if asked.net else NETS:
        if asked.parts:
            parts(net, asked.steps)
        elif not asked.memory:
            compare(net, seconds=asked.seconds, rounds=asked.rounds, compiled=asked.compiled, clock=clock)
    if asked.memory:
        memory()


if __name__ == "__main__":
    main()
