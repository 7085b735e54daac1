"""Make the model in the package: train the recipe quill-python, pack its weights in bf16, evaluate them.

    python benchmarks/bundled_model.py                              # everything; continues where it stopped
    python benchmarks/bundled_model.py --run runs/quill-python      # only pack a run that is finished

The validation loss in the model card is that of the packed bf16 weights, read back from their file. Nothing of the
training text goes into the package.
"""

import dataclasses
import hashlib
from pathlib import Path

import measuring
import safetensors.torch
import torch

import quillgpt
from quillgpt import checkpoint, files, records
from quillgpt.checkpoint.load import BUNDLED_MODEL, DIRECTORY
from quillgpt.evaluate.loss import ValidationLoss, evaluate_loss
from quillgpt.evaluate.text import compressor_bits_per_byte, split_text
from quillgpt.model.sizes import parameter_count
from quillgpt.runtime import available_cores, cpu_name
from quillgpt.training.setup import Data

LARGEST_BYTES = 4_000_000
CARD = "README.md"


def main(run: str = "") -> None:
    """Train, pack and measure.

    Args:
        run: a finished run, instead of training one
    """
    directory = Path(run or f"runs/{BUNDLED_MODEL}")
    if not run:
        quillgpt.train(quillgpt.load_recipe(BUNDLED_MODEL, out=str(directory)))
    found = checkpoint.find(directory)
    pack(found, DIRECTORY)
    config = quillgpt.load_recipe(BUNDLED_MODEL)
    data = measuring.data_of(config)
    model, _ = quillgpt.load_model(DIRECTORY)
    loss = evaluate_loss(model, data.validation, data.bytes_per_token, batch_size=16, device="cpu", dtype=torch.float32)
    files.write_text(DIRECTORY / CARD, card(directory, loss, data))
    size = (DIRECTORY / checkpoint.MODEL).stat().st_size
    if size > LARGEST_BYTES:
        raise SystemExit(f"{size:,} bytes of weights; at most {LARGEST_BYTES:,} are bundled")
    print((DIRECTORY / CARD).read_text())


def pack(found: checkpoint.Checkpoint, directory: Path) -> None:
    """Write the checkpoint's weights in bf16, its tokenizer, its settings, and a manifest of them."""
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in found.tensors(checkpoint.MODEL).items()}
    contents = {
        checkpoint.MODEL: safetensors.torch.save(weights, metadata={"format": "pt"}),
        checkpoint.TOKENIZER: (found.path / checkpoint.TOKENIZER).read_bytes(),
        checkpoint.CONFIG: (found.path / checkpoint.CONFIG).read_bytes(),
    }
    written = {}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_bytes(content)
        written[name] = checkpoint.FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest = dataclasses.replace(found.manifest, files=written)
    files.write_json(directory / checkpoint.MANIFEST, records.seal(dataclasses.asdict(manifest)))


def card(run: Path, loss: ValidationLoss, data: Data) -> str:
    last = measuring.last_line(run)
    found = checkpoint.read_checkpoint(DIRECTORY)
    model, _ = quillgpt.load_model(DIRECTORY)
    validation, training = (split_text(split, data.tokenizer) for split in (data.validation.dataset, data.train))
    others = compressor_bits_per_byte(validation, training)
    compressors = ", ".join(f"{name} {figure:.3f}" for name, figure in others.items())
    shape = model.config
    size = f"{shape.n_layer} layers, {shape.n_embd} wide, {shape.n_head} heads, vocabulary {shape.vocab_size:,}"
    minutes = last["elapsed_seconds"] / 60
    return f"""# {BUNDLED_MODEL}: the bundled model

A small GPT that has read Python's standard library and nothing else. It knows what Python looks like; it does not know
what a program is for. `quill sample {BUNDLED_MODEL} -p "def main"` writes with it, and so does `quill sample` alone
where there is no run.

- Shape: {size}, context {shape.context_length}; {parameter_count(shape):,} parameters, in bf16.
- Made by `python benchmarks/bundled_model.py`, with the recipe `{BUNDLED_MODEL}` (config.toml has every setting), at
  commit {measuring.commit()}, torch {torch.__version__}, {cpu_name()}, {available_cores()} cores.
- Trained {found.step:,} steps, {last["tokens"]:,} tokens, {minutes:.0f} minutes.
- Validation, on files it was not trained on: {loss.loss:.4f} nats per token, {loss.bits_per_byte:.4f} bits per byte.
  The same text by others, bits per byte: {compressors}.
- Text: the standard library's Python files, as the source `python` finds them (PSF licence). None of it is here, only
  weights that were trained on it; they come under this project's licence.
"""


if __name__ == "__main__":
    measuring.run_script(__doc__, main)
