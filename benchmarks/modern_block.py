"""What the demo's block buys: the recipe `python` against the same recipe with GPT-2's block, for the same minutes.

    python benchmarks/modern_block.py                  # two minutes each
    python benchmarks/modern_block.py --minutes 0.2    # a quick look

GPT-2's block is learned positions, LayerNorm, GELU, biases, no QK-norm; width, depth, data, batch and schedule are the
same, and each side may have its own learning rate. Held-out bits per byte, beside gzip -9 of the same text.
"""

import argparse
import tempfile
from pathlib import Path

from quillgpt.cli.demo import compressor_figures
from quillgpt.config import RunConfig, updated
from quillgpt.distributed import Ranks
from quillgpt.hardware import available_cores, cpu_name
from quillgpt.recipes import load_recipe
from quillgpt.train.loop import train
from quillgpt.train.open_data import open_data
from quillgpt.train.progress import Quiet

GPT2_BLOCK = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True}
RATES = (6e-4, 1.5e-3, 3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    minutes = parser.parse_args().minutes
    recipe = updated(load_recipe("python"), {"minutes": minutes}, where="--minutes")
    print(f"{cpu_name()}, {available_cores()} cores, {minutes:g} minutes a run")
    gzip = compressor_figures(open_data(recipe, Ranks(), Quiet()).directory)["gzip -9"]
    with tempfile.TemporaryDirectory() as folder:
        sides = {"recipe python": recipe}
        sides |= {f"GPT-2's block, lr {lr:g}": updated(recipe, GPT2_BLOCK | {"lr": lr}, where="here") for lr in RATES}
        for name, config in sides.items():
            report(name, updated(config, {"out": str(Path(folder) / name)}, where="here"), gzip)


def report(name: str, config: RunConfig, gzip: float) -> None:
    outcome = train(config)
    bits = outcome.held_out.bits_per_byte
    print(f"{name:<26} {outcome.step:>6,} steps  {bits:.4f} bits per byte  {bits / gzip:.3f} x gzip -9", flush=True)


if __name__ == "__main__":
    main()
