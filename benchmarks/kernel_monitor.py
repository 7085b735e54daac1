"""What it costs to look at an attention's numbers: one look beside one training step, in turns, on this machine.

    python benchmarks/kernel_monitor.py
    python benchmarks/kernel_monitor.py --threads 1 --repeats 50

A look reads one sequence, whatever the batch; so its share of a step falls with the sequences in a step, and its share
of a run with `log_every`. Times are medians of the time the processor spent in this process.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from quillgpt import load_recipe
from quillgpt.distributed import Ranks
from quillgpt.hardware import available_cores, cpu_name, detect
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer
from quillgpt.train.kernel_statistics import KernelMonitor
from quillgpt.train.resolve import resolve
from quillgpt.train.update import gradients, wrap

ENTRIES = ("gaussian", "gaussian-normalized", "gaussian-poly-8", "pointwise-relu")
ROWS = (4, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print(f"{cpu_name()}, {available_cores()} cores; the recipe python with another attention")
    for entry in ENTRIES:
        for rows in ROWS:
            print(report(entry, rows, threads=options.threads, repeats=options.repeats), flush=True)


def report(entry: str, rows: int, *, threads: int, repeats: int) -> str:
    """One line: a step of so many sequences, a look, and the shares."""
    config = load_recipe("python", attention=entry, batch_tokens=256 * rows, batch_size=4, threads=threads)
    choices, _ = resolve(config, detect(), Ranks())
    torch.set_num_threads(choices.threads)
    model = GPT(config.model).to(choices.device)
    wrapped, optimizer = wrap(model, choices), build_optimizer(model, config.optim)
    monitor = KernelMonitor(model=model, choices=choices, is_first=True, say=lambda text: None)
    tokens = torch.randint(config.model.vocab_size, (rows, config.model.context_length))

    def step() -> None:
        count = tokens.numel()
        gradients(wrapped, tokens, tokens, choices=choices, target_count=count, seed=0, step=0, rank=0).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = [(seconds(step), seconds(lambda: monitor.look(tokens, 1))) for _ in range(repeats)]
    of_step, of_look = (statistics.median(part) for part in zip(*times, strict=True))
    share, log_every = of_look / of_step, config.train.log_every
    line = f"{entry:<20} {rows:>3} sequences: step {1e3 * of_step:>7.1f} ms, look {1e3 * of_look:>5.1f} ms"
    return f"{line}; of a step {share:>5.1%} with log_every = 1, {share / log_every:.2%} with {log_every}"


def seconds(work: Callable[[], object]) -> float:
    """The processor time that it takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
