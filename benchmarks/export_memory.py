"""What exporting a GPT-2 124M costs: peak memory and time of every format, against its weights and loading it.

    python benchmarks/export_memory.py                  # every format, 12 layers
    python benchmarks/export_memory.py --layers 1       # a quick look

The weights are random, the tokenizer is GPT-2's. Each format runs in a process of its own; a process that only loads
the model is the baseline. Peak memory is the resident size as the system reports it, libraries included.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from quillgpt import checkpoint
from quillgpt.config import ModelConfig
from quillgpt.export import EXPORTERS
from quillgpt.export.checked import export
from quillgpt.hardware import cpu_name, peak_memory_bytes
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES, parameter_count
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import load_tokenizer


def main() -> None:
    """Make a run, export it in every way, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    config = dataclasses.replace(SIZES["gpt2"], n_layer=arguments.layers)
    if arguments.one:
        print(*one(*arguments.one, config))
        return
    weights = 4 * parameter_count(config)
    print(f"{cpu_name()}, torch {torch.__version__}: {weights / 1e6:,.0f} MB of weights")
    print(f"{'':<20}{'peak MB':>10}{'x weights':>12}{'seconds':>10}{'x loading':>12}{'written MB':>12}{'off by':>10}")
    with tempfile.TemporaryDirectory() as folder:
        # a process inherits the peak of the one that starts it, so this one stays small
        in_a_process("make", "", folder, arguments.layers)
        formats = [(name, dtype) for name, exporter in EXPORTERS.items() for dtype in exporter.dtypes]
        loading = 0.0
        for name, dtype in [("load", ""), *formats]:
            peak, seconds, written, difference = in_a_process(name, dtype, folder, arguments.layers)
            loading = loading or seconds
            print(
                f"{name + ' ' + dtype:<20}{peak / 1e6:>10,.0f}{peak / weights:>12.2f}{seconds:>10.1f}"
                f"{seconds / loading:>12.1f}{written / 1e6:>12,.0f}{difference:>10.1e}",
                flush=True,
            )


def in_a_process(name: str, dtype: str, folder: str, layers: int) -> list[float]:
    """What `one` returns when nothing was done before in its process."""
    command = [sys.executable, __file__, "--layers", str(layers), "--one", name, dtype, folder]
    return [float(x) for x in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()]


def one(name: str, dtype: str, folder: str, config: ModelConfig) -> tuple[int, float, int, float]:
    """Make the run, load it or export it; return peak bytes, seconds, bytes written and the difference found."""
    started = time.perf_counter()
    run, written, difference = Path(folder) / "run", 0, 0.0
    match name:
        case "make":
            save_random_run(config, run)
        case "load":
            checkpoint.load_model(run)
        case _:
            done = export(str(run), name, out=f"{folder}/{name}-{dtype}", dtype=dtype)
            written, difference = sum(done.sizes.values()), done.difference
    return peak_memory_bytes(torch.device("cpu")), time.perf_counter() - started, written, difference


def save_random_run(config: ModelConfig, path: Path) -> None:
    """Save a model as training does."""
    torch.manual_seed(0)
    checkpoint.save(
        RunDirectory(path),
        step=1,
        model=GPT(config),
        optimizer_state={},
        state={},
        resolved={},
        config_toml="",
        tokenizer=load_tokenizer("gpt2"),
        data_fingerprint="",
        held_out_loss=None,
    )


if __name__ == "__main__":
    main()
