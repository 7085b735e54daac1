"""All settings of a run: five frozen dataclasses, their checks, and the growth of the batch.

A setting is a field, its default, and the sentence below it, which is its help. Names are unique over all groups, so
recipes and the command line need no group. `runtime.py` replaces 0 or "auto" by a value and reports its reason.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quillgpt.errors import ConfigError, check_type, nearest, pick, require, shown

Scalar = bool | int | float | str

MAY_BE_EMPTY = {"path", "eval_tasks", "batch_ramp"}
MATMUL_PRECISIONS = ("highest", "high", "medium")
MOST_STAGES = 64
RAMP_NOTATION = (
    "stages as in 0.25@0,0.5@0.3,1@0.6: fraction@begin, both increasing, the first begin 0, the last fraction 1"
)


def check_types(config: Any) -> None:
    """Check the type of every setting, and that text is not empty."""
    for setting in dataclasses.fields(config):
        name, value = setting.name, getattr(config, setting.name)
        check_type(name, value, type(setting.default))
        require(name, value, value != "" or name in MAY_BE_EMPTY, "non-empty")


def check_range(config: Any, low: float, high: float, *names: str) -> None:
    """Check that the settings are in [low, high]."""
    expected = f"{low:,} to {high:,}" if high < math.inf else f">= {low:,}"
    for name in names:
        require(name, getattr(config, name), low <= getattr(config, name) <= high, expected)


def check_fraction(config: Any, *names: str) -> None:
    """Check that the settings are in [0, 1)."""
    for name in names:
        require(name, getattr(config, name), 0 <= getattr(config, name) < 1, ">= 0 and < 1")


def check_choice(config: Any, name: str, *choices: str) -> None:
    """Check that the setting is one of the choices."""
    pick(dict.fromkeys(choices), getattr(config, name), name)


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
    """maximum number of tokens the model can see"""
    vocab_size: int = 50257
    """size of the vocabulary; bpe is trained to this size, other tokenizers have their own"""
    attention: str = "softmax"
    """softmax, explicit (the same), gaussian, gaussian-normalized, gaussian-poly-N, pointwise-ACT, power"""
    pointwise_length_power: float = 1.0
    """pointwise attention divides by (number of visible positions)^this; 0: not at all"""
    mlp: str = "gelu"
    """feed-forward part of a block: gelu (tanh form), gelu-exact, relu2, square, swiglu"""
    norm: str = "layernorm"
    """normalization: layernorm, rmsnorm"""
    position: str = "learned"
    """position encoding: learned (added to the embedding) or rotary (rotates queries and keys)"""
    qk_norm: bool = False
    """normalize queries and keys before their product"""
    bias: bool = True
    """biases in linear layers and norms, as GPT-2 has them"""
    tied_head: bool = True
    """the output head shares the token embedding's weight"""
    embedding_norm: bool = False
    """normalize the embedded tokens before the first block"""
    residual: str = "plain"
    """input of a block: plain (residual stream) or mixed (learned sum of the stream and the token embeddings)"""
    value_embeddings: bool = False
    """every second block adds a gated, learned embedding of the token to its values"""
    logit_softcap: float = 0.0
    """soft-cap of the logits: x becomes cap * tanh(x / cap); 0: none"""
    initialization: str = "gpt2"
    """initial weights: gpt2, or zero-output (a block adds 0 at the start)"""
    dropout: float = 0.0
    """probability of dropping an activation while training"""

    def __post_init__(self) -> None:
        check_types(self)
        # The limits are far beyond any model, so that a typo is reported before memory is allocated.
        check_range(self, 1, 1_000, "n_layer")
        check_range(self, 1, 1 << 20, "n_head", "n_embd")
        check_range(self, 1, 1 << 24, "context_length")
        check_range(self, 1, 1 << 32, "vocab_size")
        check_range(self, 0, 2, "pointwise_length_power")
        check_range(self, 0, 10_000, "logit_softcap")
        check_fraction(self, "dropout")
        head_size, rest = divmod(self.n_embd, self.n_head)
        require("n_head", self.n_head, rest == 0, f"a divisor of n_embd = {self.n_embd}")
        fits = self.position != "rotary" or head_size % 2 == 0
        require("n_head", self.n_head, fits, f"n_embd / n_head even for rotary positions (n_embd = {self.n_embd})")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text and its tokenizer."""

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
    """subset of fineweb-edu"""
    documents: int = 0
    """use only the first N documents; 0: all"""
    errors: str = "strict"
    """bytes that are not UTF-8: strict (stop with an error) or replace (and count them)"""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, 0, math.inf, "documents")
        check_choice(self, "errors", "strict", "replace")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and the learning-rate schedule."""

    optimizer: str = "adamw"
    """optimizer: adamw; muon (for the blocks' matrices, with AdamW for the rest)"""
    lr: float = 6e-4
    """peak learning rate"""
    embedding_lr: float = 0.0
    """muon: peak learning rate of AdamW for embeddings; 0: lr"""
    head_lr: float = 0.0
    """muon: peak learning rate of AdamW for an untied output head; 0: lr"""
    scalar_lr: float = 0.0
    """muon: peak learning rate of AdamW for norm gains, biases and scalars; 0: lr"""
    min_lr: float = 6e-5
    """learning rate at the end of the decay"""
    schedule: str = "cosine"
    """learning-rate schedule after warm-up: cosine, linear, wsd (warm-up, stable, decay), constant"""
    warmup_steps: int = 0
    """steps of linear warm-up; the first has lr / (warmup_steps + 1)"""
    decay_steps: int = 0
    """step at which min_lr is reached; 0: the last step"""
    decay_fraction: float = 0.2
    """fraction of the steps after warm-up in which the wsd schedule decays, at the end"""
    weight_decay: float = 0.1
    """decoupled weight decay, on matrices only"""
    beta1: float = 0.9
    """AdamW: decay of the first moment"""
    beta2: float = 0.95
    """AdamW: decay of the second moment"""
    eps: float = 1e-8
    """AdamW: added to the denominator"""
    momentum: float = 0.95
    """muon: momentum"""
    momentum_warmup_steps: int = 0
    """muon: steps in which the momentum rises from 0.85"""
    gradient_clip: float = 1.0
    """maximum global gradient norm; 0: no clipping"""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, 0, math.inf, "lr", "min_lr", "embedding_lr", "head_lr", "scalar_lr", "weight_decay")
        check_range(self, 0, math.inf, "gradient_clip", "warmup_steps", "decay_steps", "momentum_warmup_steps")
        check_fraction(self, "beta1", "beta2", "momentum")
        require("min_lr", self.min_lr, self.min_lr <= self.lr, f"<= lr = {self.lr}")
        require("eps", self.eps, 0 < self.eps < 1, "> 0 and < 1")
        require("decay_fraction", self.decay_fraction, 0 < self.decay_fraction <= 1, "> 0 and <= 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop: length, batch, evaluation, checkpoints, hardware."""

    steps: int = 600
    """number of optimizer steps"""
    minutes: float = 0.0
    """if above 0: measure the speed and set steps so that training takes about this long"""
    batch_tokens: int = 0
    """tokens in a step over all ranks; 0: batch_size * context_length * gradient_accumulation_steps"""
    batch_size: int = 0
    """sequences in a micro-batch; 0: as many as fit into memory, at most 32"""
    gradient_accumulation_steps: int = 0
    """micro-batches in a step, the total of all ranks, if batch_tokens is 0; 0: 1"""
    batch_ramp: str = ""
    """growing batch, fraction@begin, as 0.25@0,0.5@0.3,1@0.6; lr is scaled by its square root; empty: none"""
    seed: int = 1337
    """random seed of initial weights, data order and dropout"""
    init: str = "scratch"
    """scratch, or the model to start from: a run, gpt2 ... gpt2-xl, a Hugging Face directory, a ckpt.pt"""
    stop_at_loss: float = 0.0
    """if above 0: stop at the first evaluation with at most this validation loss (nats per token)"""
    eval_every: int = 200
    """steps between evaluations of the validation loss; 0: only at the end"""
    eval_tokens: int = 10_485_760
    """maximum number of validation tokens in an evaluation"""
    eval_iters: int = 0
    """if above 0: evaluate on eval_iters * batch_size * context_length tokens instead (nanoGPT's unit)"""
    eval_tasks: str = ""
    """tasks to score at each evaluation, as hellaswag:200,piqa; NAME:200 takes 200 items"""
    task_data: str = "data/tasks"
    """directory with the files of the tasks"""
    eval_only: bool = False
    """evaluate the best checkpoint, or else the initial model, on both splits, and stop"""
    save_every: int = 200
    """steps between checkpoints; 0: only at the end"""
    keep_last: int = 2
    """checkpoints to keep, not counting the best one"""
    log_every: int = 10
    """steps between lines of metrics"""
    sample_every: int = 0
    """steps between samples of text, written to samples/; 0: none"""
    out: str = "auto"
    """run directory; auto: runs/RECIPE"""
    fresh: bool = False
    """refuse to continue a run that is already in the run directory"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """compute type: auto, fp32, bf16, fp16"""
    float32_matmul_precision: str = "high"
    """precision of fp32 matrix products on CUDA: highest (IEEE), high (TF32), medium"""
    compile: str = "auto"
    """torch.compile: auto, on, off"""
    compile_backend: str = "inductor"
    """backend of torch.compile"""
    threads: int = 0
    """CPU threads; 0: one per core this process may use"""
    dist_backend: str = "auto"
    """torch.distributed backend: auto (nccl on CUDA, gloo elsewhere), nccl, gloo"""
    dist_timeout_seconds: int = 600
    """maximum time a rank waits for the other ranks"""
    track: str = "none"
    """experiment tracker: none, wandb, tensorboard, trackio"""
    track_project: str = "quillgpt"
    """project name for the tracker"""
    track_name: str = "auto"
    """run name for the tracker; auto: the run directory's name"""

    def __post_init__(self) -> None:
        check_types(self)
        batch_stages(self.batch_ramp)
        check_range(self, 0, math.inf, "steps", "batch_tokens", "batch_size", "gradient_accumulation_steps", "seed")
        check_range(self, 0, math.inf, "eval_every", "eval_iters", "save_every", "sample_every", "stop_at_loss")
        check_range(self, 1, math.inf, "eval_tokens", "log_every", "keep_last")
        check_range(self, 0, 1_000_000, "minutes")
        check_range(self, 0, 1_024, "threads")
        check_range(self, 1, 1_000_000, "dist_timeout_seconds")
        check_choice(self, "dtype", "auto", "fp32", "bf16", "fp16")
        check_choice(self, "compile", "auto", "on", "off")
        check_choice(self, "float32_matmul_precision", *MATMUL_PRECISIONS)
        check_choice(self, "dist_backend", "auto", "nccl", "gloo")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA: the weights of `init` are frozen, and low-rank adapters are trained [Hu 2021]."""

    lora_rank: int = 0
    """rank of the adapters; 0: train all weights instead"""
    lora_alpha: float = 16.0
    """adapters are scaled by lora_alpha / lora_rank, so another rank needs no other learning rate"""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, 0, 1 << 20, "lora_rank")
        require("lora_alpha", self.lora_alpha, 0 < self.lora_alpha <= 1e6, "> 0 and <= 1,000,000")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run, saved with it as config.toml, which is itself a recipe.

    For example:
        config = quillgpt.RunConfig(model=quillgpt.ModelConfig(n_layer=2))
        print(config.model.n_layer, config.optim.lr)  # 2 0.0006
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """The shape of a GPT; the defaults are GPT-2 124M [Radford 2019, Table 2]."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        batch_tokens, context_length = self.train.batch_tokens, self.model.context_length
        is_multiple = batch_tokens % context_length == 0
        require("batch_tokens", batch_tokens, is_multiple, f"a multiple of context_length = {context_length}")
        is_set_once = not (batch_tokens and self.train.gradient_accumulation_steps)
        expected = "0, because gradient_accumulation_steps sets the global batch"
        require("batch_tokens", batch_tokens, is_set_once, expected)
        rank, has_base = self.lora.lora_rank, self.train.init != "scratch"
        expected = "0, because init = scratch has no weights to adapt; --init names them"
        require("lora_rank", rank, has_base or not rank, expected)


GROUPS: dict[str, type] = typing.get_type_hints(RunConfig)


@functools.cache
def meanings() -> dict[str, str]:
    """Every setting's name and its help, read from the sentences below the fields above."""
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
    """Return the config with some settings changed; a `ConfigError` says `where` a wrong name or value was given."""
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


# A growing batch: a ramp "0.25@0,1@0.6" has stages, and a run of known length has a plan of (first step, batch size).


def batch_stages(ramp: str) -> list[tuple[float, float]]:
    """(fraction of the batch, fraction of the steps at which it begins) of each stage; one stage without a ramp."""
    words = ramp.split(",") if ramp else ["1@0"]
    try:
        pairs = (word.split("@") for word in words[: MOST_STAGES + 1])
        stages = [(float(fraction), float(begin)) for fraction, begin in pairs]
    except ValueError:
        stages = []
    require("batch_ramp", ramp, _is_ramp(stages), RAMP_NOTATION)
    return stages


def _is_ramp(stages: list[tuple[float, float]]) -> bool:
    """Whether fractions increase from above 0 to 1 and begins from 0 to below 1, all finite."""
    if not 1 <= len(stages) <= MOST_STAGES or not all(map(math.isfinite, itertools.chain(*stages))):
        return False
    fractions, begins = zip(*stages, strict=True)
    increase = all(list(column) == sorted(set(column)) for column in (fractions, begins))
    return increase and fractions[0] > 0 and fractions[-1] == 1 and begins[0] == 0 and begins[-1] < 1


def stage_batch_sizes(ramp: str, batch_size: int) -> list[int]:
    """Batch sizes of the stages, increasing, without repetitions; `batch_size` is that of the last stage."""
    return list(dict.fromkeys(max(1, round(fraction * batch_size)) for fraction, _ in batch_stages(ramp)))


def smallest_batch_size(ramp: str, batch_size: int) -> int:
    """Sequences in a step of the first stage; `batch_size` is that of the last."""
    return stage_batch_sizes(ramp, batch_size)[0]


def batch_plan(ramp: str, *, batch_size: int, steps: int) -> list[tuple[int, int]]:
    """(first step, batch size) of each stage of a run; stages shorter than half a step are left out."""
    plan: list[tuple[int, int]] = []
    for fraction, begin in batch_stages(ramp):
        step, size = round(begin * steps), max(1, round(fraction * batch_size))
        plan = [stage for stage in plan if stage[0] < step]
        if not plan or plan[-1][1] != size:
            plan.append((step, size))
    return plan


def ramp_sequences(ramp: str, *, batch_size: int, steps: int) -> int:
    """Number of sequences in all steps."""
    plan = batch_plan(ramp, batch_size=batch_size, steps=steps)
    ends = [*(step for step, _ in plan[1:]), steps]
    return sum((end - begin) * size for (begin, size), end in zip(plan, ends, strict=True))


def merged_plan(
    done: Sequence[tuple[int, int]], planned: Sequence[tuple[int, int]], step: int
) -> list[tuple[int, int]]:
    """The stages of `done` that began before the step, then those of `planned` from the step on."""
    plan = [stage for stage in done if stage[0] < step]
    now = [size for begin, size in planned if begin <= step][-1]
    if not plan or plan[-1][1] != now:
        plan.append((step, now))
    return plan + [stage for stage in planned if stage[0] > step]
