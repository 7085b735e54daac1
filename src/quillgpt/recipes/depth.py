"""One dial: from a modern recipe and another depth to everything that should change with it.

The recipe is the point that was tuned; the rules carry it to another number of blocks [Karpathy 2025]:

- width in proportion to depth, rounded up to whole heads of the recipe's size, and as many heads as that makes;
- tokens in proportion to the parameters that compute, N = 12 L C^2 + V C; a recipe of so many minutes keeps its
  minutes, and sees fewer tokens by the operations 6 N + 12 L C T that one costs;
- the batch with tokens^0.383, to a power of two times the recipe's; steps are tokens / batch;
- every rate with the square root of the batch [Malladi 2022]; those of embeddings and head, which are AdamW's, also
  with width^-1/2, while Muon's steps have the same size at every width;
- weight decay with sqrt(batch) / tokens, so that weights are averaged over the same share of the data [Wang 2024].

At the recipe's own depth every factor is 1 and all is as it was. The rules were fitted at 12 and more blocks of 64
times as many channels; the further from the recipe's own size, the more they are a guess (docs/depth.md).
"""

import math
from collections.abc import Mapping

from quillgpt.config import RunConfig, Scalar, flatten
from quillgpt.errors import ConfigError, require

DEEPEST = 256
BATCH_POWER = 0.383
WITHOUT_VOCABULARY = {"byte": 257, "character": 257}
"""tokenizers whose vocabulary does not follow the setting, and its usual size"""
SIZES = ("n_embd", "n_head", "context_length", "vocab_size")

Settings = dict[str, Scalar]


def settings_at_depth(recipe: RunConfig, depth: int, given: Mapping[str, Scalar]) -> Settings:
    """What changes in the recipe with so many blocks. What is `given` stays as it is, and the rest follows from it.

    A depth that is none, a recipe without Muon, or one that leaves its batch to the machine is a `ConfigError`.
    """
    _check(recipe, depth, given)
    if not _is_possible(given):
        return {}  # refused with the settings, by name
    then = flatten(recipe)
    settings = _shape(then, depth, given)
    now = {**then, **settings, **given}
    data = _tokens_ratio(then, now)
    settings |= _batch(then, now, data, given)
    now = {**then, **settings, **given}
    if not now["minutes"]:
        settings |= _length(then, now, data)
    return {name: value for name, value in (settings | _rates(then, now, data, given)).items() if name not in given}


def _is_possible(given: Mapping[str, Scalar]) -> bool:
    """Whether arithmetic can be done with the values that flags gave."""
    numbers = {name: value for name, value in given.items() if isinstance(value, int | float)}
    return all(math.isfinite(value) and value >= (name in SIZES) for name, value in numbers.items())


def _check(recipe: RunConfig, depth: int, given: Mapping[str, Scalar]) -> None:
    require("depth", depth, 1 <= depth <= DEEPEST, f"1 to {DEEPEST} blocks")
    if "n_layer" in given:
        raise ConfigError("--depth and --n-layer both set the number of blocks; leave one of them out")
    if recipe.optim.optimizer != "muon":
        remedy = "set --n-layer, --n-embd, --n-head and the rates yourself"
        raise ConfigError(
            f"--depth needs a recipe with optimizer = muon, this one has {recipe.optim.optimizer}; {remedy}"
        )
    if str(given.get("init", recipe.train.init)) != "scratch":
        raise ConfigError("--depth needs init = scratch: weights to start from bring their own shape")
    if not _step_tokens(flatten(recipe)):
        raise ConfigError("--depth needs a recipe that states its batch: batch_tokens, or batch_size")


def _shape(then: Mapping[str, Scalar], depth: int, given: Mapping[str, Scalar]) -> Settings:
    head_size = int(then["n_embd"]) // int(then["n_head"])
    wanted = int(then["n_embd"]) * depth / int(then["n_layer"])
    unit = math.lcm(head_size, 2 * int(given["n_head"])) if "n_head" in given else head_size
    width = int(given.get("n_embd", unit * math.ceil(wanted / unit)))
    return {"n_layer": depth, "n_embd": width, "n_head": max(1, width // head_size)}


def _computing(settings: Mapping[str, Scalar]) -> int:
    """Parameters of blocks and head; embeddings are looked up."""
    width, vocabulary = int(settings["n_embd"]), int(settings["vocab_size"])
    vocabulary = WITHOUT_VOCABULARY.get(str(settings["tokenizer"]), vocabulary)
    return 12 * int(settings["n_layer"]) * width**2 + vocabulary * width


def _operations(settings: Mapping[str, Scalar]) -> int:
    """To train on one token."""
    attention = 12 * int(settings["n_layer"]) * int(settings["n_embd"]) * int(settings["context_length"])
    return 6 * _computing(settings) + attention


def _tokens_ratio(then: Mapping[str, Scalar], now: Mapping[str, Scalar]) -> float:
    """Tokens of the run over those of the recipe's: what fits into the minutes, else what the parameters ask for."""
    if not then["minutes"]:
        return _computing(now) / _computing(then)
    minutes = float(now["minutes"]) / float(then["minutes"]) if now["minutes"] else 1.0
    return minutes * _operations(then) / _operations(now)


def _step_tokens(settings: Mapping[str, Scalar]) -> int:
    rows = int(settings["batch_size"]) * max(1, int(settings["gradient_accumulation_steps"]))
    return int(settings["batch_tokens"]) or rows * int(settings["context_length"])


def _batch(then: Mapping[str, Scalar], now: Mapping[str, Scalar], data: float, given: Mapping[str, Scalar]) -> Settings:
    stated = {"batch_tokens", "gradient_accumulation_steps"} | (set() if then["batch_tokens"] else {"batch_size"})
    if stated & given.keys() and _step_tokens(now) > 0:
        return {}
    before = _step_tokens(then)
    wanted = before * 2.0 ** round(BATCH_POWER * math.log2(data))
    rows = max(1, round(wanted / int(now["context_length"])))
    if wanted == before and now["context_length"] == then["context_length"] and not then["batch_tokens"]:
        return {}  # as the recipe says it
    return {"batch_tokens": rows * int(now["context_length"]), "gradient_accumulation_steps": 0}


def _length(then: Mapping[str, Scalar], now: Mapping[str, Scalar], data: float) -> Settings:
    longer = data * _step_tokens(then) / _step_tokens(now)
    steps = max(1, round(int(then["steps"]) * longer))
    decayed = max(1, round(int(then["decay_steps"]) * longer)) if then["decay_steps"] else 0
    return {"steps": steps, "decay_steps": decayed}


def _rates(then: Mapping[str, Scalar], now: Mapping[str, Scalar], data: float, given: Mapping[str, Scalar]) -> Settings:
    by_batch = math.sqrt(_step_tokens(now) / _step_tokens(then))
    by_width = math.sqrt(int(then["n_embd"]) / int(now["n_embd"]))
    lr = float(given["lr"]) if "lr" in given else _scaled(float(then["lr"]), by_batch)
    of_peak = lr / float(then["lr"]) if then["lr"] else 1.0
    settings: Settings = {"lr": lr, "min_lr": min(lr, _scaled(float(then["min_lr"]), of_peak))}
    for name in ("embedding_lr", "head_lr"):
        own = float(then[name])
        follows = 0.0 if by_width == 1.0 else _scaled(lr, by_width)  # 0 is Muon's rate
        settings[name] = _scaled(own, by_batch * by_width) if own else follows
    settings["scalar_lr"] = _scaled(float(then["scalar_lr"]), by_batch)
    settings["weight_decay"] = _scaled(float(then["weight_decay"]), by_batch / data)
    return settings


def _scaled(value: float, factor: float) -> float:
    """The product to four digits, which is more than the rules know; the value itself for a factor of 1."""
    return value if factor == 1.0 else float(f"{value * factor:.4g}")
