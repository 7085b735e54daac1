"""Samples on the way: what the model writes at a step, in the run's samples/ folder."""

from quillgpt import files
from quillgpt.evaluate.held_out_loss import evaluation_mode
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory
from quillgpt.sample.generate import generate
from quillgpt.tokenizer import Tokenizer

SAMPLE_TOKENS = 200
SAMPLE_COUNT = 2


def write_samples(run: RunDirectory, model: GPT, tokenizer: Tokenizer, step: int, seed: int) -> None:
    """Write two texts from the end-of-text token on; they have their own random generators and touch no other."""
    with evaluation_mode(model):
        texts = generate(model, tokenizer, max_new_tokens=SAMPLE_TOKENS, num_samples=SAMPLE_COUNT, seed=seed)
    files.write_text(run.samples / f"step-{step:06d}.txt", "\n\n----\n\n".join(texts) + "\n")
