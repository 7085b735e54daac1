"""Ranks: start them as torchrun says, let them agree, share the work. One process is rank 0 of 1, with no group."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from quillgpt.errors import ConfigError, Stopped


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among all of them."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process prints, saves and prepares data."""
        return self.rank == 0

    @property
    def is_parallel(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1


def ranks_from_environment() -> Ranks:
    """This process's place as torchrun sets it; alone without torchrun. Numbers that do not fit are a `ConfigError`."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    defaults = ("0", "0", "1", "1")
    try:
        values = [int(os.environ.get(name, default)) for name, default in zip(names, defaults, strict=True)]
    except ValueError:
        raise ConfigError(
            f"{', '.join(names)} in the environment must be whole numbers, as torchrun sets them"
        ) from None
    ranks = Ranks(rank=values[0], local_rank=values[1], world_size=values[2], local_world_size=values[3])
    fits = 0 <= ranks.rank < ranks.world_size and 0 <= ranks.local_rank < ranks.local_world_size <= ranks.world_size
    if not fits:
        got = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        raise ConfigError(f"{got} in the environment do not fit together; start the ranks with torchrun")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if ranks.is_parallel and missing:
        raise ConfigError(
            f"WORLD_SIZE={ranks.world_size}, but {' and '.join(missing)} not set; start the ranks with torchrun"
        )
    return ranks


@contextlib.contextmanager
def joined(ranks: Ranks, *, backend: str, timeout_seconds: int, device: str = "cpu") -> Iterator[None]:
    """Hold the process group for the length of the block; nothing for a single process.

    A rank that another one has left alone cannot go on: it leaves by `Stopped`, because the run can be continued.
    """
    if not ranks.is_parallel:
        yield
        return
    if backend == "nccl":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))
    except dist.DistError as error:
        who = f"rank {ranks.rank} of {ranks.world_size} waited for the others in vain ({str(error).splitlines()[0]})"
        raise ConfigError(f"{who}; check that all nodes were started, and --master_addr and --master_port") from error
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        what = f"rank {ranks.rank} lost the others ({str(error).splitlines()[0]})"
        raise Stopped(f"{what}; see which ended first; the same command continues from the last checkpoint") from error
    finally:
        dist.destroy_process_group()


def total(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The sum of a tensor over all ranks, the same on each."""
    if ranks.is_parallel:
        values = values.clone()
        dist.all_reduce(values)
    return values


def from_first(value: int, ranks: Ranks, device: torch.device) -> int:
    """Rank 0's value, on every rank."""
    if not ranks.is_parallel:
        return value
    shared = torch.tensor([value], dtype=torch.int64, device=device)
    dist.broadcast(shared, src=0)
    return int(shared.item())


@contextlib.contextmanager
def first_goes_first(ranks: Ranks) -> Iterator[None]:
    """Run the block on rank 0 and then on the others, for what rank 0 makes and the others read."""
    if ranks.is_parallel and not ranks.is_first:
        dist.barrier()
    yield
    if ranks.is_parallel and ranks.is_first:
        dist.barrier()
