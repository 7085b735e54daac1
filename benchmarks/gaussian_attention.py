"""What the fused kernel buys Gaussian attention: time and memory, forward and backward, against weights written out.

    python benchmarks/gaussian_attention.py                            # contexts 256, 1,024, 2,048; fp32
    python benchmarks/gaussian_attention.py --dtype bf16 --turns 3     # under autocast, quicker

One layer of GPT-2 124M: 12 heads of 64 channels, one sequence. "fused" is what the model takes without dropout,
"blocks" what it takes with dropout (256 queries at a time, computed anew in the backward pass), "square" all weights
in one matrix. All forms take turns in one run; the time is the shortest turn. Memory is how far the process's resident
memory rises above that of its queries, keys and values, each form in a process of its own (Linux only). The goals: the
fused form's memory grows as the context (x 2.0 from 1,024 to 2,048), and it is no slower than the others.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from quillgpt.hardware import available_cores, cpu_name
from quillgpt.model.attention import find_attention, gaussian
from quillgpt.model.written_out import mix, mix_at_once

HEADS, HEAD_SIZE = 12, 64
INITIAL_STD = 0.55  # of a query's channel in a new GPT-2
WEIGHTS = {
    "gaussian": gaussian.gaussian_weights,
    "gaussian-normalized": gaussian.normalized_gaussian_weights,
}
FORMS: Mapping[str, Callable[[str], Callable[..., Tensor]]] = {
    "fused": lambda name: partial(find_attention(name), dropout=0.0),
    "blocks": lambda name: partial(mix, WEIGHTS[name], dropout=0.0),
    "square": lambda name: partial(mix_at_once, WEIGHTS[name], dropout=0.0),
}


def run(attend: Callable[..., Tensor], heads: list[Tensor], dtype: str) -> None:
    """Forward and backward, once."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        mixed = attend(*heads)
    mixed.backward(torch.ones_like(mixed))
    for part in heads:
        part.grad = None


def heads_of(context: int) -> list[Tensor]:
    return [(INITIAL_STD * torch.randn(1, HEADS, context, HEAD_SIZE)).requires_grad_() for _ in range(3)]


def seconds(name: str, context: int, dtype: str, turns: int) -> dict[str, float]:
    """The shortest time of each form, which take turns."""
    heads = heads_of(context)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for turn in range(turns + 1):
        for form, build in FORMS.items():
            started = time.perf_counter()
            run(build(name), heads, dtype)
            if turn:  # the first one warms up
                times[form].append(time.perf_counter() - started)
    return {form: min(of_form) for form, of_form in times.items()}


def peak_megabytes(name: str, form: str, context: int, dtype: str, threads: int) -> float:
    """How far memory rises; to be called in a process of its own."""
    torch.set_num_threads(threads)
    run(FORMS[form](name), heads_of(64), dtype)
    heads = heads_of(context)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run(FORMS[form](name), heads, dtype)
    return (resident_bytes("VmHWM") - before) / 1e6


def resident_bytes(field: str) -> int:
    """VmRSS: now; VmHWM: at the peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    print(f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}, {options.dtype}")
    print(f"{HEADS} heads of {HEAD_SIZE} channels, one sequence, forward and backward; ratios to the fused form")
    alone = multiprocessing.get_context("spawn")
    for name in WEIGHTS:
        former: dict[str, float] = {}
        for context in options.contexts:
            times = seconds(name, context, options.dtype, options.turns)
            memory = {}
            for form in FORMS:
                with alone.Pool(1) as pool:
                    memory[form] = pool.apply(peak_megabytes, (name, form, context, options.dtype, options.threads))
            for form in FORMS:
                speed = f"{times[form] * 1e3:9.1f} ms  x {times[form] / times['fused']:5.2f}"
                room = f"{memory[form]:9.1f} MB  x {memory[form] / memory['fused']:5.2f}"
                growth = f"  x {memory[form] / former[form]:.2f} the row's former context" if form in former else ""
                print(f"{name:<20} {context:>6,} {form:<7} {speed} {room}{growth}", flush=True)
            former = memory


if __name__ == "__main__":
    main()
