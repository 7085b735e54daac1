"""Who this process is among the ranks; tests/train/test_many_ranks.py has the processes themselves."""

import pytest
import torch
import torch.distributed as dist

from quillgpt.distributed import Ranks, first_goes_first, from_first, joined, ranks_from_environment, total
from quillgpt.errors import ConfigError, Stopped

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def set_ranks(monkeypatch: pytest.MonkeyPatch, *values: str, master: bool = True) -> None:
    for name in (*NAMES, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(NAMES, values, strict=True) if values else ():
        monkeypatch.setenv(name, value)
    if master:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "29500")


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_ranks(monkeypatch, master=False)
    ranks = ranks_from_environment()
    assert ranks == Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1)
    assert ranks.is_first
    assert not ranks.is_parallel


def test_torchrun_tells_each_process_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    set_ranks(monkeypatch, "5", "1", "8", "4")
    ranks = ranks_from_environment()
    assert ranks == Ranks(rank=5, local_rank=1, world_size=8, local_world_size=4)
    assert not ranks.is_first
    assert ranks.is_parallel


@pytest.mark.parametrize(
    "values",
    [
        ("0", "0", "two", "1"),
        ("", "0", "1", "1"),
        ("1.0", "0", "2", "1"),
        ("2", "0", "2", "1"),
        ("-1", "0", "2", "1"),
        ("0", "0", "0", "1"),
        ("0", "0", "1", "2"),
        ("0", "3", "4", "2"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...]
) -> None:
    set_ranks(monkeypatch, *values)
    with pytest.raises(ConfigError, match="torchrun") as raised:
        ranks_from_environment()
    assert "\n" not in str(raised.value)


def test_several_ranks_without_a_meeting_point_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_ranks(monkeypatch, "0", "0", "2", "2", master=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE=2, but MASTER_ADDR and MASTER_PORT not set"):
        ranks_from_environment()


def test_a_process_alone_joins_nothing_and_agrees_with_itself() -> None:
    ranks, values = Ranks(), torch.tensor([1.0, 2.0])
    with joined(ranks, backend="gloo", timeout_seconds=1), first_goes_first(ranks):
        assert not dist.is_initialized()
        assert total(values, ranks) is values
        assert from_first(7, ranks, torch.device("cpu")) == 7


def fake_group(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """init and destroy without a group; what was called."""
    called: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: called.append(f"init {backend}"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: called.append("destroy"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: called.append(f"device {device}"))
    return called


@pytest.mark.parametrize(
    "error", [RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer\nmore"), dist.DistBackendError("x")]
)
def test_a_rank_left_alone_says_so_and_can_be_continued(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    called = fake_group(monkeypatch)
    with (
        pytest.raises(Stopped, match=r"rank 1 lost the others \(.*\); see which ended first") as raised,
        joined(Ranks(rank=1, world_size=2), backend="gloo", timeout_seconds=1),
    ):
        raise error
    assert "\n" not in str(raised.value)
    assert called == ["init gloo", "destroy"]


def test_another_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_group(monkeypatch)
    with (
        pytest.raises(RuntimeError, match="shapes"),
        joined(Ranks(rank=1, world_size=2), backend="gloo", timeout_seconds=1),
    ):
        raise RuntimeError("shapes do not fit")


def test_with_nccl_each_rank_takes_the_card_that_was_chosen_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_group(monkeypatch)
    with joined(Ranks(rank=1, world_size=2), backend="nccl", timeout_seconds=1, device="cuda:1"):
        pass
    assert called == ["device cuda:1", "init nccl", "destroy"]
