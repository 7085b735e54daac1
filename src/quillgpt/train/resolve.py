"""Choices made once, each with its reason: device, dtype, threads, compile, micro-batch.

`auto` in a recipe becomes a value here; the screen shows it with its reason, the checkpoint keeps it, and a resumed run
takes it from there, because each of these choices changes the bits of a result.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from quillgpt.config import ModelConfig, RunConfig, TrainConfig, flatten
from quillgpt.data.sources import SOURCES
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, OutOfMemory, pick
from quillgpt.evaluate.tasks import chosen_tasks
from quillgpt.hardware import Machine
from quillgpt.model.attention import find_attention
from quillgpt.model.attention.softmax import LONGEST_WRITTEN_OUT, is_written_out
from quillgpt.model.initialization import INITIALIZATIONS
from quillgpt.model.lora import adapter_parameter_count
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.model.residual import RESIDUALS
from quillgpt.model.sizes import parameter_count
from quillgpt.optim import OPTIMIZERS
from quillgpt.optim.schedules import SCHEDULES
from quillgpt.train.attention_memory import attention_bytes
from quillgpt.train.batch_ramp import smallest_rows
from quillgpt.train.track import TRACKERS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_SHARE = 0.8  # of the free memory, for the estimate to fill
CLEARLY_TOO_MUCH = 1.5  # times the free memory; the estimate is within 0.75 to 1.3 of the truth (tests)
LARGEST_AUTO_BATCH = 32
LOSS_CHUNK_ELEMENTS = 1 << 25  # logits that exist at one time: 128 MiB in fp32


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a run computes with. `rows` are sequences in a global step, `batch_size` those of one micro-batch."""

    device: str
    dtype: str
    threads: int
    compile: bool
    compile_backend: str
    matmul_precision: str
    dist_backend: str
    rows: int
    batch_size: int
    world_size: int


def resolve(config: RunConfig, machine: Machine, ranks: Ranks) -> tuple[Choices, dict[str, str]]:
    """The choices for this run on this machine, and for each its reason in a few words."""
    check_menus(config)
    train = config.train
    device, device_reason = choose_device(train.device, machine, ranks)
    kind = device.partition(":")[0]
    dtype, dtype_reason = choose_dtype(train.dtype, kind, machine)
    threads, threads_reason = choose_threads(train.threads, machine, ranks)
    compiled, compile_reason = choose_compile(train.compile, kind, machine)
    if compiled:
        check_compile_backend(train.compile_backend)
    batch_size, batch_reason = choose_batch_size(config, kind, dtype, machine, ranks)
    rows = global_rows(train, config.model, batch_size)
    check_rows(smallest_rows(train.batch_ramp, rows), ranks)
    batch_size = min(batch_size, -(-rows // ranks.world_size))
    choices = Choices(
        device=device,
        dtype=dtype,
        threads=threads,
        compile=compiled,
        compile_backend=train.compile_backend,
        matmul_precision=train.float32_matmul_precision,
        dist_backend=choose_dist_backend(train.dist_backend, kind, machine, ranks),
        rows=rows,
        batch_size=batch_size,
        world_size=ranks.world_size,
    )
    reasons = {
        "device": device_reason,
        "dtype": dtype_reason,
        "threads": threads_reason,
        "attention": attention_kernel(config.model, kind, dtype),
        "compile": compile_reason,
        "batch_size": batch_reason,
    }
    return choices, reasons


def check_menus(config: RunConfig) -> None:
    """Refuse an unknown entry of any menu here, before data is prepared."""
    find_attention(config.model.attention)
    named: list[tuple[str, Mapping[str, object]]] = [
        ("mlp", MLPS),
        ("norm", NORMS),
        ("position", POSITIONS),
        ("residual", RESIDUALS),
        ("initialization", INITIALIZATIONS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("source", SOURCES),
        ("track", {"none": None, **TRACKERS}),
    ]
    for setting, menu in named:
        pick(menu, str(flatten(config)[setting]), setting)
    if config.train.eval_tasks:
        chosen_tasks(config.train.eval_tasks)


def check_memory(config: RunConfig, choices: Choices, machine: Machine, ranks: Ranks) -> None:
    """Refuse what clearly does not fit, before the system ends the process without a word; `OutOfMemory`."""
    kind = choices.device.partition(":")[0]
    needed = estimated_memory_bytes(config.model, choices.batch_size, choices.dtype, kind, config.lora.lora_rank)
    free = machine.device_memory_bytes if kind == "cuda" else machine.cpu_memory_bytes // ranks.local_world_size
    if needed > CLEARLY_TOO_MUCH * free:
        what = f"about {needed / 1e9:,.1f} GB for micro-batches of {choices.batch_size}, {free / 1e9:,.1f} GB are free"
        raise OutOfMemory(f"{what}; lower --batch-size (the global batch stays), --context-length or the model's size")


def choose_device(asked: str, machine: Machine, ranks: Ranks) -> tuple[str, str]:
    """CUDA where there is a card, else MPS, else CPU; several ranks take a card each, and never MPS."""
    if asked == "auto":
        if machine.cuda_devices:
            return f"cuda:{ranks.local_rank % machine.cuda_devices}", machine.name
        if machine.mps and not ranks.is_parallel:
            return "mps", "Apple GPU found"
        return "cpu", "several ranks cannot share an Apple GPU" if machine.mps else f"no GPU found; {machine.name}"
    kind, _, index = asked.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise ConfigError(f"device = {asked!r} does not exist; choose one of: auto, cpu, cuda, cuda:N, mps")
    if kind == "mps" and not machine.mps:
        raise ConfigError("device = mps: this machine has no Apple GPU that torch can use; use --device auto or cpu")
    if kind == "mps" and ranks.is_parallel:
        raise ConfigError(
            f"device = mps: one rank only, got {ranks.world_size}; use --device cpu, or leave out torchrun"
        )
    if kind == "cuda":
        if index and ranks.local_world_size > 1:
            raise ConfigError(f"device = {asked} for {ranks.local_world_size} ranks on this machine; use --device cuda")
        number = int(index) if index else ranks.local_rank
        if number >= machine.cuda_devices:
            have = f"{machine.cuda_devices} CUDA device(s)"
            raise ConfigError(f"device = {asked}: torch sees {have}; use --device auto, or install torch with CUDA")
        return f"cuda:{number}", f"asked; {machine.name}"
    return kind, "asked"


def choose_dtype(asked: str, kind: str, machine: Machine) -> tuple[str, str]:
    """bf16 where the hardware multiplies it, fp16 with a scaler on older CUDA cards, fp32 elsewhere."""
    if asked == "fp16" and kind == "cpu":
        return "fp32", "fp16 is not trained on a CPU, so fp32"
    if asked != "auto":
        return asked, "asked"
    if kind == "cuda":
        return ("bf16", "the card has it") if machine.cuda_bf16 else ("fp16", "the card has no bf16; with loss scaling")
    if kind == "mps":
        return "fp32", "the safe choice on MPS"
    return ("bf16", "the CPU has AVX512-BF16 or AMX") if machine.cpu_bf16 else ("fp32", "the CPU has no bf16 products")


def choose_threads(asked: int, machine: Machine, ranks: Ranks) -> tuple[int, str]:
    """One thread for each core, shared among the ranks of this machine."""
    if asked:
        return asked, "asked"
    share = max(1, machine.cores // ranks.local_world_size)
    return share, f"{machine.cores} cores" + (f" / {ranks.local_world_size} ranks here" if ranks.is_parallel else "")


def attention_kernel(model: ModelConfig, kind: str, dtype: str) -> str:
    """How the model's attention is computed there, in a few words; a function of what is recorded anyway."""
    if model.attention != "softmax":
        return "as asked"
    if is_written_out(kind, DTYPES[dtype], model.context_length):
        return f"written out: faster than the fused kernel in {dtype} on a CPU, up to {LONGEST_WRITTEN_OUT:,} tokens"
    return "torch's fused kernel"


def choose_compile(asked: str, kind: str, machine: Machine) -> tuple[bool, str]:
    """On for CUDA; off elsewhere, where the time to compile has to be earned back first."""
    if asked != "auto":
        return asked == "on", "asked"
    if kind == "cuda":
        return True, "pays on CUDA"
    if kind == "cpu" and machine.compiler:
        return False, "on a CPU only when asked, with --compile"
    return False, "no C++ compiler here" if kind == "cpu" else "not dependable on MPS"


def check_compile_backend(name: str) -> None:
    """Refuse a backend that torch.compile does not have; listing them loads the compiler, so the usual one passes."""
    if name != "inductor":
        from torch._dynamo import list_backends

        pick(dict.fromkeys(list_backends(exclude_tags=())), name, "compile_backend")


def choose_dist_backend(asked: str, kind: str, machine: Machine, ranks: Ranks) -> str:
    """NCCL between CUDA cards, gloo elsewhere. NCCL wants a card for each rank of a machine."""
    backend = ("nccl" if kind == "cuda" else "gloo") if asked == "auto" else asked
    if backend == "nccl" and ranks.is_parallel:
        have = f"{machine.cuda_devices} CUDA device(s)"
        if kind != "cuda":
            raise ConfigError(f"dist_backend = nccl: it works on CUDA only, the device is {kind}; use auto or gloo")
        if ranks.local_world_size > machine.cuda_devices:
            many = f"{ranks.local_world_size} ranks on this machine, {have}"
            raise ConfigError(f"{many}; start torchrun with --nproc_per_node={machine.cuda_devices}")
    return backend


def check_rows(rows: int, ranks: Ranks) -> None:
    """Refuse a global batch with fewer sequences than ranks."""
    if rows < ranks.world_size:
        remedy = "raise --batch-tokens or --gradient-accumulation-steps, or start fewer ranks"
        raise ConfigError(f"a step has {rows} sequences for {ranks.world_size} ranks, at least one each; {remedy}")


def choose_batch_size(config: RunConfig, kind: str, dtype: str, machine: Machine, ranks: Ranks) -> tuple[int, str]:
    """As asked, or the largest power of two up to 32 whose estimated memory fits."""
    if config.train.batch_size:
        return config.train.batch_size, "asked"
    per_machine = ranks.local_world_size if kind != "cuda" else 1
    room = MEMORY_SHARE * (machine.device_memory_bytes if kind == "cuda" else machine.cpu_memory_bytes) / per_machine
    size, rank = LARGEST_AUTO_BATCH, config.lora.lora_rank
    while size > 1 and estimated_memory_bytes(config.model, size, dtype, kind, rank) > room:
        size //= 2
    needed = estimated_memory_bytes(config.model, size, dtype, kind, rank)
    return size, f"estimated {needed / 1e9:.1f} of {room / 1e9:.1f} GB"


def global_rows(train: TrainConfig, model: ModelConfig, batch_size: int) -> int:
    """Sequences in one step over all ranks."""
    if train.batch_tokens:
        return train.batch_tokens // model.context_length
    return batch_size * max(1, train.gradient_accumulation_steps)


def estimated_memory_bytes(
    model: ModelConfig, batch_size: int, dtype: str, kind: str = "cpu", lora_rank: int = 0
) -> int:
    """Weights, gradients, AdamW's two moments, the activations kept for the backward pass, and the logits at one time.

    Activations: 34 bytes for each of C channels per token and layer in 16 bits, with a fused attention kernel, which
    keeps no T x T matrix [Korthikanti 2022, section 4.1, less the attention term]. The other terms are measured: what
    the variants of a block and the other attentions keep more. A test holds all to 0.75 to 1.3 times the measured peak.

    With LoRA the gradients and moments are the adapters' alone [Hu 2021, section 4.1]; a frozen weight is its 4 bytes,
    and in 16 bits the copy kept for the backward pass. The activations stay: gradients pass through the frozen layers.
    """
    state = 16 * parameter_count(model)
    if lora_rank:
        state = (4 if dtype == "fp32" else 6) * parameter_count(model) + 16 * adapter_parameter_count(model, lora_rank)
    value_bytes = 4 if dtype == "fp32" else 2
    tokens = batch_size * model.context_length
    per_channel = 17 * value_bytes + 4
    per_channel += 2 * value_bytes * (model.qk_norm + (model.position == "rotary"))
    per_channel += 8 * (model.mlp == "swiglu") + 9 * (model.dropout > 0)
    activations = tokens * model.n_layer * model.n_embd * per_channel
    activations += attention_bytes(model, batch_size=batch_size, value_bytes=value_bytes, kind=kind)
    logits = 2 * 4 * min(tokens * model.vocab_size, LOSS_CHUNK_ELEMENTS)
    return state + activations + logits
