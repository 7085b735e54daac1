"""Other projects' names for our settings, recipes and values: the one table; a test holds docs/settings.md to it."""

from typing import Any

from quillgpt.errors import ConfigError, shown

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

VALUES: dict[tuple[str, str], dict[str, Any]] = {
    ("dtype", "float32"): {"dtype": "fp32"},
    ("dtype", "bfloat16"): {"dtype": "bf16"},
    ("dtype", "float16"): {"dtype": "fp16"},
    ("source", "shakespeare_char"): {"source": "shakespeare", "tokenizer": "character"},
    ("init", "resume"): {"fresh": False},
    ("attention", "SM"): {"attention": "softmax"},
    ("attention", "GK"): {"attention": "gaussian"},
}
"""A setting of ours with a value of theirs, and what it means here."""

BEGINNINGS = {
    ("attention", "GKpoly-"): "gaussian-poly-",
    ("attention", "PA_"): "pointwise-",
}
"""A setting of ours with the beginning of a value of theirs, and how it begins here; the rest is the same."""

SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "wandb_log": ({"track": "wandb"}, {"track": "none"}),
    "decay_lr": ({}, {"schedule": "constant", "warmup_steps": 0}),
    "always_save_checkpoint": ({}, {}),
}
"""Their settings that are true or false and have no name here, and what each means; {}: what is done in any case.

decay_lr = false turns warm-up off too, as there. Of the checkpoints, the best and the last are always kept.
"""

RECIPES = {
    "train_shakespeare_char": "shakespeare-char",
    "train_shakespeare": "shakespeare",
    "train_gpt2": "gpt2-124m",
    "finetune_shakespeare": "finetune-shakespeare",
    "train_11": "one-layer",
    "eval_gpt2": "eval-gpt2",
    "eval_gpt2_medium": "eval-gpt2-medium",
    "eval_gpt2_large": "eval-gpt2-large",
    "eval_gpt2_xl": "eval-gpt2-xl",
}
"""nanoGPT's configuration files, and the smallest of its descendants', and the recipes that do the same.

`config/` before and `.py` behind are left out."""

YES = ("true", "1", "yes", "on")
NO = ("false", "0", "no", "off")


def translate(name: str, value: Any) -> dict[str, Any]:
    """Our settings for a name and a value of ours or of theirs."""
    name = ALIASES.get(name, name)
    for (setting, theirs), ours in BEGINNINGS.items():
        if name == setting and str(value).startswith(theirs):
            return {name: ours + str(value).removeprefix(theirs)}
    if name not in SWITCHES:
        return dict(VALUES.get((name, str(value)), {name: value}))
    meaning_of_yes, meaning_of_no = SWITCHES[name]
    if str(value).lower() not in YES + NO:
        raise ConfigError(f"{name} = {shown(value)} is not true or false")
    return dict(meaning_of_yes if str(value).lower() in YES else meaning_of_no)
