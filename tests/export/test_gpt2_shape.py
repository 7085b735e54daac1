"""Which settings make a model something else than GPT-2."""

import dataclasses

import pytest

from quillgpt.config import ModelConfig
from quillgpt.export.gpt2_shape import FREE, SAME, in_the_way
from quillgpt.export.quiet import quiet
from quillgpt.model.sizes import SIZES

CHANGED = {bool: lambda value: not value, int: lambda value: value + 1, float: lambda value: value / 2 + 0.25}
OTHER = {"attention": "power", "mlp": "swiglu", "norm": "rmsnorm", "position": "rotary", "residual": "mixed"}
SETTINGS = {setting.name: setting.default for setting in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("size", SIZES)
def test_the_published_models_are_gpt2(size: str) -> None:
    assert in_the_way(SIZES[size]) == []


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - FREE))
def test_any_other_setting_than_its_sizes_makes_another_model(name: str) -> None:
    default = SETTINGS[name]
    other = OTHER[name] if isinstance(default, str) else CHANGED[type(default)](default)
    assert in_the_way(dataclasses.replace(ModelConfig(), **{name: other})) == [f"{name} = {other!r}"]


def test_explicit_attention_and_exact_gelu_are_gpt2s() -> None:
    assert {"attention": {"softmax", "explicit"}, "mlp": {"gelu", "gelu-exact"}} == SAME
    assert in_the_way(ModelConfig(attention="explicit", mlp="gelu-exact")) == []


def test_quiet_is_quiet_and_loud_again(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    import logging
    import sys
    import warnings

    with quiet():
        print("out")
        print("err", file=sys.stderr)
        warnings.warn("advice", stacklevel=1)
        logging.getLogger("any").error("chatter")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    logging.getLogger("any").error("heard")
    assert [record.message for record in caplog.records] == ["heard"]
    with pytest.warns(UserWarning, match="advice"):
        warnings.warn("advice", stacklevel=1)
