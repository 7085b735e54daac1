"""The measured peak, and the clock."""

import pytest
import torch

from quillgpt.bench import machine
from quillgpt.bench.machine import Clock, Peak, best_of, matmul_peak


def test_the_peak_is_the_best_of_the_sizes_by_two_n_cubed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {512: 0.5, 1024: 0.5, 2048: 5.0}
    monkeypatch.setattr(machine, "_fastest_product", lambda device, dtype, size, _: seconds[size])
    peak = matmul_peak("cpu", "bf16")
    assert (peak.measured, peak.square) == (2 * 1024**3 / 0.5, 1024)
    assert (peak.device, peak.dtype, peak.threads) == ("cpu", "bf16", torch.get_num_threads())
    assert peak.datasheet is None  # a CPU is no card of the table


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_product_takes_time_and_is_one_of_that_dtype(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[tuple] = []
    real = torch.mm

    def spied(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        multiplied.append((left.dtype, tuple(left.shape), tuple(right.shape)))
        return real(left, right, out=out)

    monkeypatch.setattr(machine, "SQUARES", {"cpu": (32, 64)})
    monkeypatch.setattr(torch, "mm", spied)
    assert 0 < matmul_peak("cpu", dtype, 0.01).measured < 1e15
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert {*multiplied} == {(wanted, (size, size), (size, size)) for size in (32, 64)}
    assert len(multiplied) >= 4  # one of each size to warm up, and at least one that counts


def test_the_best_of_a_kind_is_everybodys_of_that_kind() -> None:
    def peak(flops: float, dtype: str) -> Peak:
        return Peak(measured=flops, square=1, device="cpu", dtype=dtype, threads=1, datasheet=None)

    best = best_of([peak(1, "fp32"), peak(5, "bf16"), peak(2, "fp32")], [peak(3, "fp32"), peak(4, "bf16")])
    assert [one.measured for one in best] == [3, 5, 3]


def test_a_clock_adds_up_what_a_part_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 1.5, 10.0, 12.0, 20.0, 20.25])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(now))
    clock = Clock("cpu")
    for part in ("data", "forward", "data"):
        with clock(part):
            pass
    assert clock.seconds == {"data": 0.75, "forward": 2.0}


def test_a_card_has_finished_at_both_ends_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append("waited"))
    with Clock("cuda:0")("forward"):
        waits.append("worked")
    assert waits == ["waited", "worked", "waited"]
