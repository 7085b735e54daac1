"""One optimizer step: the model with its loss, forward and backward over the micro-batches, the guarded update."""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from quillgpt.distributed import Ranks
from quillgpt.errors import NonFiniteError
from quillgpt.model.gpt import GPT
from quillgpt.model.loss import IGNORED_TARGET, LOSS_CHUNK_ELEMENTS, linear_cross_entropy
from quillgpt.model.precision import DTYPES, autocast, product_dtype
from quillgpt.optim import set_rates
from quillgpt.runtime import Runtime

logger = logging.getLogger(__name__)

SMALL_ELEMENTS = 1 << 18  # logits (1 MB): up to here torch's loss is faster than the chunked one
LIMIT_IN_A_ROW = 3
ADVICE = "the last good checkpoint is intact; lower --lr, raise --warmup-steps, or try --dtype fp32"


class ModelWithLoss(nn.Module):
    """The model and its loss as one module: tokens, targets -> (sum of losses in nats, number of counted targets).

    Only this module is compiled and wrapped: calling `model.hidden()` next to a DistributedDataParallel would skip the
    gradient reduction without an error. chunk_elements: largest number of logits that exist at a time. stream_dtype:
    dtype of the residual stream; None: that of the weights.
    """

    def __init__(self, model: GPT, *, chunk_elements: int, stream_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.stream_dtype = stream_dtype
        self.chunk_tokens = max(1, chunk_elements // model.config.vocab_size)

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """tokens, targets: (B, T) int64; a target of -100 is not counted. Returns two scalars."""
        hidden = self.model.hidden(tokens, dtype=self.stream_dtype).flatten(0, 1)  # (B * T, C)
        flat = targets.flatten()
        config = self.model.config
        if torch.compiler.is_compiling() or self._is_small_and_exact(hidden):
            loss_sum = self._torch_loss(hidden, flat)
        else:
            loss_sum = linear_cross_entropy(
                hidden,
                self.model.head_weight(),
                flat,
                vocab_size=config.vocab_size,
                softcap=config.logit_softcap,
                chunk_tokens=self.chunk_tokens,
            )
        return loss_sum, (flat != IGNORED_TARGET).sum()

    def _is_small_and_exact(self, hidden: Tensor) -> bool:
        """Whether torch's own operations are faster: few logits, without soft-cap and not in 16 bits."""
        config = self.model.config
        is_small = len(hidden) * config.vocab_size <= SMALL_ELEMENTS and len(hidden) <= self.chunk_tokens
        return is_small and not config.logit_softcap and product_dtype(hidden).itemsize > 2

    def _torch_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The same in torch's operations, which a compiler fuses; with several chunks, logits are computed twice."""
        if targets.shape[0] <= self.chunk_tokens:
            return self._loss_sum(hidden, targets)
        chunks = zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True)
        return torch.stack([checkpoint(self._loss_sum, *chunk, use_reentrant=False) for chunk in chunks]).sum()

    def _loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.logits(hidden)  # (tokens, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="sum")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step. inputs: (sequences of this rank, T). loss: nats per token. grad_norm: L2, before clipping."""

    inputs: Tensor
    loss: float
    lr: float
    grad_norm: float
    is_applied: bool
    is_stop: bool
    is_interrupt: bool


@dataclass(frozen=True, kw_only=True)
class WrappedModel:
    """A `ModelWithLoss` as the loop calls it: possibly compiled, with gradients reduced over the ranks.

    no_sync: context in which gradients are not reduced, for all micro-batches but the last.
    """

    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    no_sync: Callable[[], contextlib.AbstractContextManager[object]]
    has_dropout: bool
    scaler: torch.amp.GradScaler | None


def wrap(model: GPT, runtime: Runtime, ranks: Ranks | None = None) -> WrappedModel:
    """Put model and loss into one module, wrap it in DistributedDataParallel, compile it."""
    stream_dtype = torch.bfloat16 if runtime.dtype == "bf16" else None  # in fp16 sums over many layers would overflow
    step = ModelWithLoss(model, chunk_elements=_chunk_elements(runtime), stream_dtype=stream_dtype).train()
    no_sync: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = step
    if ranks is not None and ranks.is_distributed:
        device_ids = [torch.device(runtime.device).index] if runtime.device.startswith("cuda") else None
        parallel = DistributedDataParallel(step, device_ids=device_ids, gradient_as_bucket_view=True)
        forward, no_sync = parallel, parallel.no_sync
    if runtime.compile:
        forward = torch.compile(forward, backend=runtime.compile_backend, dynamic=False)
    scaler = torch.amp.GradScaler(runtime.device.partition(":")[0]) if runtime.dtype == "fp16" else None
    return WrappedModel(forward=forward, no_sync=no_sync, has_dropout=model.config.dropout > 0, scaler=scaler)


def _chunk_elements(runtime: Runtime) -> int:
    """Logits that exist at a time; a compiled step computes those of a chunk twice, so a GPU gets large chunks."""
    if not (runtime.compile and runtime.device.startswith("cuda")):
        return LOSS_CHUNK_ELEMENTS
    memory_bytes = torch.cuda.get_device_properties(runtime.device).total_memory
    return max(LOSS_CHUNK_ELEMENTS, memory_bytes // 80)  # at 6 bytes each, less than a tenth of the memory


def gradients(
    wrapped_model: WrappedModel,
    inputs: Tensor,
    targets: Tensor,
    *,
    runtime: Runtime,
    target_count: int,
    seed: int,
    step: int,
    rank: int,
) -> Tensor:
    """Accumulate the gradients of this rank's sequences; return the sum of their losses in nats, a scalar.

    inputs, targets: (sequences of this rank, T). target_count: counted targets over all ranks. The sum of every
    micro-batch is divided by it and by nothing else, so that any split into micro-batches and ranks gives the gradient
    of the one large batch. DistributedDataParallel averages over the ranks, hence the factor world_size.
    """
    device, dtype = runtime.device, DTYPES[runtime.dtype]
    size = runtime.micro_batch_size
    micro_batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    loss_sum = torch.zeros((), device=device)
    for index, (tokens, labels) in enumerate(micro_batches):
        if wrapped_model.has_dropout:
            torch.manual_seed(derived_seed(seed, step, index, rank))
        is_last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else wrapped_model.no_sync():
            with autocast(device, dtype):
                micro_sum, _ = wrapped_model.forward(to_device(tokens, device), to_device(labels, device))
            loss = micro_sum * (runtime.world_size / target_count)
            (wrapped_model.scaler.scale(loss) if wrapped_model.scaler else loss).backward()
        loss_sum += micro_sum.detach()
    return loss_sum


def to_device(tokens: Tensor, device: str) -> Tensor:
    """Copy a batch to the device; to CUDA from pinned memory, so that the copy overlaps with computing."""
    if device.startswith("cuda"):
        return tokens.pin_memory().to(device, non_blocking=True)
    return tokens.to(device)


def derived_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """The random seed of one forward pass; it is computed, so no random state has to be saved.

    The finalizer of SplitMix64 [Steele 2014, figure 17] is applied to the four numbers, one after the other.
    """
    mask, state = (1 << 64) - 1, 0
    for value in (seed, step, micro_batch, rank):
        state = (state + value + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1  # torch takes 63 bits on every device


def apply_update(
    wrapped_model: WrappedModel,
    optimizer: torch.optim.Optimizer,
    guard: "Guard",
    *,
    loss: float,
    lr: float,
    momentum: float,
    gradient_clip: float,
) -> tuple[float, bool]:
    """Clip the gradients and step if loss and gradients are finite; return (gradient norm, whether it was applied).

    The norm is the global L2 norm before clipping [Pascanu 2013, algorithm 1]; gradient_clip = 0 does not clip.
    """
    scaler = wrapped_model.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if gradient_clip:
        norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip).item()
    else:  # clipping at infinity would multiply every gradient by 1
        norm = torch.nn.utils.get_total_norm([part.grad for part in parameters if part.grad is not None]).item()
    applied = guard.allows(loss=loss, grad_norm=norm, scale=scaler.get_scale() if scaler is not None else None)
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


class Guard:
    """Counts consecutive steps whose update could not be applied."""

    def __init__(self, in_a_row: int = 0) -> None:
        self.in_a_row = in_a_row

    def allows(self, *, loss: float, grad_norm: float, scale: float | None) -> bool:
        """Whether this step's update may be applied.

        With an fp16 loss scale, infinite gradients are how the scaler finds its scale; they do not count while the loss
        is finite and the scale is at least 1.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_a_row = 0
            return True
        is_search = scale is not None and scale >= 1.0 and math.isfinite(loss)
        if not is_search:
            self.in_a_row += 1
        return False

    def report(self, *, step: int, first_token: int, tokens: int, loss: float, grad_norm: float) -> None:
        """Log which batch was not applied; raise `NonFiniteError` at the limit."""
        where = f"step {step}, tokens {first_token:,} to {first_token + tokens:,} of the training order"
        what = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        message = f"{where}: {what}: update not applied ({self.in_a_row} of {LIMIT_IN_A_ROW} in a row)"
        logger.warning("%s", message)
        if self.in_a_row >= LIMIT_IN_A_ROW:
            raise NonFiniteError(f"{message}; stopping: {ADVICE}")


def stop_unless_finite(val_loss: float, *, step: int) -> None:
    """Raise `NonFiniteError` for a non-finite validation loss: the weights are broken too."""
    if not math.isfinite(val_loss):
        raise NonFiniteError(f"step {step}: validation loss {val_loss:.4g}; stopping: {ADVICE}")


def check_weights(model: nn.Module, *, step: int) -> None:
    """Refuse to save non-finite weights; the `NonFiniteError` names the first."""
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise NonFiniteError(f"step {step}: {name} is not finite, so nothing is saved; stopping: {ADVICE}")
