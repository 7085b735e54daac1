"""Other projects' names for our settings, values and recipes; a test compares docs/settings.md with these tables."""

from typing import Any

from quillgpt.errors import require

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
"""names of nanoGPT and OpenAI for one of our settings"""

VALUES: dict[tuple[str, str], dict[str, Any]] = {
    ("dtype", "float32"): {"dtype": "fp32"},
    ("dtype", "bfloat16"): {"dtype": "bf16"},
    ("dtype", "float16"): {"dtype": "fp16"},
    ("source", "shakespeare_char"): {"source": "shakespeare", "tokenizer": "character"},
    ("init", "resume"): {"fresh": False},
    ("attention", "SM"): {"attention": "softmax"},
    ("attention", "GK"): {"attention": "gaussian"},
}
"""our setting and a value of theirs -> our settings"""

BEGINNINGS = {
    ("attention", "GKpoly-"): "gaussian-poly-",
    ("attention", "PA_"): "pointwise-",
}
"""our setting and the beginning of a value of theirs -> our beginning; the rest of the value is the same"""

SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "wandb_log": ({"track": "wandb"}, {"track": "none"}),
    "decay_lr": ({}, {"schedule": "constant", "warmup_steps": 0}),
    "always_save_checkpoint": ({}, {}),
}
"""their boolean settings without a name here -> our settings for true and for false; {}: nothing to set

decay_lr = false also turns warm-up off, as it does there. The best and the last checkpoint are always kept.
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
"""configuration files of nanoGPT (train_11: of a project built on it), without `config/` and `.py` -> our recipes"""

YES = ("true", "1", "yes", "on")
NO = ("false", "0", "no", "off")


def translate(name: str, value: Any) -> dict[str, Any]:
    """Return our settings for a name and a value of ours or of theirs."""
    name = ALIASES.get(name, name)
    if name in SWITCHES:
        word, (if_true, if_false) = str(value).lower(), SWITCHES[name]
        require(name, value, word in YES + NO, "true or false")
        return dict(if_true if word in YES else if_false)
    for (setting, theirs), ours in BEGINNINGS.items():
        if name == setting and str(value).startswith(theirs):
            return {name: ours + str(value).removeprefix(theirs)}
    return dict(VALUES.get((name, str(value)), {name: value}))
