"""The menu of weights for generation: the form in which linear layers and the head are stored and multiplied.

To generate a token, every weight is read once and used once per sequence, so the number of bytes decides the time. To
add a form: a file with a function from a linear layer to a module with the same forward, and a line in `WEIGHTS`.
"""

from collections.abc import Callable, Mapping

from torch import nn

from quillgpt.sample.weights.int4 import GROUP, Int4Linear, as_int4
from quillgpt.sample.weights.int8 import Int8Linear, WeightOnlyInt8Linear, as_int8
from quillgpt.sample.weights.plain import PlainLinear, as_plain

WEIGHTS: Mapping[str, Callable[[nn.Linear], nn.Module]] = {
    "none": as_plain,
    "int8": as_int8,
    "int4": as_int4,
}
FORMS = (PlainLinear, Int8Linear, WeightOnlyInt8Linear, Int4Linear)
"""the layers that they make"""
BYTES_PER_WEIGHT: Mapping[str, float] = {"int8": 1.0, "int4": 0.5 + 2 * 2 / GROUP}
"""bytes per weight, unless those of the dtype; int4 with the scales and offsets of its groups"""
