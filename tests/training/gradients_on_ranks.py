"""Processes that compute the gradients of one global batch together, by the code that trains; a test starts them.

python gradients_on_ranks.py FOLDER RECIPE: starts 2 and then 4 processes. Each writes FOLDER/CASE-rank.safetensors with
the gradients it ends with, and FOLDER/facts-WORLD-rank.json with what it saw. The two also begin the recipe's run.
"""

import contextlib
import functools
import json
import logging.handlers
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from quillgpt.config import LoraConfig, ModelConfig, RunConfig, updated
from quillgpt.distributed import Ranks, all_reduce_sum, process_group, ranks_from_environment
from quillgpt.errors import Stopped
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import adapter_tensors, add_adapters
from quillgpt.model.loss import IGNORED_TARGET
from quillgpt.recipes import read_toml
from quillgpt.runtime import Runtime
from quillgpt.training import calibrate, loop, step
from quillgpt.training.state import TrainState
from quillgpt.training.step import WrappedModel, wrap
from small_runs import RUNTIME

MODEL = ModelConfig(n_layer=3, n_head=2, n_embd=32, context_length=16, vocab_size=65)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
BUCKET_BYTES = 20_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a global batch is divided."""

    world_size: int
    global_batch_size: int = 8
    micro_batch_size: int = 1
    chunk_elements: int = 1 << 26
    lora_rank: int = 0

    def runtime(self, *, backend: str = "") -> Runtime:
        return replace(
            RUNTIME,
            compile=bool(backend),
            compile_backend=backend or "inductor",
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            world_size=self.world_size,
        )


CASES = {
    "2 ranks x 4": Case(world_size=2),
    "2 ranks x 2 of 2 sequences": Case(world_size=2, micro_batch_size=2),
    "2 ranks, 3 and 4 of 7 sequences": Case(world_size=2, global_batch_size=7, micro_batch_size=2),
    "2 ranks x 4, loss in chunks": Case(world_size=2, chunk_elements=5 * MODEL.vocab_size),
    "2 ranks x 4, LoRA": Case(world_size=2, lora_rank=3),
    "4 ranks x 2": Case(world_size=4),
    "4 ranks, 1 or 2 of 7 sequences": Case(world_size=4, global_batch_size=7),
}
MUTATIONS = ("never reduced", "around the wrapper", "own count", "averaged")


def new_model(dtype: torch.dtype = torch.float32, *, lora_rank: int = 0) -> GPT:
    """The same weights in every process; with a rank, adapters that are not zero."""
    torch.manual_seed(0)
    model = GPT(MODEL)
    if lora_rank:
        add_adapters(model, LoraConfig(lora_rank=lora_rank))
        for tensor in adapter_tensors(model).values():
            tensor.normal_(std=0.02)
    return model.to(dtype)


def global_batch(size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets; later sequences have fewer counted targets, and the last has none."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(MODEL.vocab_size, (size, MODEL.context_length + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row in range(size):
        targets[row, : row * MODEL.context_length // (size - 1)] = IGNORED_TARGET
    return tokens[:, :-1], targets


def own_sequences(case: Case, rank: int) -> tuple[Tensor, Tensor]:
    """The sequences that the loader gives this rank."""
    begin, end = (case.global_batch_size * part // case.world_size for part in (rank, rank + 1))
    inputs, targets = global_batch(case.global_batch_size)
    return inputs[begin:end], targets[begin:end]


def gradients_of(model: GPT) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def one_step(wrapped: WrappedModel, runtime: Runtime, case: Case, ranks: Ranks, *, target_count: int = 0) -> None:
    """One step's gradients, computed as `train()` does."""
    inputs, targets = own_sequences(case, ranks.rank)
    counted = int(all_reduce_sum((targets != IGNORED_TARGET).sum(), ranks).item())
    numbers = {"target_count": target_count or counted, "seed": 0, "step": 0, "rank": ranks.rank}
    step.gradients(wrapped, inputs, targets, runtime=runtime, **numbers)


def plain(case: Case, dtype: torch.dtype, ranks: Ranks) -> dict[str, Tensor]:
    """The gradients by the code as it is."""
    model, runtime = new_model(dtype, lora_rank=case.lora_rank), case.runtime()
    step.LOSS_CHUNK_ELEMENTS = case.chunk_elements
    one_step(wrap(model, runtime, ranks), runtime, case, ranks)
    return gradients_of(model)


def mutated(mutation: str, ranks: Ranks) -> dict[str, Tensor]:
    """The gradients with one thing left out; float64, so that nothing else is inexact."""
    case = Case(world_size=ranks.world_size)
    model, runtime, own_count = new_model(torch.float64), case.runtime(), 0
    wrapped = wrap(model, runtime, ranks)
    if mutation == "around the wrapper":
        wrapped = replace(wrapped, forward=wrapped.forward.module)
    if mutation == "own count":
        own_count = int((own_sequences(case, ranks.rank)[1] != IGNORED_TARGET).sum())
    if mutation == "averaged":
        runtime = replace(runtime, world_size=1)
    with wrapped.no_sync() if mutation == "never reduced" else contextlib.nullcontext():
        one_step(wrapped, runtime, case, ranks, target_count=own_count)
    return gradients_of(model)


@contextlib.contextmanager
def small_buckets() -> Iterator[None]:
    """Buckets of some kilobytes, so that a tiny model has several."""
    former = step.DistributedDataParallel, dist._DEFAULT_FIRST_BUCKET_BYTES
    step.DistributedDataParallel = functools.partial(DistributedDataParallel, bucket_cap_mb=BUCKET_BYTES / 2**20)
    dist._DEFAULT_FIRST_BUCKET_BYTES = BUCKET_BYTES
    try:
        yield
    finally:
        step.DistributedDataParallel, dist._DEFAULT_FIRST_BUCKET_BYTES = former


def events_of(ranks: Ranks, *, backend: str = "", accumulates: bool = True) -> tuple[list[str], dict[str, Tensor]]:
    """The events of a step in order, "gradient" of a parameter and "reduction" of a bucket, and its gradients.

    It is the second step, because DDP arranges its buckets after the first.
    """
    case, events = Case(world_size=ranks.world_size), []
    model, runtime = new_model(), case.runtime(backend=backend)
    wrapped = wrap(model, runtime, ranks)
    parallel = wrapped.no_sync.__self__
    if not accumulates:
        wrapped = replace(wrapped, no_sync=contextlib.nullcontext)

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
        one_step(wrapped, runtime, case, ranks)
    return events, gradients_of(model)


def fall_back_together(ranks: Ranks) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Calibrate with a backend that fails on the last rank only."""

    def half_broken(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        if ranks.rank == ranks.world_size - 1:
            raise OSError("no compiler on this node")
        return graph.forward

    torch._dynamo.register_backend(half_broken, name="half_broken")
    case, model, records = Case(world_size=ranks.world_size), new_model(), logging.handlers.BufferingHandler(99)
    loaded: Any = SimpleNamespace(runtime=case.runtime(backend="half_broken"), model=model, state=TrainState())
    calibrate.logger.addHandler(records)
    calibrate.logger.setLevel(logging.INFO)
    found = calibrate.calibrate(RunConfig(), loaded, ranks)
    facts = {"messages": [record.getMessage() for record in records.buffer], "compile": found.runtime.compile}
    facts |= {"left gradients": len(gradients_of(model))}
    one_step(wrap(model, found.runtime, ranks), found.runtime, case, ranks)
    return facts, gradients_of(model)


def begin_and_leave(recipe: Path, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A run whose second rank has little memory and gets a signal, and whose first takes a second to save."""
    facts: dict[str, Any] = {}
    detect, gradients, save = loop.detect, loop.gradients, loop.save

    def gradients_with_signal(*arguments: Any, **numbers: Any) -> Tensor:
        if numbers["step"] == 0:
            facts["inputs"] = arguments[1].tolist()
        if numbers["step"] == 2 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return gradients(*arguments, **numbers)

    def slow_save(*arguments: Any) -> None:
        time.sleep(1.0)
        save(*arguments)
        facts["saved"] = time.monotonic()

    memory = 1 << 33 if ranks.is_main_process else 1 << 23
    loop.detect = lambda: replace(detect(), cpu_memory_bytes=memory)
    loop.gradients, loop.save = gradients_with_signal, slow_save
    settings = {"batch_size": 0, "gradient_accumulation_steps": 0, "out": str(folder / "run"), "save_every": 0}
    try:
        loop.train(updated(RunConfig(), read_toml(recipe) | settings, where="test"))
    except Stopped as error:
        facts |= {"left": time.monotonic(), "message": str(error)}
    return facts


def on_two_ranks(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """What is checked on two ranks only."""
    gradients = {mutation: mutated(mutation, ranks) for mutation in MUTATIONS}
    facts: dict[str, Any] = {}
    with small_buckets():
        facts["eager"], _ = events_of(ranks)
        facts["no_sync left out"], _ = events_of(ranks, accumulates=False)
        facts["compiled"], gradients["compiled"] = events_of(ranks, backend="aot_eager")
    facts["fall back"], gradients["fall back"] = fall_back_together(ranks)
    for name, tensors in gradients.items():
        safetensors.torch.save_file(tensors, folder / f"{name}-{ranks.rank}.safetensors")
    return facts


def rank_main(rank: int, world_size: int, ports: tuple[int, int], folder: Path, recipe: Path) -> None:
    """One process: joins the others as under torchrun, and works through the cases of its world size."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(ports[0]))
    torch.set_num_threads(1)
    ranks = ranks_from_environment()
    with process_group(ranks, backend="gloo", timeout_seconds=60):
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
    """A port that no process listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    for processes in (2, 4):
        arguments = (processes, (free_port(), free_port()), Path(sys.argv[1]), Path(sys.argv[2]))
        mp.start_processes(rank_main, args=arguments, nprocs=processes, start_method="fork")
