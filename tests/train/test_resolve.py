"""What `auto` becomes, on machines that this one is not: fakes of them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensor_memory import TensorMemory

from quillgpt.config import DataConfig, LoraConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, OutOfMemory
from quillgpt.hardware import Machine
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import add_adapters
from quillgpt.optim import build_optimizer
from quillgpt.train.resolve import LARGEST_AUTO_BATCH, check_memory, estimated_memory_bytes, resolve
from quillgpt.train.resume import former_choices
from quillgpt.train.update import gradients, wrap

PLAIN = Machine(
    cuda_devices=0,
    mps=False,
    cpu_bf16=False,
    cuda_bf16=False,
    cores=8,
    cpu_memory_bytes=16 << 30,
    device_memory_bytes=0,
    name="some processor",
    compiler=True,
)
H100S = replace(PLAIN, cuda_devices=8, cuda_bf16=True, device_memory_bytes=80 << 30, name="H100")
T4 = replace(PLAIN, cuda_devices=1, device_memory_bytes=16 << 30, name="T4")
MAC = replace(PLAIN, mps=True)
XEON = replace(PLAIN, cpu_bf16=True)
ALONE = Ranks()
TINY = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=32, vocab_size=257)


def rank_of(world_size: int, rank: int = 0, *, nodes: int = 1) -> Ranks:
    here = world_size // nodes
    return Ranks(rank=rank, local_rank=rank % here, world_size=world_size, local_world_size=here)


def chosen(machine: Machine, ranks: Ranks = ALONE, model: ModelConfig = TINY, **train: Any) -> Any:
    """The choices and their reasons."""
    train = {"batch_size": 8} | train
    config = RunConfig(model=model, data=DataConfig(), optim=OptimConfig(), train=TrainConfig(**train))
    return resolve(config, machine, ranks)


def refusal(machine: Machine, ranks: Ranks = ALONE, **train: Any) -> str:
    """The one line that says why not."""
    with pytest.raises(ConfigError) as raised:
        chosen(machine, ranks, **train)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Device


@pytest.mark.parametrize(
    ("machine", "ranks", "device"),
    [
        (PLAIN, ALONE, "cpu"),
        (PLAIN, rank_of(2, 1), "cpu"),
        (MAC, ALONE, "mps"),
        (MAC, rank_of(2, 1), "cpu"),
        (T4, ALONE, "cuda:0"),
        (H100S, ALONE, "cuda:0"),
        (H100S, rank_of(8, 5), "cuda:5"),
        (H100S, rank_of(16, 13, nodes=2), "cuda:5"),
    ],
)
def test_the_best_device_is_taken_and_each_rank_has_its_own(machine: Machine, ranks: Ranks, device: str) -> None:
    choices, reasons = chosen(machine, ranks, batch_size=16)
    assert choices.device == device
    assert reasons["device"]


@pytest.mark.parametrize(
    ("machine", "ranks", "asked", "device"),
    [
        (H100S, ALONE, "cpu", "cpu"),
        (H100S, ALONE, "cuda", "cuda:0"),
        (H100S, ALONE, "cuda:7", "cuda:7"),
        (H100S, rank_of(8, 3), "cuda", "cuda:3"),
        (MAC, ALONE, "mps", "mps"),
        (MAC, ALONE, "cpu", "cpu"),
    ],
)
def test_an_asked_device_is_taken(machine: Machine, ranks: Ranks, asked: str, device: str) -> None:
    assert chosen(machine, ranks, device=asked)[0].device == device


@pytest.mark.parametrize(
    ("machine", "ranks", "asked", "words"),
    [
        (PLAIN, ALONE, "gpu", "device = 'gpu' does not exist; choose one of: auto, cpu, cuda, cuda:N, mps"),
        (PLAIN, ALONE, "cuda:x", "does not exist"),
        (PLAIN, ALONE, "cuda:-1", "does not exist"),
        (PLAIN, ALONE, "cuda", "torch sees 0 CUDA device"),
        (PLAIN, ALONE, "mps", "no Apple GPU"),
        (H100S, ALONE, "cuda:8", "torch sees 8 CUDA device"),
        (T4, rank_of(2, 1), "cuda", "torch sees 1 CUDA device"),
        (MAC, rank_of(2), "mps", "one rank only, got 2"),
        (H100S, rank_of(2), "cuda:1", "device = cuda:1 for 2 ranks on this machine; use --device cuda"),
    ],
)
def test_a_device_that_is_not_there_is_refused(machine: Machine, ranks: Ranks, asked: str, words: str) -> None:
    assert words in refusal(machine, ranks, device=asked)


# Menus


@pytest.mark.parametrize("setting", ["attention", "mlp", "norm", "position"])
def test_a_variant_that_does_not_exist_is_refused_before_anything_is_made(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{setting} = 'fancy' does not exist"):
        chosen(PLAIN, model=replace(TINY, **{setting: "fancy"}))


# Between ranks


@pytest.mark.parametrize(
    ("machine", "device", "backend"), [(H100S, "auto", "nccl"), (H100S, "cpu", "gloo"), (PLAIN, "auto", "gloo")]
)
def test_ranks_talk_by_nccl_on_cuda_and_by_gloo_elsewhere(machine: Machine, device: str, backend: str) -> None:
    assert chosen(machine, rank_of(2), device=device)[0].dist_backend == backend


def test_more_ranks_than_cards_are_refused_for_nccl_but_may_share_one_with_gloo() -> None:
    assert "4 ranks on this machine, 1 CUDA device(s); start torchrun with --nproc_per_node=1" in refusal(
        T4, rank_of(4)
    )
    assert chosen(T4, rank_of(4, 3), dist_backend="gloo")[0].device == "cuda:0"


def test_nccl_without_cuda_is_refused() -> None:
    assert "works on CUDA only" in refusal(PLAIN, rank_of(2), dist_backend="nccl")


@pytest.mark.parametrize(("then", "now", "threads"), [(1, 4, 2), (4, 1, 8), (2, 2, 5)])
def test_a_run_continued_on_another_number_of_ranks_shares_the_cores_anew(then: int, now: int, threads: int) -> None:
    saved = vars(chosen(PLAIN, rank_of(then))[0]) | {"threads": 5}
    checkpoint: Any = type("Saved", (), {"read_json": lambda *_: saved})()
    said: list[str] = []
    choices = former_choices(checkpoint, chosen(PLAIN, rank_of(now))[0], {}, said.append)
    assert choices.threads == threads
    assert bool(said) == (then != now)


# Number format


@pytest.mark.parametrize(
    ("machine", "device", "asked", "dtype", "reason"),
    [
        (H100S, "auto", "auto", "bf16", "the card has it"),
        (T4, "auto", "auto", "fp16", "loss scaling"),
        (XEON, "auto", "auto", "bf16", "AVX512-BF16 or AMX"),
        (PLAIN, "auto", "auto", "fp32", "no bf16"),
        (MAC, "auto", "auto", "fp32", "MPS"),
        (T4, "cpu", "auto", "fp32", "no bf16"),
        (PLAIN, "auto", "bf16", "bf16", "asked"),
        (H100S, "auto", "fp32", "fp32", "asked"),
        (H100S, "auto", "fp16", "fp16", "asked"),
        (PLAIN, "auto", "fp16", "fp32", "fp16 is not trained on a CPU"),
        (H100S, "cpu", "fp16", "fp32", "fp16 is not trained on a CPU"),
    ],
)
def test_the_number_format_follows_the_hardware(
    machine: Machine, device: str, asked: str, dtype: str, reason: str
) -> None:
    choices, reasons = chosen(machine, device=device, dtype=asked)
    assert choices.dtype == dtype
    assert reason in reasons["dtype"]


def test_only_fp16_has_a_loss_scale() -> None:
    for dtype in ("fp32", "bf16", "fp16"):
        choices = replace(chosen(PLAIN)[0], dtype=dtype)
        assert (wrap(GPT(TINY), choices).scaler is not None) == (dtype == "fp16")


# Threads and compiling


@pytest.mark.parametrize(
    ("cores", "local_ranks", "asked", "threads"), [(8, 1, 0, 8), (8, 2, 0, 4), (8, 3, 0, 2), (2, 4, 0, 1), (8, 2, 5, 5)]
)
def test_the_ranks_of_a_machine_share_its_cores(cores: int, local_ranks: int, asked: int, threads: int) -> None:
    machine = replace(PLAIN, cores=cores)
    assert chosen(machine, rank_of(local_ranks), threads=asked)[0].threads == threads


def test_ranks_of_other_machines_take_no_cores_here() -> None:
    assert chosen(PLAIN, rank_of(8, nodes=4))[0].threads == 4


@pytest.mark.parametrize(
    ("machine", "asked", "compiles", "reason"),
    [
        (H100S, "auto", True, "pays on CUDA"),
        (PLAIN, "auto", False, "only when asked"),
        (replace(PLAIN, compiler=False), "auto", False, "no C++ compiler"),
        (MAC, "auto", False, "MPS"),
        (PLAIN, "on", True, "asked"),
        (H100S, "off", False, "asked"),
    ],
)
def test_compiling_is_on_where_it_pays_and_as_asked(machine: Machine, asked: str, compiles: bool, reason: str) -> None:
    choices, reasons = chosen(machine, compile=asked)
    assert choices.compile is compiles
    assert reason in reasons["compile"]


def test_an_unknown_compile_backend_is_refused_naming_the_known() -> None:
    message = refusal(PLAIN, compile="on", compile_backend="inductr")
    assert "compile_backend = 'inductr' does not exist (did you mean inductor?)" in message
    assert "aot_eager" in message
    assert chosen(PLAIN, compile="on", compile_backend="aot_eager")[0].compile_backend == "aot_eager"


# Batch


def test_the_automatic_micro_batch_grows_with_memory_up_to_its_limit() -> None:
    model = ModelConfig()
    sizes = [
        chosen(replace(PLAIN, cpu_memory_bytes=gib << 30), model=model, batch_size=0)[0].batch_size
        for gib in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] == LARGEST_AUTO_BATCH
    assert len(set(sizes)) > 3


def test_the_automatic_micro_batch_is_by_the_memory_of_the_device_it_is_on() -> None:
    model, little = ModelConfig(), replace(H100S, cpu_memory_bytes=1 << 30)
    assert chosen(little, model=model, batch_size=0)[0].batch_size == LARGEST_AUTO_BATCH
    assert chosen(little, model=model, batch_size=0, device="cpu")[0].batch_size == 1


def test_ranks_of_one_machine_share_its_memory() -> None:
    machine = replace(PLAIN, cpu_memory_bytes=16 << 30)
    sizes = [
        chosen(machine, rank_of(world_size), ModelConfig(), batch_size=0, batch_tokens=1 << 20)[0].batch_size
        for world_size in (1, 4)
    ]
    assert sizes[1] < sizes[0]


FAMILIES = ("explicit", "gaussian", "gaussian-poly-8", "pointwise-relu", "power")
VARIANTS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "modern": {"norm": "rmsnorm", "position": "rotary", "qk_norm": True, "mlp": "relu2", "bias": False},
    "swiglu": {"mlp": "swiglu", "norm": "rmsnorm", "position": "rotary"},
    "dropout": {"dropout": 0.1},
    "large vocabulary": {"vocab_size": 5000},
    **{name: {"attention": name} for name in ATTENTION if name != "softmax"},
    **{f"{name} with dropout": {"attention": name, "dropout": 0.1} for name in FAMILIES},
    **{f"{name} in blocks": {"attention": name, "context_length": 320} for name in FAMILIES},
    "power in blocks with dropout": {"attention": "power", "context_length": 320, "dropout": 0.1},
}


def peak_bytes(model_config: ModelConfig, dtype: str, *, batch_size: int, lora_rank: int = 0) -> int:
    """Most memory of tensors in two real steps."""
    choices = replace(chosen(PLAIN, model=model_config)[0], dtype=dtype, batch_size=batch_size)
    model = GPT(model_config)
    if lora_rank:
        add_adapters(model, LoraConfig(lora_rank=lora_rank))
    optimizer = build_optimizer(model, OptimConfig())
    wrapped = wrap(model, choices)
    tokens = torch.zeros(batch_size, model_config.context_length, dtype=torch.int64)
    with TensorMemory(model.parameters()) as memory:
        for _ in range(2):
            gradients(wrapped, tokens, tokens, choices=choices, target_count=1, seed=0, step=0, rank=0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return memory.peak_bytes


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_estimate_is_near_the_peak_of_a_real_step(variant: str, dtype: str, lora_rank: int) -> None:
    shape = {"n_layer": 4, "n_head": 2, "n_embd": 64, "context_length": 64, "vocab_size": 257}
    model = ModelConfig(**(shape | VARIANTS[variant]))
    peak = peak_bytes(model, dtype, batch_size=8, lora_rank=lora_rank)
    assert 0.75 < estimated_memory_bytes(model, 8, dtype, lora_rank=lora_rank) / peak < 1.3


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_where_the_weights_are_most_of_the_memory_lora_saves_what_is_stated(dtype: str) -> None:
    """Of 16 bytes a weight 4 stay, and in 16 bits 2 more: a wide model and few tokens."""
    model = ModelConfig(n_layer=2, n_head=2, n_embd=256, context_length=16, vocab_size=257)
    whole, adapters = (peak_bytes(model, dtype, batch_size=1, lora_rank=rank) for rank in (0, 4))
    assert 0.9 < estimated_memory_bytes(model, 1, dtype, lora_rank=4) / adapters < 1.1
    assert adapters / whole < {"fp32": 0.32, "bf16": 0.45}[dtype]


def test_lora_leaves_room_for_a_larger_micro_batch() -> None:
    machine = replace(PLAIN, cpu_memory_bytes=4 << 30)
    configs = [
        RunConfig(
            train=TrainConfig(init="gpt2"), lora=LoraConfig(lora_rank=rank), model=ModelConfig(context_length=128)
        )
        for rank in (0, 8)
    ]
    whole, adapters = (resolve(config, machine, ALONE)[0].batch_size for config in configs)
    assert adapters > whole


def test_the_memory_that_is_refused_is_that_of_the_adapters() -> None:
    settings = {"train": TrainConfig(init="gpt2", batch_size=1), "model": ModelConfig(context_length=16)}
    machine = replace(PLAIN, cpu_memory_bytes=1 << 30)
    whole, adapters = (RunConfig(**settings, lora=LoraConfig(lora_rank=rank)) for rank in (0, 8))
    choices = resolve(whole, machine, ALONE)[0]
    check_memory(adapters, choices, machine, ALONE)
    with pytest.raises(OutOfMemory, match=r"about 2\.0 GB for micro-batches of 1, 1\.1 GB are free"):
        check_memory(whole, choices, machine, ALONE)


@pytest.mark.parametrize(
    ("train", "rows"),
    [
        ({"batch_size": 8}, 8),
        ({"batch_size": 8, "gradient_accumulation_steps": 5}, 40),
        ({"batch_size": 8, "batch_tokens": 32 * 6}, 6),
        ({"batch_size": 3, "batch_tokens": 32 * 100}, 100),
    ],
)
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_the_global_batch_does_not_depend_on_the_ranks(train: dict[str, int], rows: int, world_size: int) -> None:
    choices, _ = chosen(PLAIN, rank_of(world_size), **train)
    assert choices.rows == rows
    assert choices.world_size == world_size
    assert choices.batch_size <= -(-rows // world_size)
    assert choices.batch_size <= train["batch_size"]


def test_fewer_sequences_than_ranks_are_refused() -> None:
    message = refusal(PLAIN, rank_of(4), batch_size=3)
    assert "a step has 3 sequences for 4 ranks" in message
    assert "--batch-tokens" in message
