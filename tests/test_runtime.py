"""What `auto` becomes, on machines that this one is not: fakes of them."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from quillgpt.config import DataConfig, LoraConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, OutOfMemory
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import add_adapters
from quillgpt.model.sizes import estimated_memory_bytes
from quillgpt.optim import build_optimizer
from quillgpt.runtime import LARGEST_AUTO_BATCH, Machine, Runtime, check_memory, resolve
from quillgpt.training.step import gradients, wrap
from tensor_memory import TensorMemory

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


def resolved(
    machine: Machine, ranks: Ranks = ALONE, model: ModelConfig = TINY, **train: Any
) -> tuple[Runtime, dict[str, str]]:
    """The runtime and its reasons."""
    train = {"batch_size": 8} | train
    config = RunConfig(model=model, data=DataConfig(), optim=OptimConfig(), train=TrainConfig(**train))
    return resolve(config, machine, ranks)


def refusal(machine: Machine, ranks: Ranks = ALONE, **train: Any) -> str:
    """The message of the error, a line."""
    with pytest.raises(ConfigError) as raised:
        resolved(machine, ranks, **train)
    assert str(raised.value).isprintable()
    return str(raised.value)


# Device


def test_the_best_or_the_requested_device_is_taken_and_each_rank_has_its_own() -> None:
    cases = [
        (PLAIN, ALONE, "auto", "cpu"),
        (PLAIN, rank_of(2, 1), "auto", "cpu"),
        (MAC, ALONE, "auto", "mps"),
        (MAC, rank_of(2, 1), "auto", "cpu"),
        (T4, ALONE, "auto", "cuda:0"),
        (H100S, ALONE, "auto", "cuda:0"),
        (H100S, rank_of(8, 5), "auto", "cuda:5"),
        (H100S, rank_of(16, 13, nodes=2), "auto", "cuda:5"),
        (H100S, ALONE, "cpu", "cpu"),
        (H100S, ALONE, "cuda", "cuda:0"),
        (H100S, ALONE, "cuda:7", "cuda:7"),
        (H100S, rank_of(8, 3), "cuda", "cuda:3"),
        (MAC, ALONE, "mps", "mps"),
        (MAC, ALONE, "cpu", "cpu"),
    ]
    found = [resolved(machine, ranks, batch_size=16, device=device) for machine, ranks, device, _ in cases]
    assert [runtime.device for runtime, _ in found] == [expected for *_, expected in cases]
    assert all(reasons["device"] for _, reasons in found)


def test_a_device_that_is_not_there_is_refused() -> None:
    cases = [
        (PLAIN, ALONE, "gpu", "'gpu'"),
        (PLAIN, ALONE, "gpu", "auto, cpu, cuda, cuda:N, mps"),
        (PLAIN, ALONE, "cuda:x", "auto, cpu, cuda, cuda:N, mps"),
        (PLAIN, ALONE, "cuda:-1", "auto, cpu, cuda, cuda:N, mps"),
        (PLAIN, ALONE, "cuda", "0 CUDA device"),
        (PLAIN, ALONE, "mps", "no Apple GPU"),
        (H100S, ALONE, "cuda:8", "8 CUDA device"),
        (T4, rank_of(2, 1), "cuda", "1 CUDA device"),
        (MAC, rank_of(2), "mps", "one rank"),
        (H100S, rank_of(2), "cuda:1", "2 ranks on this machine; use --device cuda"),
    ]
    assert [case for case in cases if case[3] not in refusal(case[0], case[1], device=case[2])] == []


# Between ranks


def test_ranks_use_nccl_on_cuda_and_gloo_elsewhere() -> None:
    for machine, device, backend in ((H100S, "auto", "nccl"), (H100S, "cpu", "gloo"), (PLAIN, "auto", "gloo")):
        assert resolved(machine, rank_of(2), device=device)[0].dist_backend == backend
    assert "works on CUDA only" in refusal(PLAIN, rank_of(2), dist_backend="nccl")


def test_more_ranks_than_cards_are_refused_for_nccl_but_may_share_one_with_gloo() -> None:
    assert "start torchrun with --nproc_per_node=1" in refusal(T4, rank_of(4))
    assert resolved(T4, rank_of(4, 3), dist_backend="gloo")[0].device == "cuda:0"


# Number format, threads, compiling


def test_the_number_format_follows_the_hardware() -> None:
    cases = [
        (H100S, "auto", "auto", "bf16", "the card has it"),
        (T4, "auto", "auto", "fp16", "loss scaling"),
        (XEON, "auto", "auto", "bf16", "AVX512-BF16 or AMX"),
        (PLAIN, "auto", "auto", "fp32", "no bf16"),
        (MAC, "auto", "auto", "fp32", "MPS"),
        (T4, "cpu", "auto", "fp32", "no bf16"),
        (PLAIN, "auto", "bf16", "bf16", "requested"),
        (H100S, "auto", "fp32", "fp32", "requested"),
        (H100S, "auto", "fp16", "fp16", "requested"),
        (PLAIN, "auto", "fp16", "fp32", "fp16 is not trained on a CPU"),
        (H100S, "cpu", "fp16", "fp32", "fp16 is not trained on a CPU"),
    ]
    for machine, device, requested, dtype, reason in cases:
        runtime, reasons = resolved(machine, device=device, dtype=requested)
        assert runtime.dtype == dtype, (machine.name, requested)
        assert reason in reasons["dtype"]


def test_the_ranks_of_a_machine_share_its_cores() -> None:
    cases = [(8, 1, 0, 8), (8, 2, 0, 4), (8, 3, 0, 2), (2, 4, 0, 1), (8, 2, 5, 5)]
    for cores, local_ranks, requested, threads in cases:
        assert resolved(replace(PLAIN, cores=cores), rank_of(local_ranks), threads=requested)[0].threads == threads
    assert resolved(PLAIN, rank_of(8, nodes=4))[0].threads == 4  # ranks of other machines take no cores here


def test_compiling_is_on_where_it_pays_and_as_requested() -> None:
    cases = [
        (H100S, "auto", True, "pays on CUDA"),
        (PLAIN, "auto", False, "only when requested"),
        (replace(PLAIN, compiler=False), "auto", False, "no C++ compiler"),
        (MAC, "auto", False, "MPS"),
        (PLAIN, "on", True, "requested"),
        (H100S, "off", False, "requested"),
    ]
    for machine, requested, is_compiled, reason in cases:
        runtime, reasons = resolved(machine, compile=requested)
        assert runtime.compile is is_compiled
        assert reason in reasons["compile"]


def test_an_unknown_compile_backend_is_refused_naming_the_known() -> None:
    message = refusal(PLAIN, compile="on", compile_backend="inductr")
    assert all(text in message for text in ("compile_backend", "'inductr'", "did you mean inductor?", "aot_eager"))
    assert resolved(PLAIN, compile="on", compile_backend="aot_eager")[0].compile_backend == "aot_eager"


# Batch


def micro_batch_size(gib: int, ranks: Ranks = ALONE, **settings: Any) -> int:
    """The automatic one for GPT-2 124M with so much memory."""
    machine = replace(settings.pop("machine", PLAIN), cpu_memory_bytes=gib << 30)
    return resolved(machine, ranks, ModelConfig(), batch_size=0, **settings)[0].micro_batch_size


def test_the_automatic_micro_batch_grows_with_memory_up_to_its_limit() -> None:
    sizes = [micro_batch_size(gib) for gib in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, LARGEST_AUTO_BATCH)
    assert len(set(sizes)) > 3


def test_it_is_by_the_memory_of_its_device_which_the_ranks_of_a_machine_share() -> None:
    assert micro_batch_size(1, machine=H100S) == LARGEST_AUTO_BATCH
    assert micro_batch_size(1, machine=H100S, device="cpu") == 1
    of_four = micro_batch_size(16, rank_of(4), batch_tokens=1 << 20)
    assert of_four < micro_batch_size(16, batch_tokens=1 << 20)


def test_the_global_batch_does_not_depend_on_the_ranks() -> None:
    cases = [
        ({"batch_size": 8}, 8),
        ({"batch_size": 8, "gradient_accumulation_steps": 5}, 40),
        ({"batch_size": 8, "batch_tokens": 32 * 6}, 6),
        ({"batch_size": 3, "batch_tokens": 32 * 100}, 100),
    ]
    for (train, expected), world_size in itertools.product(cases, (1, 2, 5)):
        runtime, _ = resolved(PLAIN, rank_of(world_size), **train)
        assert (runtime.global_batch_size, runtime.world_size) == (expected, world_size)
        assert runtime.micro_batch_size <= min(-(-expected // world_size), train["batch_size"])


def test_fewer_sequences_than_ranks_are_refused() -> None:
    message = refusal(PLAIN, rank_of(4), batch_size=3)
    assert "3 sequences for 4 ranks" in message
    assert "--batch-tokens" in message


# Memory


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
    runtime = replace(resolved(PLAIN, model=model_config)[0], dtype=dtype, micro_batch_size=batch_size)
    model = GPT(model_config)
    if lora_rank:
        add_adapters(model, LoraConfig(lora_rank=lora_rank))
    optimizer = build_optimizer(model, OptimConfig())
    wrapped = wrap(model, runtime)
    tokens = torch.zeros(batch_size, model_config.context_length, dtype=torch.int64)
    with TensorMemory(model.parameters()) as memory:
        for _ in range(2):
            gradients(wrapped, tokens, tokens, runtime=runtime, target_count=1, seed=0, step=0, rank=0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return memory.peak_bytes


def test_the_estimate_is_near_the_peak_of_a_real_step() -> None:
    wrong = {}
    for number, (variant, settings) in enumerate(VARIANTS.items()):
        shape = {"n_layer": 4, "n_head": 2, "n_embd": 64, "context_length": 64, "vocab_size": 257}
        model = ModelConfig(**(shape | settings))
        combinations = [("fp32", 0), ("bf16", 4)] if number % 2 else [("bf16", 0), ("fp32", 4)]  # pairwise
        for dtype, lora_rank in combinations:
            peak = peak_bytes(model, dtype, batch_size=8, lora_rank=lora_rank)
            share = estimated_memory_bytes(model, 8, dtype, lora_rank=lora_rank) / peak
            if not 0.75 < share < 1.3:
                wrong[variant, dtype, lora_rank] = share
    assert wrong == {}


def test_where_weights_are_most_of_the_memory_lora_saves_what_is_stated() -> None:
    """Of 16 bytes a weight 4 stay, and in 16 bits 2 more: a wide model and few tokens."""
    model = ModelConfig(n_layer=2, n_head=2, n_embd=256, context_length=16, vocab_size=257)
    for dtype, share in {"fp32": 0.32, "bf16": 0.45}.items():
        full, adapters = (peak_bytes(model, dtype, batch_size=1, lora_rank=rank) for rank in (0, 4))
        assert 0.9 < estimated_memory_bytes(model, 1, dtype, lora_rank=4) / adapters < 1.1
        assert adapters / full < share


def test_with_lora_there_is_room_for_more_and_less_is_refused() -> None:
    settings: dict[str, Any] = {"train": TrainConfig(init="gpt2"), "model": ModelConfig(context_length=128)}
    machine = replace(PLAIN, cpu_memory_bytes=4 << 30)
    full, adapters = (
        resolve(RunConfig(**settings, lora=LoraConfig(lora_rank=rank)), machine, ALONE)[0].micro_batch_size
        for rank in (0, 8)
    )
    assert adapters > full
    settings = {"train": TrainConfig(init="gpt2", batch_size=1), "model": ModelConfig(context_length=16)}
    machine = replace(PLAIN, cpu_memory_bytes=1 << 30)
    configs = [RunConfig(**settings, lora=LoraConfig(lora_rank=rank)) for rank in (0, 8)]
    runtime = resolve(configs[0], machine, ALONE)[0]
    check_memory(configs[1], runtime, machine, ALONE)
    with pytest.raises(OutOfMemory, match=r"2\.0 GB for micro-batches of 1, 1\.1 GB are free"):
        check_memory(configs[0], runtime, machine, ALONE)
