"""Other projects' names for our settings, recipes and values: the one table; a test holds docs/names.md to it."""

from typing import Any

ALIASES = {
    "block_size": "context_length",
    "n_ctx": "context_length",
    "n_positions": "context_length",
    "attn_type": "attention",
    "learning_rate": "lr",
    "max_iters": "steps",
    "max_steps": "steps",
    "warmup_iters": "warmup_steps",
    "lr_decay_iters": "decay_steps",
    "grad_clip": "gradient_clip",
    "eval_interval": "eval_every",
    "log_interval": "log_every",
    "out_dir": "out",
    "init_from": "init",
    "dataset": "source",
    "backend": "dist_backend",
    "wandb_project": "track_project",
    "wandb_run_name": "track_name",
}
"""nanoGPT's and OpenAI's names for one of our settings."""

VALUES = {
    ("dtype", "float32"): {"dtype": "fp32"},
    ("dtype", "bfloat16"): {"dtype": "bf16"},
    ("dtype", "float16"): {"dtype": "fp16"},
    ("source", "shakespeare_char"): {"source": "shakespeare", "tokenizer": "character"},
    ("init", "resume"): {"fresh": "false"},
    ("decay_lr", "true"): {},
    ("decay_lr", "false"): {"schedule": "constant"},
    ("wandb_log", "true"): {"track": "wandb"},
    ("wandb_log", "false"): {"track": "none"},
    ("always_save_checkpoint", "true"): {},
    ("always_save_checkpoint", "false"): {},
    ("attention", "SM"): {"attention": "softmax"},
}
"""A value of theirs and what it means here. always_save_checkpoint has no effect: best and last are both kept."""

RECIPES = {
    "train_shakespeare_char": "shakespeare-char",
    "train_shakespeare": "shakespeare",
    "train_gpt2": "gpt2-124m",
}
"""nanoGPT's configuration files and the recipes that do the same."""


def translate(name: str, value: Any) -> dict[str, Any]:
    """Our settings for a name and a value of ours or of theirs."""
    name = ALIASES.get(name, name)
    text = str(value)
    for key in ((name, text), (name, text.lower())):
        if key in VALUES:
            return dict(VALUES[key])
    return {name: value}
