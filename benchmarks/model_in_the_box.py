"""Make the model in the box: train the recipe quill-python, put its weights into the package in bf16, measure them.

    python benchmarks/model_in_the_box.py                              # everything; continues where it stopped
    python benchmarks/model_in_the_box.py --run runs/quill-python      # only pack a run that is finished

What is packed is what is measured: the held-out loss in the card is that of the bf16 weights read back from their file.
Training does not stop for anything the packed model does not have, and nothing of the text goes into the package.
"""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path

import safetensors.torch
import torch

import quillgpt
from quillgpt import checkpoint, files
from quillgpt.checkpoint.in_the_box import DIRECTORY, IN_THE_BOX
from quillgpt.distributed import Ranks
from quillgpt.evaluate.compressors import compressor_bits_per_byte, split_text
from quillgpt.evaluate.held_out_loss import HeldOutLoss, evaluate_held_out
from quillgpt.hardware import available_cores, cpu_name
from quillgpt.model.sizes import parameter_count
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train.open_data import Data, open_data
from quillgpt.train.progress import Quiet

LARGEST_BYTES = 4_000_000
CARD = "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="", help="a finished run instead of training one")
    options = parser.parse_args()
    run = Path(options.run or f"runs/{IN_THE_BOX}")
    if not options.run:
        quillgpt.train(quillgpt.load_recipe(IN_THE_BOX, out=str(run)))
    found = checkpoint.find(run)
    pack(found, DIRECTORY)
    config = quillgpt.load_recipe(IN_THE_BOX)
    data = open_data(config, None, Ranks(), Quiet())
    model, _ = quillgpt.load_model(DIRECTORY)
    loss = evaluate_held_out(
        model, data.held_out, data.bytes_per_token, batch_size=16, device="cpu", dtype=torch.float32
    )
    files.write_text(DIRECTORY / CARD, card(run, loss, data))
    size = (DIRECTORY / checkpoint.MODEL).stat().st_size
    if size > LARGEST_BYTES:
        raise SystemExit(f"{size:,} bytes of weights; at most {LARGEST_BYTES:,} go into the box")
    print((DIRECTORY / CARD).read_text())


def pack(found: checkpoint.Checkpoint, directory: Path) -> None:
    """Write the checkpoint's weights in bf16, its tokenizer, its settings, and a manifest of them."""
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in found.tensors(checkpoint.MODEL).items()}
    contents = {
        checkpoint.MODEL: safetensors.torch.save(weights, metadata={"format": "pt"}),
        checkpoint.TOKENIZER: (found.path / checkpoint.TOKENIZER).read_bytes(),
        checkpoint.CONFIG: (found.path / checkpoint.CONFIG).read_bytes(),
    }
    manifest = dict(found.manifest)
    manifest["files"] = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    files.write_text(directory / checkpoint.MANIFEST, json.dumps(manifest, indent=2) + "\n")


def card(run: Path, loss: HeldOutLoss, data: Data) -> str:
    """What the model is, how it was made, and how good it is."""
    last = read_metrics(RunDirectory(run).metrics)[-1]
    found = checkpoint.read_checkpoint(DIRECTORY)
    model, _ = quillgpt.load_model(DIRECTORY)
    held_out, training = (split_text(split, data.tokenizer) for split in (data.held_out.dataset, data.train))
    others = compressor_bits_per_byte(held_out, training)
    compressors = ", ".join(f"{name} {figure:.3f}" for name, figure in others.items())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    shape = model.config
    size = f"{shape.n_layer} layers, {shape.n_embd} wide, {shape.n_head} heads, vocabulary {shape.vocab_size:,}"
    minutes = float(str(last["elapsed_seconds"])) / 60
    return f"""# {IN_THE_BOX}: the model in the box

A small GPT that has read Python's standard library and nothing else. It knows what Python looks like; it does not know
what a program is for. `quill sample {IN_THE_BOX} -p "def main"` writes with it, and so does `quill sample` alone where
there is no run.

- Shape: {size}, context {shape.context_length}; {parameter_count(shape):,} parameters, in bf16.
- Made by `python benchmarks/model_in_the_box.py`, with the recipe `{IN_THE_BOX}` (config.toml has every setting), at
  commit {commit}, torch {torch.__version__}, {cpu_name()}, {available_cores()} cores.
- Trained {found.step:,} steps, {int(str(last["tokens"])):,} tokens, {minutes:.0f} minutes.
- Held out, files it was not trained on: {loss.loss:.4f} nats per token, {loss.bits_per_byte:.4f} bits per byte.
  The same text by others, bits per byte: {compressors}.
- Text: the standard library's Python files, as the source `python` finds them (PSF licence). None of it is here, only
  weights that were trained on it; they come under this project's licence.
"""


if __name__ == "__main__":
    main()
