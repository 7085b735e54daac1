"""The menu of attention functions: how values are combined, given the queries, keys and values of all heads.

To add one: write a file with a function of the `AttentionFunction` signature and its `Attention` record, and give it a
line in `ATTENTION`. The weights around it (qkv, output projection) are the same for all, and every test of the model
then runs with it too.
"""

from collections.abc import Mapping
from functools import partial

from quillgpt.config import ModelConfig
from quillgpt.errors import pick
from quillgpt.model.attention.entry import Attention, AttentionFunction
from quillgpt.model.attention.explicit import EXPLICIT
from quillgpt.model.attention.gaussian import GAUSSIAN, GAUSSIAN_NORMALIZED
from quillgpt.model.attention.gaussian_poly import PREFIX, degree_of, polynomial_entry
from quillgpt.model.attention.pointwise import POINTWISE, pointwise_entry
from quillgpt.model.attention.power import POWER_SOFTMAX
from quillgpt.model.attention.softmax import SOFTMAX

ATTENTION: Mapping[str, Attention] = {
    "softmax": SOFTMAX,
    "explicit": EXPLICIT,
    "gaussian": GAUSSIAN,
    "gaussian-normalized": GAUSSIAN_NORMALIZED,
    **{f"{PREFIX}{degree}": polynomial_entry(degree) for degree in (2, 4, 8)},
    **{name: pointwise_entry(activation) for name, activation in POINTWISE.items()},
    "power": POWER_SOFTMAX,
}
"""`find_attention` also knows gaussian-poly-N for every other even N."""


def find_attention(name: str) -> Attention:
    """The attention of that name; a `ConfigError` names the nearest, or says that N has to be even."""
    return polynomial_entry(degree_of(name)) if name.startswith(PREFIX) else pick(ATTENTION, name, "attention")


def attention_of(config: ModelConfig) -> AttentionFunction:
    """The attention function of a model, with the settings that belong to it."""
    attention = find_attention(config.attention)
    return partial(
        attention.function, **{name: getattr(config, setting) for name, setting in attention.settings.items()}
    )
