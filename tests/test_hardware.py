"""What a machine has: cards by name, and cores and memory within a container's limits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quillgpt import runtime

CARDS = {
    989: "NVIDIA H200 | NVIDIA H100 80GB HBM3",
    0: """NVIDIA H200 NVL | NVIDIA H100 NVL | NVIDIA H100 80GB HBM3 MIG 1g.10gb | NVIDIA A10 | NVIDIA L40
        | NVIDIA GeForce RTX 4090 Laptop GPU | NVIDIA GeForce RTX 4090 D | NVIDIA GeForce RTX 3090 Ti
        | NVIDIA GeForce GTX 1650 | NVIDIA GH200 480GB | AMD Instinct MI300X""",
    756: "NVIDIA H100 PCIe",
    312: "NVIDIA A100-SXM4-80GB | NVIDIA A100-PCIE-40GB",
    70: "NVIDIA A10G",
    121: "NVIDIA L4",
    362: "NVIDIA L40S",
    65: "Tesla T4",
    125: "Tesla V100-SXM2-16GB",
    112: "Tesla V100-PCIE-16GB",
    165: "NVIDIA GeForce RTX 4090",
    71: "NVIDIA GeForce RTX 3090",
}
"""dense 16-bit peaks in TFLOP/s, and the cards that have them, as torch reports their names; 0: unknown"""
MEMINFO = "MemTotal:       16384000 kB\nMemFree:  100 kB\nMemAvailable:    8192000 kB\n"

System = Callable[[dict[str, str]], None]


def pretend_card(monkeypatch: pytest.MonkeyPatch, name: str) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    return torch.device("cuda:0")


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    """Replace the files in which the system describes itself; those not given do not exist."""

    def pretend_files(contents: dict[str, str]) -> None:
        def read_text(path: Path, *_: object) -> str:
            if str(path) in contents:
                return contents[str(path)]
            raise FileNotFoundError(path)

        monkeypatch.setattr(Path, "read_text", read_text)

    return pretend_files


def test_a_peak_is_that_of_the_exact_card_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for teraflops, names in CARDS.items():
        for name in map(str.strip, names.split("|")):
            assert runtime.peak_flops(pretend_card(monkeypatch, name), "bf16") == teraflops * 1e12, name
    pretend_card(monkeypatch, "NVIDIA H100 80GB HBM3")
    for kind, dtype in (("cuda", "fp32"), ("cpu", "bf16"), ("mps", "fp16")):
        assert runtime.peak_flops(torch.device(kind), dtype) == 0.0


def test_cores_are_those_of_affinity_and_container(monkeypatch: pytest.MonkeyPatch, system: System) -> None:
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    quotas = {"max 100000": 8, "200000 100000": 2, "150000 100000": 1, "50000 100000": 1, "1600000 100000": 8, "bad": 8}
    for quota, cores in quotas.items():
        system({"/sys/fs/cgroup/cpu.max": quota})
        assert runtime.available_cores() == cores, quota
    system({})
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert runtime.available_cores() == 3
    monkeypatch.delattr(runtime.os, "sched_getaffinity")
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: 6)
    assert runtime.available_cores() == 6


def cgroup(limit: str, used: int, inactive_file: int) -> dict[str, str]:
    return {
        "/proc/meminfo": MEMINFO,
        "/sys/fs/cgroup/memory.max": limit,
        "/sys/fs/cgroup/memory.current": f"{used}\n",
        "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n",
    }


def test_memory_is_what_system_and_container_leave(system: System) -> None:
    available = 8192000 * 1024
    for name, (contents, expected) in {
        "free": ({"/proc/meminfo": MEMINFO}, available),
        "no limit": (cgroup("max\n", 1 << 30, 0), available),
        "limit": (cgroup(str(4 << 30), 1 << 30, 0), 3 << 30),
        "cached files": (cgroup(str(4 << 30), 4 << 30, 2 << 30), 2 << 30),
        "high limit": (cgroup(str(64 << 30), 1 << 30, 0), available),
        "above the limit": (cgroup(str(1 << 30), 2 << 30, 0), 0),
        "unknown": ({}, 8 << 30),
        "old kernel": ({"/proc/meminfo": "MemTotal: 5 kB\n"}, 8 << 30),
    }.items():
        system(contents)
        assert runtime.available_memory_bytes() == expected, name


def test_bf16_and_name_are_read_from_cpuinfo(monkeypatch: pytest.MonkeyPatch, system: System) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    for flags, has_bf16 in {
        "flags : fpu avx512f avx512_bf16 sse\n": True,
        "flags : fpu amx_bf16 amx_tile\n": True,
        "Features : fp asimd i8mm bf16\n": True,
        "flags : fpu avx2 avx512f\n": False,
    }.items():
        system({"/proc/cpuinfo": f"model name : A CPU @ 2 GHz\n{flags}"})
        assert runtime._cpu_has_bf16() is has_bf16, flags
        assert runtime.cpu_name() == "A CPU @ 2 GHz"
    system({})
    assert not runtime._cpu_has_bf16()
    assert runtime.cpu_name() == (runtime.platform.processor() or runtime.platform.machine())


def test_this_machine_is_described_with_and_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = runtime.detect()
    assert machine.cores >= 1
    assert machine.cpu_memory_bytes > 0
    assert machine.name
    if not torch.cuda.is_available():
        assert (machine.cuda_devices, machine.device_memory_bytes, machine.cuda_bf16) == (0, 0, False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("card", (), {"total_memory": 16 << 30}))
    pretend_card(monkeypatch, "Tesla T4")
    for capability, has_bf16 in (((7, 5), False), ((8, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        machine = runtime.detect()
        assert (machine.cuda_devices, machine.cuda_bf16, machine.name) == (2, has_bf16, "Tesla T4")
        assert machine.device_memory_bytes == 16 << 30
