"""This process's place among the ranks; tests/training/test_many_ranks.py has the processes themselves."""

import datetime

import pytest
import torch
import torch.distributed as dist

from quillgpt.distributed import (
    Ranks,
    all_reduce_sum,
    broadcast_int,
    device_for_sums,
    main_process_first,
    process_group,
    ranks_from_environment,
)
from quillgpt.errors import ConfigError, Stopped

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
SECOND = Ranks(rank=1, world_size=2)


def set_ranks(monkeypatch: pytest.MonkeyPatch, *values: str, master: bool = True) -> None:
    for name in (*NAMES, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(NAMES, values, strict=True) if values else ():
        monkeypatch.setenv(name, value)
    if master:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "29500")


def test_torchrun_sets_each_process_its_place_and_without_it_a_process_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_ranks(monkeypatch, master=False)
    ranks = ranks_from_environment()
    assert ranks == Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1)
    assert (ranks.is_main_process, ranks.is_distributed) == (True, False)
    set_ranks(monkeypatch, "5", "1", "8", "4")
    ranks = ranks_from_environment()
    assert ranks == Ranks(rank=5, local_rank=1, world_size=8, local_world_size=4)
    assert (ranks.is_main_process, ranks.is_distributed) == (False, True)


def test_numbers_that_do_not_fit_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [("0", "0", "two", "1"), ("", "0", "1", "1"), ("1.0", "0", "2", "1")]
    wrong += [("2", "0", "2", "1"), ("-1", "0", "2", "1"), ("0", "0", "0", "1"), ("0", "0", "1", "2")]
    for values in (*wrong, ("0", "3", "4", "2")):
        set_ranks(monkeypatch, *values)
        with pytest.raises(ConfigError, match="torchrun") as raised:
            ranks_from_environment()
        assert "\n" not in str(raised.value), values
    set_ranks(monkeypatch, "0", "0", "2", "2", master=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2.*MASTER_ADDR and MASTER_PORT"):
        ranks_from_environment()


def test_a_process_alone_has_no_group_and_agrees_with_itself() -> None:
    ranks, values = Ranks(), torch.tensor([1.0, 2.0])
    with process_group(ranks, backend="gloo", timeout_seconds=1), main_process_first(ranks):
        assert not dist.is_initialized()
        assert all_reduce_sum(values, ranks) is values
        assert broadcast_int(7, ranks, torch.device("cpu")) == 7


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `process_group` calls; no group is made."""
    called: list[str] = []

    def init(backend: str, timeout: datetime.timedelta) -> None:
        called.append(f"init {backend} {timeout.total_seconds():g}")

    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: called.append("destroy"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: called.append(f"device {device}"))
    return called


def test_a_rank_that_lost_the_others_says_so_and_can_be_continued(calls: list[str]) -> None:
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer\nmore")
    for error in (gloo, dist.DistBackendError("x")):
        calls.clear()
        with (
            pytest.raises(Stopped, match=r"rank 1 lost the others \(.*\); .* ended first") as raised,
            process_group(SECOND, backend="gloo", timeout_seconds=1),
        ):
            raise error
        assert "\n" not in str(raised.value)
        assert calls == ["init gloo 1", "destroy"]
    with (
        pytest.raises(RuntimeError, match="shapes"),  # another error stays as it is
        process_group(SECOND, backend="gloo", timeout_seconds=1),
    ):
        raise RuntimeError("shapes do not fit")


def test_ranks_that_do_not_come_are_a_usage_error(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: object, **__: object) -> None:
        raise dist.DistStoreError("timed out\nmore")

    monkeypatch.setattr(dist, "init_process_group", init)
    with (
        pytest.raises(ConfigError, match=r"rank 1 of 2.*\(timed out\); .*--master_addr and --master_port") as raised,
        process_group(SECOND, backend="gloo", timeout_seconds=1),
    ):
        pass
    assert "\n" not in str(raised.value)


def test_with_nccl_each_rank_takes_its_card(calls: list[str]) -> None:
    with process_group(SECOND, backend="nccl", timeout_seconds=1, device="cuda:1"):
        pass
    assert calls == ["device cuda:1", "init nccl 1", "destroy"]


def test_sums_in_float64_are_kept_where_there_is_float64() -> None:
    assert [device_for_sums(device) for device in ("cpu", "cuda:1", "mps")] == ["cpu", "cuda:1", "cpu"]
