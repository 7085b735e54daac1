"""Processes that compute the gradients of one global batch together, by the code that trains; a test starts them.

python gradients_on_ranks.py FOLDER RECIPE: starts 2 and then 4 processes. Each writes FOLDER/CASE-rank.safetensors with
the gradients it ends with, and FOLDER/facts-WORLD-rank.json with what it counted. The two also begin the recipe's run.
"""

import dataclasses
import functools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from quillgpt.config import LoraConfig, ModelConfig, RunConfig, updated
from quillgpt.data.held_out import IGNORED_TARGET
from quillgpt.distributed import Ranks, joined, ranks_from_environment, total
from quillgpt.errors import CheckpointError, Stopped
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import adapter_tensors, add_adapters
from quillgpt.recipes import read_toml
from quillgpt.run_dir import RunDirectory
from quillgpt.train import loop, setup, update
from quillgpt.train.resolve import Choices
from quillgpt.train.resume import Position

MODEL = ModelConfig(n_layer=3, n_head=2, n_embd=32, context_length=16, vocab_size=65)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
BUCKET_BYTES = 20_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a global batch of `rows` is shared out."""

    world_size: int
    rows: int = 8
    batch_size: int = 1
    chunk_elements: int = 1 << 26
    lora_rank: int = 0


CASES = {
    "2 ranks x 4": Case(world_size=2),
    "2 ranks x 2 of 2 rows": Case(world_size=2, batch_size=2),
    "2 ranks, 3 and 4 of 7 rows": Case(world_size=2, rows=7, batch_size=2),
    "2 ranks x 4, loss in chunks": Case(world_size=2, chunk_elements=5 * MODEL.vocab_size),
    "2 ranks x 4, LoRA": Case(world_size=2, lora_rank=3),
    "4 ranks x 2": Case(world_size=4),
    "4 ranks, 1 or 2 of 7 rows": Case(world_size=4, rows=7),
}
MUTATIONS = ("never reduced", "around the wrapper", "own count", "averaged")


def new_model(dtype: torch.dtype = torch.float32, *, lora_rank: int = 0) -> GPT:
    """The same weights in every process; adapters that have learned something where there is a rank."""
    torch.manual_seed(0)
    model = GPT(MODEL)
    if lora_rank:
        add_adapters(model, LoraConfig(lora_rank=lora_rank))
        for tensor in adapter_tensors(model).values():
            tensor.normal_(std=0.02)
    return model.to(dtype)


def global_batch(rows: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets; later rows have fewer targets that count, and the last has none."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(MODEL.vocab_size, (rows, MODEL.context_length + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row in range(rows):
        targets[row, : row * MODEL.context_length // (rows - 1)] = IGNORED_TARGET
    return tokens[:, :-1], targets


def choices_for(case: Case, *, backend: str = "") -> Choices:
    """fp32 on a CPU."""
    return Choices(
        device="cpu",
        dtype="fp32",
        threads=1,
        compile=bool(backend),
        compile_backend=backend or "inductor",
        matmul_precision="high",
        dist_backend="gloo",
        rows=case.rows,
        batch_size=case.batch_size,
        world_size=case.world_size,
    )


def gradients_of(model: GPT) -> dict[str, Tensor]:
    """Each parameter's gradient."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def own_rows(case: Case, rank: int) -> tuple[Tensor, Tensor]:
    """The rows that the loader gives this rank."""
    begin, end = (case.rows * part // case.world_size for part in (rank, rank + 1))
    inputs, targets = global_batch(case.rows)
    return inputs[begin:end], targets[begin:end]


def one_step(wrapped: update.Wrapped, choices: Choices, case: Case, ranks: Ranks, *, target_count: int = 0) -> None:
    """One step's gradients, as `train()` asks for them."""
    inputs, targets = own_rows(case, ranks.rank)
    counted = int(total((targets != IGNORED_TARGET).sum(), ranks).item())
    update.gradients(
        wrapped,
        inputs,
        targets,
        choices=choices,
        target_count=target_count or counted,
        seed=0,
        step=0,
        rank=ranks.rank,
    )


def plain(case: Case, dtype: torch.dtype, ranks: Ranks) -> dict[str, Tensor]:
    """The gradients by the code as it is."""
    model, choices = new_model(dtype, lora_rank=case.lora_rank), choices_for(case)
    update.LOSS_CHUNK_ELEMENTS = case.chunk_elements
    one_step(update.wrap(model, choices, ranks), choices, case, ranks)
    return gradients_of(model)


def mutated(mutation: str, ranks: Ranks) -> dict[str, Tensor]:
    """The gradients with one thing left out; float64, so that nothing else is inexact."""
    case = Case(world_size=ranks.world_size)
    model, choices = new_model(torch.float64), choices_for(case)
    wrapped = update.wrap(model, choices, ranks)
    own_count = 0
    if mutation == "around the wrapper":
        wrapped = dataclasses.replace(wrapped, forward=wrapped.forward.module)
    if mutation == "own count":
        own_count = int((own_rows(case, ranks.rank)[1] != IGNORED_TARGET).sum())
    if mutation == "averaged":
        choices = dataclasses.replace(choices, world_size=1)
    with wrapped.unreduced() if mutation == "never reduced" else nullcontext():
        one_step(wrapped, choices, case, ranks, target_count=own_count)
    return gradients_of(model)


@contextmanager
def small_buckets() -> Iterator[None]:
    """Buckets of some kilobytes, so that a tiny model has several."""
    former = update.DistributedDataParallel, dist._DEFAULT_FIRST_BUCKET_BYTES
    update.DistributedDataParallel = functools.partial(DistributedDataParallel, bucket_cap_mb=BUCKET_BYTES / 2**20)
    dist._DEFAULT_FIRST_BUCKET_BYTES = BUCKET_BYTES
    try:
        yield
    finally:
        update.DistributedDataParallel, dist._DEFAULT_FIRST_BUCKET_BYTES = former


def events_of_a_step(ranks: Ranks, *, backend: str, accumulates: bool = True) -> tuple[list[str], dict[str, Tensor]]:
    """What happens in a step's backward passes, in order: "gradient" of a parameter, "reduction" of a bucket.

    The second step is told: DDP arranges its buckets after the first.
    """
    case, events = Case(world_size=ranks.world_size), []
    model, choices = new_model(), choices_for(case, backend=backend)
    wrapped = update.wrap(model, choices, ranks)
    parallel = wrapped.unreduced.__self__
    if not accumulates:
        wrapped = dataclasses.replace(wrapped, unreduced=nullcontext)

    def reduce(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        events.append("reduction")
        mean = bucket.buffer().div_(ranks.world_size)
        dist.all_reduce(mean)
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(mean)
        return done

    parallel.register_comm_hook(None, reduce)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: events.append("gradient"))
    for _ in range(2):
        events.clear()
        model.zero_grad(set_to_none=True)
        one_step(wrapped, choices, case, ranks)
    return events, gradients_of(model)


def fall_back_together(ranks: Ranks) -> dict[str, Any]:
    """Compile with a backend that fails on the last rank only."""

    def half_broken(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        if ranks.rank == ranks.world_size - 1:
            raise OSError("no compiler on this node")
        return graph.forward

    torch._dynamo.register_backend(half_broken, name="half_broken")
    case = Case(world_size=ranks.world_size)
    said: list[str] = []
    model = new_model()
    wrapped, choices = update.wrap_or_fall_back(model, choices_for(case, backend="half_broken"), ranks, said.append)
    left = gradients_of(model)
    one_step(wrapped, choices, case, ranks)
    return {"said": said, "compile": choices.compile, "left gradients": len(left), "gradients": gradients_of(model)}


def other_start(ranks: Ranks) -> str:
    """What a rank says whose checkpoint is not rank 0's."""
    position, choices = Position(step=100 - 10 * ranks.rank), choices_for(Case(world_size=ranks.world_size))
    try:
        setup._check_same_start(RunDirectory(Path("runs/apart")), position, choices, ranks)
    except CheckpointError as error:
        return str(error)
    return ""


def begin_and_leave(recipe: Path, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A run whose second rank has little memory, and whose first is asked to stop and takes a second to save."""
    facts: dict[str, Any] = {}
    detect, gradients, save = loop.detect, loop.gradients, loop._save

    def spied_gradients(*args: Any, **kwargs: Any) -> Tensor:
        facts["rows"] = len(args[1])
        if ranks.is_first and kwargs["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return gradients(*args, **kwargs)

    def slow_save(*args: Any) -> None:
        time.sleep(1.0)
        save(*args)
        facts["saved"] = time.monotonic()

    memory = 1 << 33 if ranks.is_first else 1 << 23
    loop.detect = lambda: dataclasses.replace(detect(), cpu_memory_bytes=memory)
    loop.gradients, loop._save = spied_gradients, slow_save
    settings = {"batch_size": 0, "gradient_accumulation_steps": 0, "out": str(folder / "run"), "save_every": 0}
    try:
        loop.train(updated(RunConfig(), read_toml(recipe) | settings, where="test"))
    except Stopped:
        facts["left"] = time.monotonic()
    return facts


def on_two_ranks(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """What is checked beside the cases."""
    for mutation in MUTATIONS:
        safetensors.torch.save_file(mutated(mutation, ranks), folder / f"{mutation}-{ranks.rank}.safetensors")
    facts: dict[str, Any] = {}
    with small_buckets():
        facts["eager"], _ = events_of_a_step(ranks, backend="")
        facts["no_sync left out"], _ = events_of_a_step(ranks, backend="", accumulates=False)
        facts["compiled"], gradients = events_of_a_step(ranks, backend="aot_eager")
    safetensors.torch.save_file(gradients, folder / f"compiled-{ranks.rank}.safetensors")
    facts["fall back"] = fall_back_together(ranks)
    facts["other start"] = other_start(ranks)
    gradients = facts["fall back"].pop("gradients")
    safetensors.torch.save_file(gradients, folder / f"fall back-{ranks.rank}.safetensors")
    return facts


def rank_main(rank: int, world_size: int, ports: tuple[int, int], folder: Path, recipe: Path) -> None:
    """One process: joins the others as under torchrun, and works through the cases of its world size."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(ports[0]),
    )
    torch.set_num_threads(1)
    ranks = ranks_from_environment()
    with joined(ranks, backend="gloo", timeout_seconds=60):
        for name, case in CASES.items():
            if case.world_size == world_size:
                for dtype_name, dtype in DTYPES.items():
                    path = folder / f"{name}, {dtype_name}-{rank}.safetensors"
                    safetensors.torch.save_file(plain(case, dtype, ranks), path)
        facts = on_two_ranks(folder, ranks) if world_size == 2 else {}
    if world_size == 2:
        os.environ["MASTER_PORT"] = str(ports[1])
        facts["run"] = begin_and_leave(recipe, folder, ranks)
    (folder / f"facts-{world_size}-{rank}.json").write_text(json.dumps(facts))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    for processes in (2, 4):
        arguments = (processes, (free_port(), free_port()), Path(sys.argv[1]), Path(sys.argv[2]))
        mp.start_processes(rank_main, args=arguments, nprocs=processes, start_method="fork")
