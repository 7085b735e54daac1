"""Peak memory of training GPT-2 124M: all weights, and LoRA adapters beside frozen ones; the ratio, and the estimates.

    python benchmarks/lora_memory.py                          # micro-batches of 1 and 4 sequences of 1,024 tokens
    python benchmarks/lora_memory.py --lora-rank 64 --dtype fp32 --batch-sizes 1

Each side is a process of its own: two optimizer steps on random weights and tokens, after which the process tells its
peak (on CUDA the allocator's, elsewhere the resident size) less what it held before the model was made. The estimate is
the one that `quill train` chooses its micro-batch by.
"""

import argparse
import subprocess
import sys

import torch

from quillgpt.config import LoraConfig, OptimConfig, RunConfig, TrainConfig
from quillgpt.distributed import Ranks
from quillgpt.hardware import available_cores, cpu_name, detect, peak_memory_bytes
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import add_adapters
from quillgpt.model.sizes import SIZES
from quillgpt.optim import build_optimizer
from quillgpt.train.resolve import Choices, estimated_memory_bytes, resolve
from quillgpt.train.update import gradients, wrap

MODEL = SIZES["gpt2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)  # the rank that this process trains with
    asked = parser.parse_args()
    if asked.side is not None:
        print(grown_bytes(choices(asked.dtype, asked.batch_sizes[0]), asked.side))
        return
    chosen = choices(asked.dtype, 1)
    print(
        f"{cpu_name()}, {available_cores()} cores; device {chosen.device}, dtype {chosen.dtype}; rank {asked.lora_rank}"
    )
    for batch_size in asked.batch_sizes:
        sides = {"all weights": 0, f"LoRA of rank {asked.lora_rank}": asked.lora_rank}
        peaks = {name: measured(rank, batch_size, chosen.dtype) for name, rank in sides.items()}
        print(f"micro-batches of {batch_size} x {MODEL.context_length}")
        for name, rank in sides.items():
            kind = chosen.device.partition(":")[0]
            estimate = estimated_memory_bytes(MODEL, batch_size, chosen.dtype, kind, rank)
            ratio = peaks[name] / peaks["all weights"]
            print(
                f"  {name:<16} {peaks[name] / 1e9:5.2f} GB  {ratio:.2f} x  estimated {estimate / 1e9:.2f} GB",
                flush=True,
            )


def choices(dtype: str, batch_size: int) -> Choices:
    config = RunConfig(model=MODEL, train=TrainConfig(dtype=dtype, batch_size=batch_size, compile="off"))
    return resolve(config, detect(), Ranks())[0]


def measured(rank: int, batch_size: int, dtype: str) -> int:
    command = [sys.executable, __file__, "--side", str(rank), "--batch-sizes", str(batch_size), "--dtype", dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def grown_bytes(chosen: Choices, rank: int) -> int:
    device = torch.device(chosen.device)
    torch.set_num_threads(chosen.threads)
    (torch.ones(256, 256, device=device) @ torch.ones(256, 256, device=device)).sum().item()  # loads the libraries
    before = peak_memory_bytes(device)
    model = GPT(MODEL)
    if rank:
        add_adapters(model, LoraConfig(lora_rank=rank))
    model.to(device)
    optimizer = build_optimizer(model, OptimConfig())
    wrapped = wrap(model, chosen)
    tokens = torch.randint(MODEL.vocab_size, (chosen.batch_size, MODEL.context_length))
    for _ in range(2):
        gradients(wrapped, tokens, tokens, choices=chosen, target_count=tokens.numel(), seed=0, step=0, rank=0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return peak_memory_bytes(device) - before


if __name__ == "__main__":
    main()
