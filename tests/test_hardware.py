"""What a machine has: cards by name, cores and memory under a container's limits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quillgpt import hardware
from quillgpt.config import RunConfig
from quillgpt.run_dir import RunDirectory
from quillgpt.train.metrics import Metrics
from quillgpt.train.resolve import Choices
from quillgpt.train.resume import Position

CARDS = {
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 0,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 0,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": 0,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A10G": 70,
    "NVIDIA A10": 0,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "NVIDIA L40": 0,
    "Tesla T4": 65,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-PCIE-16GB": 112,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA GeForce RTX 4090 Laptop GPU": 0,
    "NVIDIA GeForce RTX 4090 D": 0,
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 3090 Ti": 0,
    "NVIDIA GeForce GTX 1650": 0,
    "NVIDIA GH200 480GB": 0,
    "AMD Instinct MI300X": 0,
}
"""names as torch reports them, and the dense 16-bit peak in TFLOP/s that may be used for them; 0: not known"""


def pretend(monkeypatch: pytest.MonkeyPatch, name: str) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    return torch.device("cuda:0")


@pytest.mark.parametrize(("name", "teraflops"), CARDS.items())
def test_a_peak_is_that_cards_own_or_none(monkeypatch: pytest.MonkeyPatch, name: str, teraflops: int) -> None:
    assert hardware.peak_flops(pretend(monkeypatch, name), "bf16") == teraflops * 1e12


@pytest.mark.parametrize(("kind", "dtype"), [("cuda", "fp32"), ("cpu", "bf16"), ("mps", "fp16")])
def test_no_peak_is_known_for_fp32_and_off_cuda(monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str) -> None:
    pretend(monkeypatch, "NVIDIA H100 80GB HBM3")
    assert hardware.peak_flops(torch.device(kind), dtype) == 0.0


def mfu(config: RunConfig, tmp_path: Path, *, world_size: int = 1) -> float | None:
    """The model FLOP utilisation of 1,000 tokens in one second."""
    choices = Choices(
        device="cuda:0",
        dtype="bf16",
        threads=1,
        compile=False,
        compile_backend="inductor",
        matmul_precision="high",
        dist_backend="nccl",
        rows=1,
        batch_size=1,
        world_size=world_size,
    )
    run, position = RunDirectory(tmp_path), Position()
    metrics = Metrics(run, config, config.model, choices, position, is_first=True, say=print)
    position.step, position.tokens, position.elapsed_seconds = 1, 1_000, 1.0
    return metrics.line(position, loss=1.0, lr=0.1, norm=1.0, applied=True, held_out=None)["mfu"]


@pytest.mark.parametrize("world_size", [1, 4])
def test_utilisation_is_of_all_cards_together(
    monkeypatch: pytest.MonkeyPatch, small_run: RunConfig, tmp_path: Path, world_size: int
) -> None:
    from quillgpt.model.sizes import flops_per_token

    pretend(monkeypatch, "Tesla T4")
    wanted = 1_000 * flops_per_token(small_run.model) / (world_size * 65e12)
    assert mfu(small_run, tmp_path, world_size=world_size) == pytest.approx(wanted)


def test_no_utilisation_is_told_for_a_card_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch, small_run: RunConfig, tmp_path: Path
) -> None:
    pretend(monkeypatch, "NVIDIA GeForce RTX 4090 Laptop GPU")
    assert mfu(small_run, tmp_path) is None


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Replace the files in which the system tells about itself; those not given do not exist."""

    def pretend_files(contents: dict[str, str]) -> None:
        def read_text(path: Path, *_: object) -> str:
            if str(path) in contents:
                return contents[str(path)]
            raise FileNotFoundError(path)

        monkeypatch.setattr(Path, "read_text", read_text)

    return pretend_files


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("rubbish", 8),
    ],
)
def test_cores_are_those_the_process_and_its_container_may_use(
    monkeypatch: pytest.MonkeyPatch, system: Callable[[dict[str, str]], None], cpu_max: str, cores: int
) -> None:
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    system({"/sys/fs/cgroup/cpu.max": cpu_max})
    assert hardware.available_cores() == cores


def test_cores_without_a_container_are_those_of_the_affinity(
    monkeypatch: pytest.MonkeyPatch, system: Callable[[dict[str, str]], None]
) -> None:
    system({})
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert hardware.available_cores() == 3
    monkeypatch.delattr(hardware.os, "sched_getaffinity")
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 6)
    assert hardware.available_cores() == 6


MEMINFO = "MemTotal:       16384000 kB\nMemFree:  100 kB\nMemAvailable:    8192000 kB\n"


def cgroup(limit: str, used: int, inactive_file: int) -> dict[str, str]:
    return {
        "/proc/meminfo": MEMINFO,
        "/sys/fs/cgroup/memory.max": limit,
        "/sys/fs/cgroup/memory.current": f"{used}\n",
        "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n",
    }


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"/proc/meminfo": MEMINFO}, 8192000 * 1024),
        (cgroup("max\n", 1 << 30, 0), 8192000 * 1024),
        (cgroup(str(4 << 30), 1 << 30, 0), 3 << 30),
        (cgroup(str(4 << 30), 4 << 30, 2 << 30), 2 << 30),
        (cgroup(str(64 << 30), 1 << 30, 0), 8192000 * 1024),
        (cgroup(str(1 << 30), 2 << 30, 0), 0),
        ({}, 8 << 30),
        ({"/proc/meminfo": "MemTotal: 5 kB\n"}, 8 << 30),
    ],
    ids=["free", "no limit", "limited", "files cached", "generous limit", "over the limit", "not told", "old kernel"],
)
def test_memory_is_what_system_and_container_leave(
    system: Callable[[dict[str, str]], None], files: dict[str, str], wanted: int
) -> None:
    system(files)
    assert hardware.available_memory_bytes() == wanted


@pytest.mark.parametrize(
    ("flags", "has_bf16"),
    [
        ("flags : fpu avx512f avx512_bf16 sse\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("Features : fp asimd i8mm bf16\n", True),
        ("flags : fpu avx2 avx512f\n", False),
    ],
)
def test_bf16_is_read_from_the_processors_flags(
    monkeypatch: pytest.MonkeyPatch, system: Callable[[dict[str, str]], None], flags: str, has_bf16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    system({"/proc/cpuinfo": flags})
    assert hardware._cpu_has_bf16() is has_bf16


def test_this_machine_is_described_without_a_card() -> None:
    machine = hardware.detect()
    assert machine.cores >= 1
    assert machine.cpu_memory_bytes > 0
    assert machine.name
    if not torch.cuda.is_available():
        assert (machine.cuda_devices, machine.device_memory_bytes, machine.cuda_bf16) == (0, 0, False)


def test_a_card_below_compute_capability_8_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("card", (), {"total_memory": 16 << 30}))
    pretend(monkeypatch, "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    machine = hardware.detect()
    assert (machine.cuda_devices, machine.cuda_bf16, machine.name) == (2, False, "Tesla T4")
    assert machine.device_memory_bytes == 16 << 30
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert hardware.detect().cuda_bf16
