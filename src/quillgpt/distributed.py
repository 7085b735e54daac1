"""Ranks: the place of this process, the process group, collectives. One process is rank 0 of 1, with no group."""

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
    """This process's place among all processes of a run."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process prints, saves and prepares data."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.world_size > 1


def ranks_from_environment() -> Ranks:
    """Return this process's place as torchrun sets it; without torchrun, rank 0 of 1.

    Numbers that do not fit together are a `ConfigError`.
    """
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    values = {name: os.environ.get(name, default) for name, default in defaults.items()}
    got = ", ".join(f"{name}={value}" for name, value in values.items())
    try:
        rank, local_rank, world_size, local_world_size = map(int, values.values())
    except ValueError:
        raise ConfigError(f"invalid environment: {got} (must be integers); start the ranks with torchrun") from None
    if not (0 <= rank < world_size and 0 <= local_rank < local_world_size <= world_size):
        raise ConfigError(f"invalid environment: {got} (do not fit together); start the ranks with torchrun")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if world_size > 1 and missing:
        raise ConfigError(f"WORLD_SIZE={world_size}, but no {' and '.join(missing)}; start the ranks with torchrun")
    return Ranks(rank=rank, local_rank=local_rank, world_size=world_size, local_world_size=local_world_size)


@contextlib.contextmanager
def process_group(ranks: Ranks, backend: str, timeout_seconds: int, device: str = "cpu") -> Iterator[None]:
    """Hold the process group until the block ends; nothing for a single process.

    A rank that loses its connection to another one ends with `Stopped`, because the run can be continued. Ranks that
    do not connect within the timeout are a `ConfigError`.
    """
    if not ranks.is_distributed:
        yield
        return
    if backend == "nccl":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))
    except dist.DistError as error:
        what = f"rank {ranks.rank} of {ranks.world_size} timed out waiting for the other ranks"
        why = str(error).splitlines()[0]
        remedy = "check that all nodes were started, and --master_addr and --master_port"
        raise ConfigError(f"{what} ({why}); {remedy}") from error
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        what = f"rank {ranks.rank} lost the others ({str(error).splitlines()[0]})"
        raise Stopped(f"{what}; see which ended first; run the same command again to continue") from error
    finally:
        dist.destroy_process_group()


def all_reduce_sum(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Return the sum of a tensor over all ranks, the same on each."""
    if ranks.is_distributed:
        values = values.clone()
        dist.all_reduce(values)
    return values


def broadcast_int(value: int, ranks: Ranks, device: torch.device) -> int:
    """Return rank 0's value, on every rank."""
    if not ranks.is_distributed:
        return value
    shared = torch.tensor([value], dtype=torch.int64, device=device)
    dist.broadcast(shared, src=0)
    return int(shared.item())


@contextlib.contextmanager
def main_process_first(ranks: Ranks) -> Iterator[None]:
    """Run the block on rank 0 first and then on the others, for what rank 0 makes and the others read."""
    if ranks.is_distributed and not ranks.is_main_process:
        dist.barrier()
    yield
    if ranks.is_distributed and ranks.is_main_process:
        dist.barrier()


def device_for_sums(device: str) -> str:
    """Return the device for sums in float64, which MPS does not have."""
    return "cpu" if device.startswith("mps") else device
