"""The training of gpt2.py as a plain PyTorch loop: `python train.py FILE.txt`.

Text, batches and learning rate are those of gpt2.py. Because the weights have the same names, so is the sampling.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.explain.gpt2 import Config, batch, decode, encode, learn_merges, learning_rate, sample
from quillgpt.explain.model import GPT


def new_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW in two groups: matrices shrink, biases and norms do not [Loshchilov 2019]."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)


def train(model: GPT, tokens: Tensor, config: Config) -> Iterator[float]:
    """Learn from the text; yields the loss of each step, in nats per token."""
    optimizer = new_optimizer(model, config)
    for step in range(config.steps):
        inputs, targets = batch(tokens, config)  # each (B, T)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())  # (B * T, V) and (B * T)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        yield loss.item()


if __name__ == "__main__":
    config, text = Config(), Path(sys.argv[1]).read_text(encoding="utf-8")
    merges = learn_merges(text[:50_000], config.vocab_size - 256)
    tokens, model = torch.tensor(encode(text, merges)), GPT(config)
    for step, loss in enumerate(train(model, tokens, config)):
        if step % 50 == 0:
            print(f"step {step:4}  loss {loss:.3f}")
    print(decode(list(sample(tokens[:64].tolist(), 200, model.state_dict(), config)), merges))
