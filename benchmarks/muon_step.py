"""What stacking equal matrices gains: Muon's step of all blocks, ours beside torch's one-by-one, in turns.

    python benchmarks/muon_step.py
    python benchmarks/muon_step.py --threads 2 --layers 12

Torch's is given queries, keys and values as three matrices, as ours takes them, so that both do the same arithmetic.
Times are medians; the ratio is torch's time over ours.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from quillgpt.config import ModelConfig, OptimConfig
from quillgpt.hardware import available_cores, cpu_name
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer

WIDTHS = (64, 128, 192, 256, 384, 768)
HEAD_SIZE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}, {options.layers} layers")
    for width in WIDTHS:
        ours, theirs = timed(width, options.layers, options.repeats)
        print(f"width {width:>4}: ours {1e3 * ours:>7.1f} ms, torch {1e3 * theirs:>7.1f} ms, ratio {theirs / ours:.2f}")


def timed(width: int, layers: int, repeats: int) -> tuple[float, float]:
    """Median seconds of one step, ours and torch's."""
    torch.manual_seed(1)
    settings = OptimConfig(optimizer="muon", lr=0.02, min_lr=0.0)
    config = ModelConfig(
        n_layer=layers, n_head=width // HEAD_SIZE, n_embd=width, context_length=64, vocab_size=64, bias=False
    )
    blocks = GPT(config).blocks
    for parameter in blocks.parameters():
        parameter.grad = torch.randn_like(parameter)
    pieces = []
    for name, parameter in blocks.named_parameters():
        if parameter.ndim == 2:
            for part in parameter.detach().chunk(3 if "qkv" in name else 1):
                piece = nn.Parameter(part.clone())
                piece.grad = torch.randn_like(piece)
                pieces.append(piece)
    ours = build_optimizer(nn.ModuleDict({"blocks": blocks}), settings)
    theirs = torch.optim.Muon(pieces, lr=0.02, momentum=0.95)
    times = [(seconds(ours.step), seconds(theirs.step)) for _ in range(repeats)]
    mine, torchs = (statistics.median(part) for part in zip(*times, strict=True))
    return mine, torchs


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes by the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
