"""The settings of a run: frozen dataclasses are the schema, TOML files are recipes, other names are aliases.

A setting is a field, its default and the sentence below it. Names are unique over all groups, so that a recipe and
the command line may write them flat. Where 0 or "auto" means "decide here", `train/resolve.py` decides, and says so.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quillgpt.errors import ConfigError, check_type, nearest, pick, require, shown

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a GPT; the defaults are GPT-2 124M [Radford 2019, Table 2].

    For example:
        small = quillgpt.ModelConfig(n_layer=2, n_head=2, n_embd=64, context_length=64, vocab_size=257)
        model = quillgpt.GPT(dataclasses.replace(small, tied_head=False))
        print(model.config.n_layer, model.config.tied_head)  # 2 False
    """

    n_layer: int = 12
    """number of transformer blocks"""
    n_head: int = 12
    """number of attention heads; divides n_embd"""
    n_embd: int = 768
    """width of the residual stream (channels)"""
    context_length: int = 1024
    """number of earlier tokens the model can see"""
    vocab_size: int = 50257
    """number of tokens; bpe is trained to this size, the other tokenizers bring their own"""
    attention: str = "softmax"
    """attention: softmax (fused), explicit (the same written out)"""
    mlp: str = "gelu"
    """feed-forward part of a block: gelu, relu2, swiglu"""
    norm: str = "layernorm"
    """normalisation: layernorm, rmsnorm"""
    position: str = "learned"
    """how positions enter: learned (added to the embedding) or rotary (turns queries and keys)"""
    qk_norm: bool = False
    """normalise queries and keys before their product"""
    bias: bool = True
    """biases in linear layers and norms, as GPT-2 has them"""
    tied_head: bool = True
    """the output head shares the token embedding's weight"""
    dropout: float = 0.0
    """probability of dropping an activation while training"""

    def __post_init__(self) -> None:
        _check_each(self)
        for name, largest in _LARGEST.items():
            _require(self, name, 1 <= getattr(self, name) <= largest, f"1 to {largest:,}")
        _require(self, "n_head", self.n_embd % self.n_head == 0, f"a divisor of n_embd = {self.n_embd}")
        fits = self.position != "rotary" or self.n_embd // self.n_head % 2 == 0
        _require(self, "n_head", fits, f"n_embd / n_head even for rotary positions (n_embd = {self.n_embd})")
        _require(self, "dropout", 0.0 <= self.dropout < 1.0, "at least 0 and below 1")


_LARGEST = {"n_layer": 1_000, "n_head": 1 << 20, "n_embd": 1 << 20, "context_length": 1 << 24, "vocab_size": 1 << 32}
"""far beyond any model, so that a slip of the keyboard is told before memory is asked for"""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    source: str = "python"
    """text source: python, text, jsonl, parquet, shakespeare, openwebtext, fineweb-edu, nanogpt"""
    path: str = ""
    """files, folder or glob of the sources text, jsonl, parquet and nanogpt"""
    data: str = "auto"
    """directory of the prepared tokens; auto: data/SOURCE-TOKENIZER"""
    tokenizer: str = "gpt2"
    """tokenizer: gpt2, bpe (trained on the source), byte, character, or a tokenizer.json"""
    text_field: str = "text"
    """name of the field or column that holds the text (jsonl, parquet)"""
    subset: str = "sample-10BT"
    """which part of fineweb-edu"""
    documents: int = 0
    """use only the first so many documents; 0: all"""
    errors: str = "strict"
    """bytes that are not UTF-8: strict (stop and name the place) or replace (and count them)"""

    def __post_init__(self) -> None:
        _check_each(self)
        _require(self, "documents", self.documents >= 0, "at least 0")
        _one_of(self, "errors", "strict", "replace")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: str = "adamw"
    """optimizer: adamw"""
    lr: float = 6e-4
    """peak learning rate"""
    min_lr: float = 6e-5
    """learning rate at the end of the decay"""
    schedule: str = "cosine"
    """learning rate after warm-up: cosine, linear, wsd (warm-up, stable, decay), constant"""
    warmup_steps: int = 0
    """steps of linear warm-up from 0"""
    decay_steps: int = 0
    """step at which min_lr is reached; 0: the last step"""
    decay_fraction: float = 0.2
    """share of the steps that the wsd schedule decays over"""
    weight_decay: float = 0.1
    """decoupled weight decay, on matrices only"""
    beta1: float = 0.9
    """AdamW's first-moment decay"""
    beta2: float = 0.95
    """AdamW's second-moment decay"""
    eps: float = 1e-8
    """AdamW's denominator offset"""
    gradient_clip: float = 1.0
    """largest global gradient norm; 0: no clipping"""

    def __post_init__(self) -> None:
        _check_each(self)
        for name in ("lr", "min_lr", "weight_decay", "gradient_clip", "warmup_steps", "decay_steps"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        _require(self, "min_lr", self.min_lr <= self.lr, f"at most lr = {self.lr}")
        for name in ("beta1", "beta2"):
            _require(self, name, 0.0 <= getattr(self, name) < 1.0, "at least 0 and below 1")
        _require(self, "eps", 0.0 < self.eps < 1.0, "above 0 and below 1")
        _require(self, "decay_fraction", 0.0 < self.decay_fraction <= 1.0, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how long, how much at a time, on what, and what is kept."""

    steps: int = 600
    """optimizer steps"""
    minutes: float = 0.0
    """if above 0: choose the steps so that training takes about so many minutes here"""
    batch_tokens: int = 0
    """tokens in one step over all ranks; 0: batch_size * context_length * gradient_accumulation_steps"""
    batch_size: int = 0
    """sequences in a micro-batch; 0: as many as memory holds, at most 32"""
    gradient_accumulation_steps: int = 0
    """micro-batches in one step over all ranks when batch_tokens is 0; 0: 1"""
    seed: int = 1337
    """start of initial weights, data order and dropout"""
    init: str = "scratch"
    """scratch, or a run or checkpoint whose weights to start from"""
    eval_every: int = 200
    """steps between evaluations on held-out text; 0: only at the end"""
    eval_tokens: int = 10_485_760
    """most held-out tokens in one evaluation"""
    eval_iters: int = 0
    """if above 0: evaluate on eval_iters * batch_size * context_length tokens instead (nanoGPT's unit)"""
    eval_only: bool = False
    """evaluate and stop"""
    save_every: int = 200
    """steps between checkpoints; 0: only at the end"""
    keep_last: int = 2
    """checkpoints to keep besides the best one"""
    log_every: int = 10
    """steps between lines of metrics"""
    sample_every: int = 0
    """steps between samples written to samples/; 0: none"""
    out: str = "auto"
    """run directory; auto: runs/RECIPE"""
    fresh: bool = False
    """refuse to continue a run that is already in the run directory"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """compute type: auto, fp32, bf16, fp16"""
    float32_matmul_precision: str = "high"
    """fp32 products on CUDA: highest (IEEE), high (TF32), medium"""
    compile: str = "auto"
    """torch.compile: auto, on, off"""
    compile_backend: str = "inductor"
    """backend of torch.compile"""
    threads: int = 0
    """CPU threads; 0: one for each core this process may use"""
    dist_backend: str = "auto"
    """between ranks: auto (nccl on CUDA, gloo elsewhere), nccl, gloo"""
    dist_timeout_seconds: int = 600
    """longest wait of a rank for the others"""
    track: str = "none"
    """also send metrics to: none, wandb, tensorboard, trackio"""
    track_project: str = "quillgpt"
    """project name for the tracker"""
    track_name: str = "auto"
    """run name for the tracker; auto: the run directory's name"""

    def __post_init__(self) -> None:
        _check_each(self)
        counts = ("steps", "batch_tokens", "batch_size", "gradient_accumulation_steps", "eval_every", "eval_iters")
        for name in (*counts, "save_every", "sample_every", "seed"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("eval_tokens", "log_every", "keep_last"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "minutes", 0 <= self.minutes <= 1e6, "0 to 1,000,000")
        _require(self, "threads", 0 <= self.threads <= 1024, "0 to 1,024")
        _require(self, "dist_timeout_seconds", 1 <= self.dist_timeout_seconds <= 10**6, "1 to 1,000,000")
        _one_of(self, "dtype", "auto", "fp32", "bf16", "fp16")
        _one_of(self, "compile", "auto", "on", "off")
        _one_of(self, "float32_matmul_precision", "highest", "high", "medium")
        _one_of(self, "dist_backend", "auto", "nccl", "gloo")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run is made from; saved with it as config.toml, which is a recipe again.

    For example:
        config = quillgpt.RunConfig(model=quillgpt.ModelConfig(n_layer=2))
        print(config.model.n_layer, config.optim.lr)  # 2 0.0006
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """The shape of a GPT; the defaults are GPT-2 124M [Radford 2019, Table 2]."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        train, context_length = self.train, self.model.context_length
        divides = train.batch_tokens % context_length == 0
        _require(train, "batch_tokens", divides, f"a multiple of context_length = {context_length}")
        is_stated_once = not (train.batch_tokens and train.gradient_accumulation_steps)
        _require(train, "batch_tokens", is_stated_once, "0, because gradient_accumulation_steps sets the global batch")


GROUPS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "train": TrainConfig}


@functools.cache
def meanings() -> dict[str, str]:
    """Every setting's name and its one-line meaning, read from the sentences below the fields above."""
    found = {}
    for group in GROUPS.values():
        statements = [node for node in ast.walk(ast.parse(inspect.getsource(group))) if isinstance(node, ast.stmt)]
        for first, second in itertools.pairwise(statements):
            match first, second:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    found[name] = meaning
    return found


@functools.cache
def group_of() -> dict[str, str]:
    """Every setting's name and the group (and TOML table) it belongs to."""
    return {setting.name: group for group, schema in GROUPS.items() for setting in dataclasses.fields(schema)}


def flatten(config: RunConfig) -> dict[str, Scalar]:
    """All settings of a run by their names."""
    return {name: getattr(getattr(config, group), name) for name, group in group_of().items()}


def updated(config: RunConfig, settings: Mapping[str, Any], *, where: str) -> RunConfig:
    """The same run with some settings changed; an unknown name or an impossible value names `where` it stood."""
    groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    for name, value in settings.items():
        if name not in group_of():
            meant = nearest(name, group_of())
            raise ConfigError(f"{where}: unknown setting {shown(name)}{meant}; `quill train --help` lists all")
        if name == "compile" and isinstance(value, bool):
            value = "on" if value else "off"
        groups[group_of()[name]][name] = value
    try:
        changed = {name: dataclasses.replace(getattr(config, name), **new) for name, new in groups.items() if new}
        return dataclasses.replace(config, **changed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_each(config: Any) -> None:
    """What can be told of a value by itself."""
    for setting in dataclasses.fields(config):
        name, value = setting.name, getattr(config, setting.name)
        check_type(name, value, type(setting.default))
        require(name, value, value != "" or name == "path", "something")


def _require(config: Any, name: str, holds: bool, expected: str) -> None:
    require(name, getattr(config, name), holds, expected)


def _one_of(config: Any, name: str, *choices: str) -> None:
    pick(dict.fromkeys(choices), getattr(config, name), name)
