"""Scaling a recipe to another depth: shape, tokens, batch, learning rates and weight decay follow [Karpathy 2025].

- Width is proportional to depth, rounded up to whole heads of the recipe's size; so is the number of heads.
- Tokens are proportional to N = 12 L C^2 + V C, the parameters of blocks and head. A recipe in minutes keeps its
  minutes, so its tokens change with the cost of one, 6 N + 12 L C T operations.
- The batch is proportional to tokens^0.383, rounded to the recipe's times a power of two; steps are tokens / batch.
- Learning rates are proportional to the square root of the batch [Malladi 2022]; those of embeddings and head, which
  AdamW trains, also to width^-1/2. Muon's updates have the same size at every width.
- Weight decay is proportional to sqrt(batch) / tokens: weights are averaged over the same fraction of the data
  [Wang 2024].

At the recipe's own depth nothing changes. The rules were fitted at 12 and more blocks of width 64 times the depth; far
from that they are a guess (docs/depth.md).
"""

import math
from typing import Any

from quillgpt.config import RunConfig, flatten
from quillgpt.errors import ConfigError, require

DEEPEST = 256
BATCH_POWER = 0.383
FIXED_VOCABULARIES = {"byte": 257, "character": 257}
"""tokenizers that ignore vocab_size, and the usual size of their vocabulary"""
SIZES = ("n_embd", "n_head", "context_length", "vocab_size")

Settings = dict[str, Any]


def settings_at_depth(recipe: RunConfig, depth: int, given: Settings) -> Settings:
    """Return what changes in the recipe with that number of blocks; what is `given` is kept, and the rest follows.

    A `ConfigError`: the depth is out of range, the optimizer is not Muon, or the recipe does not set its batch.
    """
    _check(recipe, depth, given)
    old = flatten(recipe)
    for name, value in given.items():
        is_usable = isinstance(value, int | float) and math.isfinite(value) and value >= (name in SIZES)
        if isinstance(old.get(name), int | float) and not is_usable:
            return {}  # the checks of the settings refuse it by name
    derived = _shape(old, depth, given)
    new = old | derived | given
    token_ratio = _token_ratio(old, new)
    derived |= _batch(old, new, token_ratio, given)
    new = old | derived | given
    if not new["minutes"]:
        derived |= _steps(old, new, token_ratio)
    derived |= _rates(old, new, token_ratio, given)
    return {name: value for name, value in derived.items() if name not in given}


def _check(recipe: RunConfig, depth: int, given: Settings) -> None:
    require("depth", depth, 1 <= depth <= DEEPEST, f"1 to {DEEPEST} blocks")
    if "n_layer" in given:
        raise ConfigError("--depth and --n-layer both set the number of blocks; leave one of them out")
    if recipe.optim.optimizer != "muon":
        found = f"--depth needs a recipe with optimizer = muon, this one has {recipe.optim.optimizer}"
        raise ConfigError(f"{found}; set --n-layer, --n-embd, --n-head and the learning rates yourself")
    if given.get("init", recipe.train.init) != "scratch":
        raise ConfigError("--depth needs init = scratch: the model of `init` has its own shape")
    if not _step_tokens(flatten(recipe)):
        raise ConfigError("--depth needs a recipe that sets its batch: batch_tokens, or batch_size")


def _shape(old: Settings, depth: int, given: Settings) -> Settings:
    head_size = old["n_embd"] // old["n_head"]
    unit = math.lcm(head_size, 2 * given["n_head"]) if "n_head" in given else head_size
    width = given.get("n_embd", unit * math.ceil(old["n_embd"] * depth / old["n_layer"] / unit))
    return {"n_layer": depth, "n_embd": width, "n_head": max(1, width // head_size)}


def _matrix_parameters(settings: Settings) -> int:
    """Parameters of blocks and head, without embeddings."""
    vocab_size = FIXED_VOCABULARIES.get(settings["tokenizer"], settings["vocab_size"])
    return 12 * settings["n_layer"] * settings["n_embd"] ** 2 + vocab_size * settings["n_embd"]


def _operations(settings: Settings) -> int:
    """Floating-point operations to train on one token."""
    attention = 12 * settings["n_layer"] * settings["n_embd"] * settings["context_length"]
    return 6 * _matrix_parameters(settings) + attention


def _token_ratio(old: Settings, new: Settings) -> float:
    """Tokens of the new run over those of the recipe's."""
    if not old["minutes"]:
        return _matrix_parameters(new) / _matrix_parameters(old)
    minutes = new["minutes"] / old["minutes"] if new["minutes"] else 1.0
    return minutes * _operations(old) / _operations(new)


def _step_tokens(settings: Settings) -> int:
    sequences = settings["batch_size"] * max(1, settings["gradient_accumulation_steps"])
    return settings["batch_tokens"] or sequences * settings["context_length"]


def _batch(old: Settings, new: Settings, token_ratio: float, given: Settings) -> Settings:
    sets_batch = {"batch_tokens", "gradient_accumulation_steps"} | (set() if old["batch_tokens"] else {"batch_size"})
    if sets_batch & given.keys() and _step_tokens(new) > 0:
        return {}
    context_length, tokens = (
        new["context_length"],
        _step_tokens(old) * 2.0 ** round(BATCH_POWER * math.log2(token_ratio)),
    )
    is_same = tokens == _step_tokens(old) and context_length == old["context_length"]
    if is_same and not old["batch_tokens"]:
        return {}  # in sequences, as in the recipe
    sequences = max(1, round(tokens / context_length))
    return {"batch_tokens": sequences * context_length, "gradient_accumulation_steps": 0}


def _steps(old: Settings, new: Settings, token_ratio: float) -> Settings:
    factor = token_ratio * _step_tokens(old) / _step_tokens(new)
    decay_steps = max(1, round(old["decay_steps"] * factor)) if old["decay_steps"] else 0
    return {"steps": max(1, round(old["steps"] * factor)), "decay_steps": decay_steps}


def _rates(old: Settings, new: Settings, token_ratio: float, given: Settings) -> Settings:
    by_batch = math.sqrt(_step_tokens(new) / _step_tokens(old))
    by_width = math.sqrt(old["n_embd"] / new["n_embd"])
    lr = float(given["lr"]) if "lr" in given else _scaled(old["lr"], by_batch)
    settings = {"lr": lr, "min_lr": min(lr, _scaled(old["min_lr"], lr / old["lr"] if old["lr"] else 1.0))}
    for name in ("embedding_lr", "head_lr"):
        of_muon = 0.0 if by_width == 1.0 else _scaled(lr, by_width)  # 0: the same as lr
        settings[name] = _scaled(old[name], by_batch * by_width) if old[name] else of_muon
    settings["scalar_lr"] = _scaled(old["scalar_lr"], by_batch)
    settings["weight_decay"] = _scaled(old["weight_decay"], by_batch / token_ratio)
    return settings


def _scaled(value: float, factor: float) -> float:
    """The product to four digits, more than the rules determine; the value itself for a factor of 1."""
    return value if factor == 1.0 else float(f"{value * factor:.4g}")
