"""The speed of training on a CPU: our step against the same net in fp32 with torch's own operations, in turns.

    python benchmarks/train_speed.py compare             # both nets, about two minutes
    python benchmarks/train_speed.py compare --net char --seconds 4 --rounds 7
    python benchmarks/train_speed.py compare --busy      # one thread, processor time: a machine with other work
    python benchmarks/train_speed.py parts               # the time of each part of a step
    python benchmarks/train_speed.py muon                # Muon's step of all blocks, ours next to torch's

Models: `char` is nanoGPT's for Shakespeare's characters (6 layers, 384 wide, context 256), `demo` that of the recipe
modern-python (4 layers, 192 wide, vocabulary 1,024; ours with Muon). `quill bench train` measures any recipe.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import measuring
import torch
from torch import nn
from torch.nn import functional as F

from quillgpt import load_recipe
from quillgpt.config import ModelConfig, OptimConfig, RunConfig, TrainConfig, updated
from quillgpt.distributed import Ranks
from quillgpt.lab.bench.measure import Plan, Side, Window, measure_in_turns, rates, ratios, synchronize
from quillgpt.lab.bench.training import open_side
from quillgpt.model import mlp, norm
from quillgpt.model import positions as rotary
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer
from quillgpt.runtime import Runtime, available_cores, detect, resolve, set_up_torch
from quillgpt.training import step as update
from quillgpt.training.screen import Screen
from quillgpt.training.step import Guard

DEMO = load_recipe("modern-python")
CHAR = ModelConfig(n_layer=6, n_head=6, n_embd=384, context_length=256, vocab_size=257, bias=False)
NETS = {"demo": (DEMO.model, DEMO.optim, 8), "char": (CHAR, OptimConfig(lr=1e-3), 12)}
GOALS = {"char": 1.8}
Wrap = Callable[[GPT, Runtime], update.WrappedModel]
WIDTHS, HEAD_SIZE = (64, 128, 192, 256, 384, 768), 64
SKIPPED_STEPS = 5


def random_batch(model: ModelConfig, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(model.vocab_size, (rows, model.context_length + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


class Ours:
    """A step of `quill train` on random tokens; wrap: compiles and wraps the model."""

    def __init__(self, model: ModelConfig, optim: OptimConfig, runtime: Runtime, wrap: Wrap = update.wrap) -> None:
        self.runtime, self.optim, self.guard = runtime, optim, Guard()
        torch.manual_seed(0)
        self.model = GPT(model).to(runtime.device)
        self.wrapped = wrap(self.model, runtime)
        self.optimizer = build_optimizer(self.model, optim)
        self.inputs, self.targets = random_batch(model, runtime.global_batch_size)

    def __call__(self) -> None:
        count = self.inputs.numel()
        numbers = {"target_count": count, "seed": 0, "step": 0, "rank": 0}
        loss = update.gradients(self.wrapped, self.inputs, self.targets, runtime=self.runtime, **numbers).item() / count
        settings = {"lr": self.optim.lr, "momentum": self.optim.momentum, "gradient_clip": self.optim.gradient_clip}
        update.apply_update(self.wrapped, self.optimizer, self.guard, loss=loss, **settings)


class Baseline:
    """A plain loop: fp32, eager, autograd, F.cross_entropy of all logits, clipping, AdamW."""

    def __init__(self, model: ModelConfig, rows: int) -> None:
        torch.manual_seed(0)
        self.model = GPT(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.inputs, self.targets = random_batch(model, rows)

    def __call__(self) -> None:
        with contextlib.ExitStack() as stack:
            for module in (mlp, norm, rotary):
                stack.enter_context(mock.patch.object(module, "uses_custom_backward", return_value=False))
            loss = F.cross_entropy(self.model(self.inputs).flatten(0, 1), self.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()


def side_of(
    step: Callable[[], None], tokens: int, clock: measuring.Clock = time.perf_counter, device: str = ""
) -> Side:
    """The step as a side of `measure_in_turns`; a window begins with an idle device."""

    def run(count: int) -> Window:
        synchronize(device)
        started = clock()
        for _ in range(count):
            step()
        return Window(repetitions=count, seconds=clock() - started, amounts={"tokens": tokens * count})

    return run


def compare(net: str = "", rounds: int = 5, seconds: float = 3.0, compiled: bool = False, busy: bool = False) -> None:
    """Tokens per second of our step and of the plain loop, median and range of the rounds, and the ratios.

    Args:
        net: demo or char; empty: both
        seconds: of each side in a round
        compiled: also with torch.compile, which takes half a minute
        busy: one thread and processor time
    """
    threads, clock = (1, time.process_time) if busy else (available_cores(), time.perf_counter)
    measuring.print_machine(threads)
    set_up_torch("cpu", threads=threads, matmul_precision="high")
    for name in [net] if net else NETS:
        model, optim, rows = NETS[name]

        def ours(model: ModelConfig = model, optim: OptimConfig = optim, rows: int = rows, **train: Any) -> Ours:
            config = RunConfig(model=model, optim=optim, train=TrainConfig(batch_size=rows, **train))
            return Ours(model, optim, resolve(config, detect(), Ranks())[0])

        sides = {"fp32, torch's own operations": Baseline(model, rows)}
        sides |= {"ours in fp32": ours(dtype="fp32"), "ours, by itself": ours()}
        if compiled:
            sides["ours, compiled"] = ours(compile="on")
        first_seconds = {side: measuring.seconds_of(step) for side, step in sides.items()}
        tokens = rows * model.context_length
        plan = Plan(windows=rounds, seconds=seconds, warmup=0)
        windows = measure_in_turns([side_of(side, tokens, clock) for side in sides.values()], plan)
        speeds = [rates(one, "tokens") for one in windows]
        print(f"\n{name}: {model.n_layer} layers, {model.n_embd} wide, {rows} x {model.context_length} tokens a step")
        for side, speed in zip(sides, speeds, strict=True):
            spread = f"{min(speed.values):,.0f} to {max(speed.values):,.0f}"
            ratio = ratios(speed, speeds[0]).median
            first = f"  first step {first_seconds[side]:.1f} s" if first_seconds[side] > 5 else ""
            print(f"  {side:<30} {speed.median:>7,.0f} tokens/s ({spread:>16})  {ratio:4.2f} x{first}")
        if name in GOALS:
            print(f"  goal: {GOALS[name]} x")


def parts(net: str = "", steps: int = 60) -> None:
    """The time of each part of a step of `quill train`, as `quill bench train` measures it."""
    measuring.print_machine(available_cores())
    for name in [net] if net else NETS:
        model, optim, rows = NETS[name]
        settings = {"batch_size": rows, "source": "text", "path": "text.txt", "tokenizer": "byte", "log_every": 10}
        config = updated(RunConfig(model=model, optim=optim), settings, where="here")
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path("text.txt").write_text("".join(chr(97 + i * i % 23) + " \n"[i % 37 == 0] for i in range(2_000_000)))
            with open_side(config, Path("side"), Screen()) as side:
                side(SKIPPED_STEPS)
                window = side(steps - SKIPPED_STEPS)
                seconds = side.part_seconds([window])
        each = window.seconds / window.repetitions
        print(f"\n{name}, {window.repetitions} steps of {1e3 * each:.1f} ms (byte tokens)")
        for part, own in seconds.items():
            print(f"  {part:<10} {1e3 * own:8.2f} ms {own / each:7.2%}")


def muon(threads: int = available_cores(), layers: int = 4, repeats: int = 15) -> None:
    """The gain of stacking matrices of the same shape: Muon's step of all blocks, ours and torch's, in turns.

    Torch's gets queries, keys and values as three matrices, as ours splits them, so both do the same arithmetic.
    """
    measuring.print_machine(threads, f"{layers} layers")
    for width in WIDTHS:
        torch.manual_seed(1)
        shape = {"n_layer": layers, "n_head": width // HEAD_SIZE, "n_embd": width}
        blocks = GPT(ModelConfig(**shape, context_length=64, vocab_size=64, bias=False)).blocks
        matrices = []
        for name, parameter in blocks.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            if parameter.ndim == 2:
                matrices += [nn.Parameter(part.clone()) for part in parameter.chunk(3 if "qkv" in name else 1)]
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        ours = build_optimizer(nn.ModuleDict({"blocks": blocks}), OptimConfig(optimizer="muon", lr=0.02, min_lr=0.0))
        theirs = torch.optim.Muon(matrices, lr=0.02, momentum=0.95)
        found = measuring.in_turns({"ours": ours.step, "torch": theirs.step}, repeats)
        mine, torchs = (statistics.median(seconds) for seconds in found.values())
        print(f"width {width:>4}: ours {1e3 * mine:>7.1f} ms, torch {1e3 * torchs:>7.1f} ms, ratio {torchs / mine:.2f}")


if __name__ == "__main__":
    measuring.run_script(__doc__, {"compare": compare, "parts": parts, "muon": muon})
