"""Where the numbers of an attention lie while it trains: a look at one sequence, layer by layer, and a warning.

A softmax takes any scores. The other attentions have a range in which they do what they are meant to do: a Gaussian
that underflows passes nothing on, a polynomial beyond its last zero grows where it should fall, and weights that are
not divided by their sum may add up to anything. docs/how-it-works.md tells what each number means.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quillgpt.evaluate.held_out_loss import autocast, evaluation_mode
from quillgpt.model.attention import Attention
from quillgpt.model.attention.gaussian_poly import PREFIX, power_of
from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.rotary import Rotation
from quillgpt.model.self_attention import SelfAttention
from quillgpt.model.squared_distance import negative_half_distances
from quillgpt.model.written_out import in_full
from quillgpt.train.resolve import DTYPES, Choices

LONGEST_LOOK = 1024  # tokens; the T x T numbers of one layer are then 4 MiB for each head
MUCH_WORSE = 10  # times the share that was last warned of

PerLayer = dict[str, list[float]]
"""each statistic, with a number for every layer"""


@dataclass(kw_only=True)
class KernelMonitor:
    """Looks at a model between two steps of its training, and leaves no trace in it.

    A look is an evaluation of one sequence by the model itself, not by the module that is compiled or wrapped: no
    gradient, no dropout and so no random number, no collective. Rank 0 alone looks.
    """

    model: GPT
    choices: Choices
    is_first: bool
    say: Callable[[str], None]
    _warned: float = field(default=0.0, init=False)

    @torch.no_grad()
    def look(self, inputs: Tensor, step: int) -> PerLayer:
        """The statistics of the first sequence of `inputs` (B, T), its first 1,024 tokens; nothing for a softmax.

        Warns of a polynomial that grows; again only when a larger share of the pairs does, by `MUCH_WORSE`.
        """
        attention = self.model.config.attention
        if not self.is_first or not is_watched(attention):
            return {}
        layers: list[dict[str, Tensor]] = []

        def measure(module: SelfAttention, arguments: tuple[Tensor, Rotation | None, KVCache | None]) -> None:
            x, rotation, *_ = arguments
            query, key, _ = module.queries_keys_values(x, rotation)
            layers.append(statistics(attention, module.attend, query, key, dtype=DTYPES[self.choices.dtype]))

        with contextlib.ExitStack() as stack:
            for module in self.model.modules():
                if isinstance(module, SelfAttention):
                    stack.enter_context(module.register_forward_pre_hook(measure))
            stack.enter_context(evaluation_mode(self.model))
            stack.enter_context(autocast(self.choices.device, DTYPES[self.choices.dtype]))
            self.model.hidden(inputs[:1, :LONGEST_LOOK].to(self.choices.device))
        names = list(layers[0])
        numbers = torch.stack([torch.stack([layer[name] for layer in layers]) for name in names]).tolist()
        found = dict(zip(names, numbers, strict=True))
        self._warn(found, step)
        return found

    def _warn(self, found: Mapping[str, list[float]], step: int) -> None:
        """Say that the polynomial grows, where it does, and what helps."""
        shares = found.get("kernel_x_above_2n", [0.0])
        worst = max(shares)
        if worst == 0.0 or worst < MUCH_WORSE * self._warned:
            return
        self._warned = worst
        self.say(growth_warning(self.model, step=step, layer=shares.index(worst), found=found))


def is_watched(attention: str) -> bool:
    """Whether an attention has a range that its numbers can leave.

    A softmax has none, and neither has power-softmax: it divides every score by the largest.
    """
    return attention.startswith(("gaussian", "pointwise-"))


def statistics(
    attention: str, attend: Attention, query: Tensor, key: Tensor, *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The numbers of one layer, scalars over all visible pairs of all heads; query, key: (B, H, T, D).

    `dtype` is what the run computes in: it says where exp(-x) underflows.
    """
    with torch.autocast(query.device.type, enabled=False):  # which would multiply these in 16 bits
        if attention.startswith("gaussian"):
            found = _kernel_statistics(attention, kernel_argument(query, key), dtype)
        else:
            found = _size("score", scores(query, key).abs())
    if attention != "gaussian-normalized":
        sums = in_full(attend(query, key, torch.ones_like(query), dropout=0.0)[..., 0])  # (B, H, T), a mix of ones
        found |= {"weight_sum_mean": sums.mean(), "weight_sum_max": sums.abs().max()}
    return found


def kernel_argument(query: Tensor, key: Tensor) -> Tensor:
    """x = |q - k|^2 / (2 sqrt(D)) for every visible pair, and 0 for the others; (B, H, T, D) twice -> (B, H, T, T)."""
    return (-negative_half_distances(query, key) / math.sqrt(query.shape[-1])).clamp(min=0.0).tril()


def scores(query: Tensor, key: Tensor) -> Tensor:
    """q . k / sqrt(D) for every visible pair, and 0 for the others; (B, H, T, D) twice -> (B, H, T, T)."""
    return (in_full(query) @ in_full(key).transpose(-2, -1) / math.sqrt(query.shape[-1])).tril()


def underflow_threshold(dtype: torch.dtype) -> float:
    """The x above which exp(-x) is below the smallest normal number: 87.3 for fp32 and bf16, 9.7 for fp16."""
    return -math.log(torch.finfo(dtype).tiny)


def growth_warning(model: GPT, *, step: int, layer: int, found: Mapping[str, list[float]]) -> str:
    """The line that says where the polynomial grows beyond 1, for how many pairs, and what to do."""
    config = model.config
    degree = power_of(config.attention)
    where = f"step {step}, layer {layer}: x = |q-k|^2 / (2 sqrt(D)) is above 2N = {2 * degree}"
    share = (
        f"for {100 * found['kernel_x_above_2n'][layer]:.3g} % of the pairs (largest {found['kernel_x_max'][layer]:.3g})"
    )
    what = f"{where} {share}, where {config.attention} grows beyond 1 instead of falling"
    enough = math.ceil(math.sqrt(config.n_embd // config.n_head) / 2) * 2  # with QK-norm x stays below 2 sqrt(D)
    if config.qk_norm:
        return f"{what}; with qk_norm gaussian-poly-{enough} cannot get there"
    return f"{what}; lower --lr, add --qk-norm, or take a larger N"


def _kernel_statistics(attention: str, x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    if not attention.startswith(PREFIX):
        return _size("kernel_x", x) | {"kernel_x_underflows": _share(x > underflow_threshold(dtype))}
    degree = power_of(attention)
    return _size("kernel_x", x) | {"kernel_x_above_n": _share(x > degree), "kernel_x_above_2n": _share(x > 2 * degree)}


def _size(name: str, values: Tensor) -> dict[str, Tensor]:
    """Mean over the visible pairs, and maximum, of values that are not negative."""
    return {f"{name}_mean": values.sum() / _pairs(values), f"{name}_max": values.max()}


def _share(chosen: Tensor) -> Tensor:
    """The fraction of the visible pairs that are chosen; no other pair may be."""
    return chosen.sum() / _pairs(chosen)


def _pairs(values: Tensor) -> int:
    length = values.shape[-1]
    return values.numel() // length * (length + 1) // 2  # B * H * T of T positions each -> B * H * T (T + 1) / 2
