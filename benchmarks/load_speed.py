"""How long a 124M model takes to load and how much memory, against reading and hashing its file, in one run.

    python benchmarks/load_speed.py

The file has Hugging Face's format with random weights and lies in the system's file cache. Each way is a new process,
so that its memory is new; its time begins when everything is imported. transformers maps the file into memory and
reads nothing before a weight is used, so there every weight is used once.
"""

import hashlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
BLOCK_BYTES = 1 << 22


def kilobytes(field: str) -> int:
    return int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])  # pyrefly: ignore


def write_model(directory: Path) -> None:
    """A model of random weights as `save_pretrained` writes it, without transformers."""
    import safetensors.torch
    import torch

    from quillgpt.model.gpt import GPT
    from quillgpt.model.sizes import SIZES
    from quillgpt.pretrained.gpt2_names import to_hugging_face

    config = SIZES["gpt2"]
    tensors = {}
    for name, parameter in GPT(config).state_dict().items():
        theirs, is_transposed = to_hugging_face(name)
        rows = parameter[: config.vocab_size] if name == "token_embedding.weight" else parameter
        tensors[theirs] = (rows.T if is_transposed else rows).contiguous()
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert sum(math.prod(x.shape) for x in tensors.values()) == 124_439_808
    torch.set_num_threads(1)


def read(directory: Path) -> None:
    """Read the file into one buffer, over and over."""
    block = bytearray(BLOCK_BYTES)
    with (directory / "model.safetensors").open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def hashed(directory: Path) -> None:
    """Read and hash the file."""
    with (directory / "model.safetensors").open("rb") as file:
        hashlib.file_digest(file, "sha256")


def read_into_new_memory(directory: Path) -> None:
    """Read the file into memory of its size, which the system has to provide: the least that any loader does."""
    size = (directory / "model.safetensors").stat().st_size
    import torch

    with (directory / "model.safetensors").open("rb", buffering=0) as file:
        view = torch.empty(size, dtype=torch.uint8).numpy().data
        while view:
            view = view[file.readinto(view) :]  # pyrefly: ignore


def quillgpt(directory: Path) -> None:
    """`quillgpt.load_model`."""
    from quillgpt.checkpoint import load_model

    load_model(directory)


def transformers(directory: Path) -> None:
    """`GPT2LMHeadModel.from_pretrained`, and every weight used."""
    from transformers import GPT2LMHeadModel

    for parameter in GPT2LMHeadModel.from_pretrained(directory).parameters():
        parameter.detach().sum()


WAYS = [read, hashed, read_into_new_memory, quillgpt, transformers]


def measure(way: str, directory: Path) -> None:
    """One way in this process: prints its seconds and the growth of its peak memory in bytes."""
    import torch

    if way == "transformers":
        from transformers import GPT2LMHeadModel  # noqa: F401

    torch.set_num_threads(1)
    before = kilobytes("VmRSS")
    started = time.perf_counter()
    globals()[way](directory)
    seconds = time.perf_counter() - started
    print(seconds, (kilobytes("VmHWM") - before) * 1024)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_model(directory)
        size = (directory / "model.safetensors").stat().st_size
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
        found: dict[str, list[tuple[float, float]]] = {way.__name__: [] for way in WAYS}
        for _ in range(REPEATS):  # in turns, because the machine's speed drifts
            for name, results in found.items():
                command = [sys.executable, __file__, name, folder]
                output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
                seconds, growth = output.split()[-2:]
                results.append((float(seconds), float(growth)))
        medians = {
            name: [statistics.median(column) for column in zip(*results, strict=True)]
            for name, results in found.items()
        }
        print(f"124M in fp32, {size:,} bytes; median of {REPEATS}, in turns, one thread")
        print("way                      seconds   x (read + hash)   x read into new memory   peak memory / weights")
        once = medians["hashed"][0]
        for name, (seconds, growth) in medians.items():
            ratios = f"{seconds / once:17.2f} {seconds / medians['read_into_new_memory'][0]:24.2f}"
            print(f"{name:<22} {seconds:9.3f} {ratios} {growth / size:23.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
