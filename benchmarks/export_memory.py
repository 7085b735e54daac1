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
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(*arguments.one)
        return
    config = dataclasses.replace(SIZES["gpt2"], n_layer=arguments.layers)
    weights = 4 * parameter_count(config)
    print(f"{cpu_name()}, torch {torch.__version__}: {weights / 1e6:,.0f} MB of weights")
    print(f"{'':<20}{'peak MB':>10}{'x weights':>12}{'seconds':>10}{'x loading':>12}{'written MB':>12}{'off by':>10}")
    with tempfile.TemporaryDirectory() as folder:
        save_random_run(config, Path(folder) / "run")
        formats = [(name, dtype) for name, exporter in EXPORTERS.items() for dtype in exporter.dtypes]
        loading = 0.0
        for name, dtype in [("loading", ""), *formats]:
            command = [sys.executable, __file__, "--one", name, dtype, f"{folder}/run", f"{folder}/{name}-{dtype}"]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peak, seconds, written, difference = map(float, printed.split())
            loading = loading or seconds
            print(
                f"{name + ' ' + dtype:<20}{peak / 1e6:>10,.0f}{peak / weights:>12.2f}{seconds:>10.1f}"
                f"{seconds / loading:>12.1f}{written / 1e6:>12,.0f}{difference:>10.1e}",
                flush=True,
            )


def save_random_run(config: object, path: Path) -> None:
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


def one(name: str, dtype: str, run: str, out: str) -> None:
    """Export once, or only load, and print peak bytes, seconds, bytes written and the difference found."""
    started = time.perf_counter()
    written, difference = 0, 0.0
    if name == "loading":
        checkpoint.load_model(run)
    else:
        done = export(run, name, out=out, dtype=dtype)
        written, difference = sum(done.sizes.values()), done.difference
    print(peak_memory_bytes(torch.device("cpu")), time.perf_counter() - started, written, difference)


if __name__ == "__main__":
    main()
