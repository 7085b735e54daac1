"""For every menu entry of the model: whether it is a polynomial, what takes its place if not, and how deep that is.

To add an entry of a menu: a line in `NORM_SQUARES`, `ACTIVATIONS`, `ATTENTIONS` or `ROTATES`; a test asks for one.
Depths are levels of ciphertext; a constant factor costs none, because it is only another scale.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.encryption.approximate import Function, goldschmidt_depth, least_degree, newton_depth, polynomial_depth
from quillgpt.encryption.circuit import attend_depth
from quillgpt.encryption.head import IDENTITY, is_polynomial, polynomial_kernel
from quillgpt.encryption.measure import Pair
from quillgpt.errors import pick
from quillgpt.model.attention.pointwise import POINTWISE, relu2
from quillgpt.model.attention.power import EPSILON as POWER_EPSILON
from quillgpt.model.attention.power import POWER
from quillgpt.model.norm import EPSILON as NORM_EPSILON

ACCURACY = 2.0**-8  # what bf16 keeps of a number, in which models run


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """A polynomial in place of a function, on an interval."""

    function: str
    low: float
    high: float
    degree: int
    iteration_depth: int = 0
    """levels of the usual iteration instead of the polynomial, where there is one: fewer products, more depth"""

    @property
    def depth(self) -> int:
        """Levels of its evaluation."""
        return polynomial_depth(self.degree)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a part costs: its levels, and the approximations among them (none where it is a polynomial as it stands)."""

    depth: int
    approximations: tuple[Approximation, ...] = ()


def _variance(x: Tensor) -> Tensor:
    return x.var(dim=-1, unbiased=False) + NORM_EPSILON


def mean_square(x: Tensor) -> Tensor:
    """What RMSNorm, and the norm of queries and keys, divide by the root of."""
    return x.square().mean(dim=-1) + NORM_EPSILON


NORM_SQUARES: Mapping[str, Callable[[Tensor], Tensor]] = {"layernorm": _variance, "rmsnorm": mean_square}
"""What each norm divides by the root of."""


def normalised(squares: Tensor) -> Verdict:
    """x / sqrt(its mean square): square, polynomial or iteration, product with x; weights fold into a matrix."""
    root = _iterated("1/√x", torch.rsqrt, squares, newton_depth)
    return Verdict(depth=1 + root.depth + 1, approximations=(root,))


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The function of a feed-forward network, the layer whose output it is given, and products behind it."""

    name: str
    function: Callable[[Tensor], Tensor]
    layer: str = "expand"
    products: int = 0


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Activation | None] = {
    "gelu": Activation(name="GELU", function=_gelu),
    "gelu-exact": Activation(name="GELU", function=F.gelu),
    "relu2": Activation(name="ReLU²", function=relu2),
    "square": None,
    "swiglu": Activation(name="SiLU", function=F.silu, layer="gate", products=1),
}
"""None where it is one multiplication."""


def activated(mlp: str, inputs: Mapping[str, Tensor]) -> Verdict:
    """The activation of a feed-forward network, by what its layers `expand` and `gate` give."""
    activation = pick(ACTIVATIONS, mlp, "mlp")
    if activation is None:
        return Verdict(depth=1)
    values = inputs[activation.layer]
    found = _approximated(activation.name, activation.function, values, _absolute(activation.function, values))
    return Verdict(depth=found.depth + activation.products, approximations=(found,))


def gated(inputs: Tensor) -> Verdict:
    """The gate of a value embedding, by what its matrix gives: that matrix, a sigmoid, and the product with the vector.

    It is computed while queries and keys are, and only the values wait for it.
    """
    found = _approximated("sigmoid", torch.sigmoid, inputs, _absolute(torch.sigmoid, inputs))
    return Verdict(depth=1 + found.depth + 1, approximations=(found,))


ROTATES: Mapping[str, bool] = {"learned": False, "rotary": True}
"""Whether positions turn queries and keys: linear, folded into their matrix unless qk_norm stands between."""


def attended(config: ModelConfig, pair: Pair) -> Verdict:
    """A layer's attention, from queries and keys to the mixed values.

    Its products are of the pair, of scale and mask, and of weight and value; the kernel stands between.
    """
    if is_polynomial(config.attention):
        return Verdict(depth=attend_depth(polynomial_kernel(config, positions=1)))
    return pick(ATTENTIONS, config.attention, "attention")(pair)


def _softmax(pair: Pair) -> Verdict:
    return _divided(_scores(pair))


def _gaussian_normalized(pair: Pair) -> Verdict:
    return _divided(_distances(pair))


def _gaussian(pair: Pair) -> Verdict:
    return _weighed("exp x", torch.exp, _distances(pair))


def _pointwise(name: str) -> Callable[[Pair], Verdict]:
    return lambda pair: _weighed(name.partition("-")[2], POINTWISE[name], _scores(pair))


def _power(pair: Pair) -> Verdict:
    """A row's maximum is no polynomial either; a public bound takes its place, which scale and mask absorb."""
    scores = _visible(_scores(pair), 0.0)
    powers = (scores / scores.abs().max()).pow(POWER)
    inverse = _inverse(powers.sum(dim=-1) + POWER_EPSILON)
    return Verdict(depth=2 + _ceil_log2(POWER) + _mixed(inverse), approximations=(inverse,))


ATTENTIONS: Mapping[str, Callable[[Pair], Verdict]] = {
    "softmax": _softmax,
    "explicit": _softmax,
    "gaussian": _gaussian,
    "gaussian-normalized": _gaussian_normalized,
    "power": _power,
    **{name: _pointwise(name) for name in POINTWISE if name != IDENTITY},
}
"""Those that are no polynomials; the others have a kernel (head.py)."""


def _weighed(name: str, function: Callable[[Tensor], Tensor], arguments: Tensor) -> Verdict:
    """A function of each pair by itself, the mask behind it because it need not be 0 at 0."""
    found = _approximated(name, function, arguments, _absolute(function, arguments))
    return Verdict(depth=1 + found.depth + 1 + 1, approximations=(found,))


def _divided(arguments: Tensor) -> Verdict:
    """exp, and the inverse of a row's sum; the largest argument is subtracted before, as a public bound."""
    arguments = arguments - _visible(arguments, -math.inf).max()
    weights = _visible(arguments, -math.inf).exp()
    smallest = float(weights.amax(dim=-1).min())  # of the rows' largest weights; even there ACCURACY of it is kept
    exponential = _approximated("exp x", torch.exp, arguments, lambda x: ACCURACY * smallest + 0 * x)
    inverse = _inverse(weights.sum(dim=-1))
    return Verdict(depth=1 + exponential.depth + 1 + _mixed(inverse), approximations=(exponential, inverse))


def _mixed(inverse: Approximation) -> int:
    """The values are summed while the inverse of the weights' sum is computed; then the two are multiplied."""
    return max(1, inverse.depth) + 1


def _inverse(sums: Tensor) -> Approximation:
    sums = sums.clamp(min=1e-300)  # a sum that underflows has no inverse; no polynomial follows this one either
    return _iterated("1/x", torch.reciprocal, sums, goldschmidt_depth)


def _scores(pair: Pair) -> Tensor:
    query, key = pair
    return query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])


def _distances(pair: Pair) -> Tensor:
    query, key = pair
    return -torch.cdist(query, key).square() / (2 * math.sqrt(query.shape[-1]))


def _visible(layer: Tensor, elsewhere: float) -> Tensor:
    return layer.masked_fill(torch.ones_like(layer, dtype=torch.bool).triu(1), elsewhere)


def _approximated(name: str, function: Callable[[Tensor], Tensor], values: Tensor, allowed: Function) -> Approximation:
    low, high = float(values.min()), float(values.max())
    return Approximation(function=name, low=low, high=high, degree=least_degree(_numpy(function), low, high, allowed))


def _iterated(
    name: str,
    function: Callable[[Tensor], Tensor],
    values: Tensor,
    iteration_depth: Callable[[float, float, float], int],
) -> Approximation:
    """An inverse, whose relative error counts."""
    found = _approximated(name, function, values, lambda x: ACCURACY * abs(_numpy(function)(x)))
    return replace(found, iteration_depth=iteration_depth(found.low, found.high, ACCURACY))


def _absolute(function: Callable[[Tensor], Tensor], values: Tensor) -> Function:
    """Of the largest value that the function takes."""
    largest = float(function(values).abs().max())
    return lambda x: ACCURACY * largest + 0 * x


def _numpy(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda x: function(torch.from_numpy(x)).numpy()


def _ceil_log2(count: int) -> int:
    return (count - 1).bit_length()
