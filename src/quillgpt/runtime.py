"""The machine and the runtime of a run: device, dtype, threads, compilation, batch sizes, with the reason for each.

`detect` looks at the machine, and `resolve` replaces each "auto" or 0 of the settings by a value. The values change the
bits of a result, so they are shown, stored in the checkpoint, and used again when the run is resumed.
"""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from quillgpt.config import ModelConfig, RunConfig, TrainConfig, smallest_batch_size
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, OutOfMemory, pick
from quillgpt.model.attention import find_attention
from quillgpt.model.precision import DTYPES
from quillgpt.model.sizes import estimated_memory_bytes

PEAK_TERAFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "V100 PCIE": 112.0,
    "V100": 125.0,
    "T4": 65.0,
}
"""dense bf16 (or fp16, without bf16) matrix peaks from the data sheets; the first name that matches"""
OTHER_CARDS = {"Laptop", "NVL", "D", "Ti", "SUPER", "MIG", "Max"}
"""words that make a name above another card, or a part of a card"""
UNKNOWN_FREE_BYTES = 8 << 30  # where the system does not report it; a modest guess keeps the batch small
MEMORY_FRACTION = 0.8  # of the free memory, for the estimate to fill
CLEARLY_TOO_MUCH = 1.5  # times the free memory; the estimate is within 0.75 to 1.3 of the truth (tests)
LARGEST_AUTO_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The properties of a machine that the runtime depends on."""

    cuda_devices: int
    mps: bool
    cpu_bf16: bool
    cuda_bf16: bool
    cores: int
    cpu_memory_bytes: int
    device_memory_bytes: int
    name: str
    compiler: bool


def detect() -> Machine:
    """Return the properties of this machine."""
    cuda_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Machine(
        cuda_devices=cuda_devices,
        mps=torch.backends.mps.is_available(),
        cpu_bf16=_cpu_has_bf16(),
        cuda_bf16=cuda_devices > 0 and torch.cuda.get_device_capability()[0] >= 8,
        cores=available_cores(),
        cpu_memory_bytes=available_memory_bytes(),
        device_memory_bytes=torch.cuda.get_device_properties(0).total_memory if cuda_devices else 0,
        name=torch.cuda.get_device_name(0) if cuda_devices else cpu_name(),
        compiler=_has_compiler(),
    )


def available_cores() -> int:
    """Cores that this process may use: its affinity, limited by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period))) if quota != "max" else cores
    except (OSError, ValueError):
        return cores


def available_memory_bytes() -> int:
    """Free memory: what the system reports, limited by a container's limit."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # macOS, Windows
        free = UNKNOWN_FREE_BYTES
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        statistics = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        cached = int(statistics["inactive_file"])  # cached files count as used, but are freed when memory is needed
        return min(free, max(0, limit - used + cached))
    except (OSError, KeyError, ValueError):
        return free


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the memory used so far: of the allocator on CUDA, elsewhere the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def peak_flops(device: torch.device, dtype: str) -> float:
    """Peak of the device in floating-point operations per second; 0 for fp32 and for unknown devices."""
    if device.type != "cuda" or dtype == "fp32":
        return 0.0
    words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    if OTHER_CARDS & words:
        return 0.0
    return next((peak * 1e12 for card, peak in PEAK_TERAFLOPS.items() if words.issuperset(card.split())), 0.0)


def cpu_name() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices: AVX512-BF16 or AMX on x86, BF16 on Arm."""
    if hasattr(torch.cpu, "_is_avx512_bf16_supported") and torch.cpu._is_avx512_bf16_supported():
        return True
    try:
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def _has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a run computes with; `steps` is the step it trains to, 0 until a run in minutes is calibrated.

    global_batch_size: sequences in one step over all ranks. micro_batch_size: sequences in one forward pass of a rank.
    """

    device: str
    dtype: str
    threads: int
    compile: bool
    compile_backend: str
    matmul_precision: str
    dist_backend: str
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    steps: int = 0


def resolve(config: RunConfig, machine: Machine, ranks: Ranks) -> tuple[Runtime, dict[str, str]]:
    """Return the runtime of a run on a machine, and the reasons; settings that cannot work are a `ConfigError`."""
    train = config.train
    device, device_reason = choose_device(train.device, machine, ranks)
    kind = device.partition(":")[0]
    dtype, dtype_reason = choose_dtype(train.dtype, kind, machine)
    threads, threads_reason = choose_threads(train.threads, machine, ranks)
    compiled, compile_reason = choose_compile(train.compile, kind, machine)
    if compiled:
        check_compile_backend(train.compile_backend)
    micro_batch_size, batch_reason = choose_micro_batch_size(config, kind, dtype, machine, ranks)
    batch_size = global_batch_size(train, config.model, micro_batch_size)
    check_batch_size(smallest_batch_size(train.batch_ramp, batch_size), ranks)
    runtime = Runtime(
        device=device,
        dtype=dtype,
        threads=threads,
        compile=compiled,
        compile_backend=train.compile_backend,
        matmul_precision=train.float32_matmul_precision,
        dist_backend=choose_dist_backend(train.dist_backend, kind, machine, ranks),
        global_batch_size=batch_size,
        micro_batch_size=min(micro_batch_size, -(-batch_size // ranks.world_size)),
        world_size=ranks.world_size,
        steps=0 if train.minutes else train.steps,
    )
    reasons = {
        "device": device_reason,
        "dtype": dtype_reason,
        "threads": threads_reason,
        "attention": find_attention(config.model.attention).kernel(kind, DTYPES[dtype], config.model.context_length),
        "compile": compile_reason,
        "batch_size": batch_reason,
    }
    return runtime, reasons


def choose_device(requested: str, machine: Machine, ranks: Ranks) -> tuple[str, str]:
    """CUDA if there is a card, else MPS, else the CPU; each rank of a machine has its own card, and none uses MPS."""
    if requested == "auto":
        if machine.cuda_devices:
            return f"cuda:{ranks.local_rank % machine.cuda_devices}", machine.name
        if machine.mps and not ranks.is_distributed:
            return "mps", "Apple GPU found"
        return "cpu", "several ranks cannot share an Apple GPU" if machine.mps else f"no GPU found; {machine.name}"
    kind, _, index = requested.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise ConfigError(f"invalid device: {requested!r}; choose one of: auto, cpu, cuda, cuda:N, mps")
    if kind == "mps" and not machine.mps:
        raise ConfigError("invalid device: mps (torch sees no Apple GPU); use --device auto or cpu")
    if kind == "mps" and ranks.is_distributed:
        raise ConfigError(f"invalid device: mps (one rank only, got {ranks.world_size}); use --device cpu")
    if kind != "cuda":
        return kind, "requested"
    if index and ranks.local_world_size > 1:
        many = f"{ranks.local_world_size} ranks on this machine"
        raise ConfigError(f"invalid device: {requested} for {many}; use --device cuda")
    number = int(index) if index else ranks.local_rank
    if number >= machine.cuda_devices:
        found = f"torch sees {machine.cuda_devices} CUDA devices"
        raise ConfigError(f"invalid device: {requested} ({found}); use --device auto, or install torch with CUDA")
    return f"cuda:{number}", f"requested; {machine.name}"


def choose_dtype(requested: str, kind: str, machine: Machine) -> tuple[str, str]:
    """bf16 if the hardware multiplies it, fp16 with loss scaling on older CUDA cards, else fp32."""
    if requested == "fp16" and kind == "cpu":
        return "fp32", "fp16 is not trained on a CPU, so fp32"
    if requested != "auto":
        return requested, "requested"
    if kind == "cuda":
        return ("bf16", "the card has it") if machine.cuda_bf16 else ("fp16", "the card has no bf16; with loss scaling")
    if kind == "mps":
        return "fp32", "the safe choice on MPS"
    return ("bf16", "the CPU has AVX512-BF16 or AMX") if machine.cpu_bf16 else ("fp32", "the CPU has no bf16 products")


def choose_threads(requested: int, machine: Machine, ranks: Ranks) -> tuple[int, str]:
    """One thread per core; the ranks of a machine share its cores."""
    if requested:
        return requested, "requested"
    threads = max(1, machine.cores // ranks.local_world_size)
    ranks_here = f" / {ranks.local_world_size} ranks here" if ranks.is_distributed else ""
    return threads, f"{machine.cores} cores{ranks_here}"


def choose_compile(requested: str, kind: str, machine: Machine) -> tuple[bool, str]:
    """On for CUDA; off elsewhere, where compiling takes longer than it saves in a short run."""
    if requested != "auto":
        return requested == "on", "requested"
    if kind == "cuda":
        return True, "pays on CUDA"
    if kind == "cpu" and machine.compiler:
        return False, "on a CPU only when requested, with --compile"
    return False, "no C++ compiler here" if kind == "cpu" else "not dependable on MPS"


def check_compile_backend(name: str) -> None:
    """Refuse an unknown backend of torch.compile; listing them loads the compiler, so inductor is not checked."""
    if name != "inductor":
        from torch._dynamo import list_backends

        pick(dict.fromkeys(list_backends(exclude_tags=())), name, "compile_backend")


def choose_dist_backend(requested: str, kind: str, machine: Machine, ranks: Ranks) -> str:
    """NCCL for CUDA, with one card per rank of a machine; gloo elsewhere."""
    backend = ("nccl" if kind == "cuda" else "gloo") if requested == "auto" else requested
    if backend == "nccl" and ranks.is_distributed:
        if kind != "cuda":
            raise ConfigError(
                f"invalid dist_backend: nccl (works on CUDA only, the device is {kind}); use auto or gloo"
            )
        if ranks.local_world_size > machine.cuda_devices:
            found = f"{ranks.local_world_size} ranks on this machine, {machine.cuda_devices} CUDA device(s)"
            raise ConfigError(f"{found}; start torchrun with --nproc_per_node={machine.cuda_devices}")
    return backend


def choose_micro_batch_size(
    config: RunConfig, kind: str, dtype: str, machine: Machine, ranks: Ranks
) -> tuple[int, str]:
    """As requested, or the largest power of two up to 32 whose estimated memory fits."""
    if config.train.batch_size:
        return config.train.batch_size, "requested"
    room = MEMORY_FRACTION * free_memory_bytes(kind, machine, ranks)
    size, rank = LARGEST_AUTO_BATCH, config.lora.lora_rank
    while size > 1 and estimated_memory_bytes(config.model, size, dtype, kind, rank) > room:
        size //= 2
    needed = estimated_memory_bytes(config.model, size, dtype, kind, rank)
    return size, f"estimated {needed / 1e9:.1f} of {room / 1e9:.1f} GB"


def free_memory_bytes(kind: str, machine: Machine, ranks: Ranks) -> int:
    """Memory for one rank: of its card, or its share of the CPU's."""
    return machine.device_memory_bytes if kind == "cuda" else machine.cpu_memory_bytes // ranks.local_world_size


def global_batch_size(train: TrainConfig, model: ModelConfig, micro_batch_size: int) -> int:
    """Sequences in one step over all ranks."""
    if train.batch_tokens:
        return train.batch_tokens // model.context_length
    return micro_batch_size * max(1, train.gradient_accumulation_steps)


def check_batch_size(batch_size: int, ranks: Ranks) -> None:
    """Refuse a global batch with fewer sequences than ranks."""
    if batch_size < ranks.world_size:
        given = f"a step has {batch_size} sequences for {ranks.world_size} ranks (must be >= 1 each)"
        raise ConfigError(f"{given}; raise --batch-tokens or --gradient-accumulation-steps, or start fewer ranks")


def check_memory(config: RunConfig, runtime: Runtime, machine: Machine, ranks: Ranks) -> None:
    """Raise `OutOfMemory` if the estimate is far above the free memory; the system would kill the process."""
    kind, size = runtime.device.partition(":")[0], runtime.micro_batch_size
    needed = estimated_memory_bytes(config.model, size, runtime.dtype, kind, config.lora.lora_rank)
    free = free_memory_bytes(kind, machine, ranks)
    if needed > CLEARLY_TOO_MUCH * free:
        given = f"about {needed / 1e9:,.1f} GB for micro-batches of {size}, {free / 1e9:,.1f} GB are free"
        raise OutOfMemory(f"{given}; lower --batch-size (the global batch stays), --context-length or the model's size")


def set_up_torch(device: str, *, threads: int, matmul_precision: str) -> None:
    """Set the process-wide options that change bits: threads, TF32, and on a CPU deterministic algorithms."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul_precision)
    if device == "cpu":
        torch.use_deterministic_algorithms(True)
        # Filling new memory takes time, and determinism does not need it. (A property the type checker does not know.)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore
