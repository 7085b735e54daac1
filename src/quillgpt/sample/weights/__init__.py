"""The menu of weights to generate with: in what form the linear layers and the head are kept, and multiplied.

To generate a token, every weight is read once and used once for each sequence, so that its bytes are what takes time.
To add one: a file with a function from a linear layer to a module with the same forward, and a line in `WEIGHTS`.
"""

from collections.abc import Callable, Mapping

from torch import nn

from quillgpt.sample.weights.int4 import GROUP, Int4Linear, as_int4
from quillgpt.sample.weights.int8 import Int8Linear, as_int8
from quillgpt.sample.weights.int8_fallback import WeightOnlyInt8Linear
from quillgpt.sample.weights.plain import BrainLinear, SingleLinear, as_plain

WEIGHTS: Mapping[str, Callable[[nn.Linear], nn.Module]] = {
    "none": as_plain,
    "int8": as_int8,
    "int4": as_int4,
}
FORMS = (SingleLinear, BrainLinear, Int8Linear, WeightOnlyInt8Linear, Int4Linear)
"""what they make of a linear layer"""
BYTES_PER_WEIGHT: Mapping[str, float] = {"int8": 1.0, "int4": 0.5 + 2 * 2 / GROUP}
"""what has other bytes than its dtype; int4 with its groups' scales and offsets"""
