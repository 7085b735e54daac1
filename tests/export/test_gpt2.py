"""Which settings make a model something other than GPT-2."""

import dataclasses

from quillgpt.config import ModelConfig
from quillgpt.export.gpt2 import FREE, SAME, not_gpt2
from quillgpt.model.sizes import SIZES

CHANGED = {bool: lambda value: not value, int: lambda value: value + 1, float: lambda value: value / 2 + 0.25}
OTHER = {"attention": "power", "mlp": "swiglu", "norm": "rmsnorm", "position": "rotary", "residual": "mixed"}


def test_published_models_explicit_attention_and_exact_gelu_are_gpt2() -> None:
    assert {"attention": {"softmax", "explicit"}, "mlp": {"gelu", "gelu-exact"}} == SAME
    for config in [*SIZES.values(), ModelConfig(attention="explicit", mlp="gelu-exact")]:
        assert not_gpt2(config) == []


def test_any_setting_except_the_sizes_makes_another_model() -> None:
    found, expected = {}, {}
    for setting in dataclasses.fields(ModelConfig):
        if setting.name not in FREE:
            default = setting.default
            other = OTHER[setting.name] if isinstance(default, str) else CHANGED[type(default)](default)
            found[setting.name] = not_gpt2(dataclasses.replace(ModelConfig(), **{setting.name: other}))
            expected[setting.name] = [f"{setting.name} = {other!r}"]
    assert found == expected
    assert len(found) > 8
