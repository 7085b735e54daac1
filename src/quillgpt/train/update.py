"""One update: forward and backward over the micro-batches of a step, and the wrappers around them."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from quillgpt.distributed import Ranks, total
from quillgpt.evaluate.held_out_loss import autocast
from quillgpt.model.gpt import GPT
from quillgpt.optim import set_rates
from quillgpt.train.guard import Guard
from quillgpt.train.resolve import DTYPES, LOSS_CHUNK_ELEMENTS, Choices
from quillgpt.train.step import TrainingStep, derived_seed


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """A `TrainingStep` as it is called: compiled, with its gradients reduced over the ranks, or plain."""

    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    unreduced: Callable[[], contextlib.AbstractContextManager[object]]
    has_dropout: bool
    scaler: torch.amp.GradScaler | None


def wrap(model: GPT, choices: Choices, ranks: Ranks | None = None) -> Wrapped:
    """Put the model and its loss into one module, reduce its gradients over the ranks, compile the whole."""
    stream_dtype = torch.bfloat16 if choices.dtype == "bf16" else None  # in fp16 sums over many layers would overflow
    step = TrainingStep(model, chunk_elements=_chunk_elements(choices), stream_dtype=stream_dtype).train()
    unreduced: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = step
    if ranks is not None and ranks.is_parallel:
        device_ids = [torch.device(choices.device).index] if choices.device.startswith("cuda") else None
        parallel = DistributedDataParallel(step, device_ids=device_ids, gradient_as_bucket_view=True)
        forward, unreduced = parallel, parallel.no_sync
    if choices.compile:
        forward = torch.compile(forward, backend=choices.compile_backend, dynamic=False)
    scaler = torch.amp.GradScaler(choices.device.partition(":")[0]) if choices.dtype == "fp16" else None
    return Wrapped(forward=forward, unreduced=unreduced, has_dropout=model.config.dropout > 0, scaler=scaler)


def _chunk_elements(choices: Choices) -> int:
    """Logits that exist at one time; compiled, those of a chunk are computed twice, so a card gets large chunks."""
    if not (choices.compile and choices.device.startswith("cuda")):
        return LOSS_CHUNK_ELEMENTS
    memory_bytes = torch.cuda.get_device_properties(choices.device).total_memory
    return max(LOSS_CHUNK_ELEMENTS, memory_bytes // 80)  # at 6 bytes each less than a tenth of the memory


def gradients(
    wrapped: Wrapped,
    inputs: Tensor,
    targets: Tensor,
    *,
    choices: Choices,
    target_count: int,
    seed: int,
    step: int,
    rank: int,
) -> Tensor:
    """Add the gradients of this rank's rows, and return the sum of their losses in nats.

    inputs, targets: (rows of this rank, T). `target_count` is the number of counted targets over all ranks: every
    micro-batch's sum is divided by it and nothing else, so that any split into micro-batches and ranks gives the
    gradient of the one big batch. The ranks' gradients are averaged by the wrapper, hence the factor world_size.
    """
    device, dtype = choices.device, DTYPES[choices.dtype]
    parts = list(zip(inputs.split(choices.batch_size), targets.split(choices.batch_size), strict=True))
    loss_sum = torch.zeros((), device=device)
    for index, (tokens, wanted) in enumerate(parts):
        if wrapped.has_dropout:
            torch.manual_seed(derived_seed(seed, step, index, rank))
        is_last = index == len(parts) - 1
        with contextlib.nullcontext() if is_last else wrapped.unreduced():
            with autocast(device, dtype):
                part_sum, _ = wrapped.forward(to_device(tokens, device), to_device(wanted, device))
            loss = part_sum * (choices.world_size / target_count)
            (wrapped.scaler.scale(loss) if wrapped.scaler else loss).backward()
        loss_sum += part_sum.detach()
    return loss_sum


def to_device(tokens: Tensor, device: str) -> Tensor:
    """Copy a batch to the device; to CUDA from pinned memory, so that the copy overlaps with computing."""
    if device.startswith("cuda"):
        return tokens.pin_memory().to(device, non_blocking=True)
    return tokens.to(device)


def wrap_or_fall_back(
    model: GPT, choices: Choices, ranks: Ranks, say: Callable[[str], None]
) -> tuple[Wrapped, Choices]:
    """Wrap the model; where compiling fails on any rank, say why and wrap it without on all.

    The trial runs the step once on a batch of zeros and drops the gradients. With several ranks it runs on a copy,
    because a second reduction wrapped around the same weights would not replace the first.
    """
    if not choices.compile:
        return wrap(model, choices, ranks), choices
    alone = dataclasses.replace(choices, world_size=1)
    trial = copy.deepcopy(model) if ranks.is_parallel else model
    wrapped = wrap(trial, alone)
    failure = _compile_failure(wrapped, alone, trial.config.context_length)
    trial.zero_grad(set_to_none=True)
    failures = total(torch.tensor(int(failure != ""), device=choices.device), ranks).item()
    if failures:
        say(f"compile: off, because it failed here: {failure or 'on another rank'}")
        choices = dataclasses.replace(choices, compile=False)
    return (wrap(model, choices, ranks) if failures or ranks.is_parallel else wrapped), choices


def _compile_failure(wrapped: Wrapped, choices: Choices, context_length: int) -> str:
    """Why the compiled step does not run, in one line; nothing if it does."""
    from torch._dynamo.exc import TorchDynamoException

    tokens = torch.zeros(choices.batch_size, context_length, dtype=torch.int64)
    try:
        gradients(wrapped, tokens, tokens, choices=choices, target_count=tokens.numel(), seed=0, step=0, rank=0)
    except (RuntimeError, TorchDynamoException, ImportError, OSError) as error:
        torch._dynamo.reset()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])  # "backend=... raised:", then by what
    return ""


def apply_update(
    wrapped: Wrapped,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    *,
    loss: float,
    lr: float,
    momentum: float,
    gradient_clip: float,
) -> tuple[float, bool]:
    """Clip the gradients and step, if loss and gradients are finite; return their norm and whether it was applied.

    The norm is the global L2 norm before clipping [Pascanu 2013, algorithm 1]; 0 as `gradient_clip` clips nothing.
    """
    scaler = wrapped.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if gradient_clip:
        norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip).item()
    else:  # clipping at infinity would multiply every gradient by 1
        norm = torch.nn.utils.get_total_norm([part.grad for part in parameters if part.grad is not None]).item()
    applied = guard.allows(loss=loss, gradient_norm=norm, scale=scaler.get_scale() if scaler is not None else None)
    if applied:
        set_rates(optimizer, lr=lr, momentum=momentum)
        if scaler is not None:
            scaler.step(optimizer)
        else:
            optimizer.step()
    if scaler is not None:
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm, applied
