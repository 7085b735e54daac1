"""Statistics of attention scores during training, for each layer, and a warning when they leave an attention's range.

Softmax accepts any scores. The other attentions have a range: a Gaussian that underflows gives no gradient, a
polynomial grows beyond its last zero instead of falling, and weights that are not normalized may sum to any number.
docs/how-it-works.md explains each number.
"""

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quillgpt.model.attention import Attention, AttentionFunction, find_attention
from quillgpt.model.attention.unfused import negative_half_distances
from quillgpt.model.gpt import GPT, SelfAttention
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.positions import Rotation
from quillgpt.model.precision import DTYPES, at_least_fp32, autocast, evaluation_mode
from quillgpt.runtime import Runtime

logger = logging.getLogger(__name__)

MAX_TOKENS = 1024  # the T x T numbers of one layer are then 4 MiB for each head
MUCH_WORSE = 10  # times the share of the last warning

MEANINGS = {
    "kernel_x_mean": "x, mean over the pairs",
    "kernel_x_max": "x, largest",
    "kernel_x_above_n": "share of the pairs with x above N",
    "kernel_x_above_2n": "share of the pairs with x above 2N, where the polynomial grows",
    "kernel_x_underflows": "share of the pairs whose weight underflows",
    "score_mean": "size of the scores, mean over the pairs",
    "score_max": "size of the scores, largest",
    "weight_sum_mean": "sum of a position's weights, mean",
    "weight_sum_max": "sum of a position's weights, largest",
}
"""what each statistic is; x = |q - k|^2 / (2 sqrt(D)), a pair is a query and a visible key"""

PerLayer = dict[str, list[float]]
"""each statistic, with one number per layer"""


@dataclass(kw_only=True)
class AttentionMonitor:
    """Measures a model between two training steps without changing it.

    The model itself evaluates one sequence, not the compiled or wrapped module: no gradient, no dropout and so no
    random number, no collective. Only the main process measures.
    """

    model: GPT
    runtime: Runtime
    is_main_process: bool
    _warned: float = field(default=0.0, init=False)

    @torch.no_grad()
    def measure(self, inputs: Tensor, step: int) -> PerLayer:
        """Return the statistics of the first `MAX_TOKENS` of the first sequence of `inputs` (B, T); empty for softmax.

        Logs a warning when a polynomial grows, and again only when the share of such pairs is `MUCH_WORSE`.
        """
        attention = find_attention(self.model.config.attention)
        if not self.is_main_process or attention.monitored is None:
            return {}
        layers: list[dict[str, Tensor]] = []
        dtype = DTYPES[self.runtime.dtype]

        def measure_layer(module: SelfAttention, arguments: tuple[Tensor, Rotation | None, KVCache | None]) -> None:
            query, key, _ = module.queries_keys_values(*arguments[:2])
            layers.append(layer_statistics(attention, module.attention_function, query, key, dtype=dtype))

        with contextlib.ExitStack() as stack:
            for module in self.model.modules():
                if isinstance(module, SelfAttention):
                    stack.enter_context(module.register_forward_pre_hook(measure_layer))
            stack.enter_context(evaluation_mode(self.model))
            stack.enter_context(autocast(self.runtime.device, dtype))
            self.model.hidden(inputs[:1, :MAX_TOKENS].to(self.runtime.device))
        table = torch.stack([torch.stack(list(layer.values())) for layer in layers])  # (layers, statistics)
        found = dict(zip(layers[0], table.T.tolist(), strict=True))
        self._warn(found, step)
        return found

    def _warn(self, found: Mapping[str, list[float]], step: int) -> None:
        """Log where the polynomial grows beyond 1, for how many pairs, and what to do."""
        shares = found.get("kernel_x_above_2n", [0.0])
        worst = max(shares)
        if worst == 0.0 or worst < MUCH_WORSE * self._warned:
            return
        self._warned = worst
        config, layer = self.model.config, shares.index(worst)
        degree = find_attention(config.attention).degree
        where = f"step {step}, layer {layer}: x = |q-k|^2 / (2 sqrt(D)) is above 2N = {2 * degree}"
        share = f"for {100 * worst:.3g} % of the pairs (largest {found['kernel_x_max'][layer]:.3g})"
        advice = "lower --lr, add --qk-norm, or choose a larger N"
        if config.qk_norm:  # then x stays below 2 sqrt(D)
            enough = math.ceil(math.sqrt(config.n_embd // config.n_head) / 2) * 2
            advice = f"with qk_norm gaussian-poly-{enough} stays in range"
        logger.warning("%s %s, where %s grows beyond 1 instead of falling; %s", where, share, config.attention, advice)


def layer_statistics(
    attention: Attention, attend: AttentionFunction, query: Tensor, key: Tensor, *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the statistics of one layer, scalars over all visible pairs of all heads. query, key: (B, H, T, D).

    dtype: what the run computes in, which determines where exp(-x) underflows.
    """
    with torch.autocast(query.device.type, enabled=False):  # products in 16 bits would round these
        if attention.monitored == "score":
            found = _mean_and_max("score", scores(query, key).abs())
        else:
            x, degree = kernel_argument(query, key), attention.degree
            found = _mean_and_max("kernel_x", x)
            if degree:
                found |= {"kernel_x_above_n": _share(x > degree), "kernel_x_above_2n": _share(x > 2 * degree)}
            else:
                found["kernel_x_underflows"] = _share(x > underflow_threshold(dtype))
    if not attention.is_normalized:  # the sum of the weights is the weighted sum of ones
        sums = at_least_fp32(attend(query, key, torch.ones_like(query), dropout=0.0)[..., 0])  # (B, H, T)
        found |= {"weight_sum_mean": sums.mean(), "weight_sum_max": sums.abs().max()}
    return found


def kernel_argument(query: Tensor, key: Tensor) -> Tensor:
    """x = |q - k|^2 / (2 sqrt(D)) for every visible pair, 0 for the others; (B, H, T, D) twice -> (B, H, T, T)."""
    return (-negative_half_distances(query, key) / math.sqrt(query.shape[-1])).clamp(min=0.0).tril()


def scores(query: Tensor, key: Tensor) -> Tensor:
    """q . k / sqrt(D) for every visible pair, 0 for the others; (B, H, T, D) twice -> (B, H, T, T)."""
    return (at_least_fp32(query) @ at_least_fp32(key).transpose(-2, -1) / math.sqrt(query.shape[-1])).tril()


def underflow_threshold(dtype: torch.dtype) -> float:
    """The x above which exp(-x) is below the smallest normal number: 87.3 for fp32 and bf16, 9.7 for fp16."""
    return -math.log(torch.finfo(dtype).tiny)


def _mean_and_max(name: str, values: Tensor) -> dict[str, Tensor]:
    """Mean over the visible pairs, and maximum, of values that are not negative."""
    return {f"{name}_mean": values.sum() / _pairs(values), f"{name}_max": values.max()}


def _share(selected: Tensor) -> Tensor:
    """The fraction of the visible pairs that are selected; no other pair may be."""
    return selected.sum() / _pairs(selected)


def _pairs(values: Tensor) -> int:
    length = values.shape[-1]
    return values.numel() // length * (length + 1) // 2  # B * H * T of T positions each -> B * H * T (T + 1) / 2
