"""What this machine has: devices, memory, cores, number formats. Detects; `train/resolve.py` decides."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts that choices are made from; tests make their own."""

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
    """Look at the machine this process runs on."""
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
    """Cores this process may use: its affinity, further limited by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period))) if quota != "max" else cores
    except (OSError, ValueError):
        return cores


def available_memory_bytes() -> int:
    """Memory that is free for this process: what the system reports, further limited by a container's limit."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = 8 << 30  # macOS and Windows do not say it in a file; a modest guess keeps the batch small
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        statistics = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        cached = int(statistics["inactive_file"])  # cached files count as used, but make room when it is needed
        return min(free, max(0, limit - used + cached))
    except (OSError, KeyError, ValueError):
        return free


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: on CUDA the allocator's peak, elsewhere the process's peak resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


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
"""Dense bf16 (or fp16, where there is no bf16) matrix peaks from the makers' data sheets; the first name that fits."""

OTHER_CARDS = {"Laptop", "NVL", "D", "Ti", "SUPER", "MIG", "Max"}
"""Words that make another card, or a part of one, of a name above."""


def peak_flops(device: torch.device, dtype: str) -> float:
    """The device's peak in floating-point operations per second, or 0 where it is not known: never another card's."""
    if device.type != "cuda" or dtype == "fp32":
        return 0.0
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    if OTHER_CARDS & set(words):
        return 0.0
    for card, teraflops in PEAK_TERAFLOPS.items():
        if all(word in words for word in card.split()):
            return teraflops * 1e12
    return 0.0


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment_variable(name: str) -> str:
    """One environment variable or an empty string; the environment is read only in this file."""
    return os.environ.get(name, "")


def _cpu_has_bf16() -> bool:
    """Whether matrix products in bf16 are native: AVX512-BF16 or AMX on x86, BF16 on Arm."""
    if hasattr(torch.cpu, "_is_avx512_bf16_supported") and torch.cpu._is_avx512_bf16_supported():
        return True
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def _has_compiler() -> bool:
    """Whether torch.compile's CPU code can be built here."""
    from shutil import which

    return any(which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)
