"""The settings of a quillgpt model as a configuration of transformers."""

import dataclasses
from typing import Any, ClassVar

from transformers import PretrainedConfig

from quillgpt.config.model import ModelConfig


class QuillGPTConfig(PretrainedConfig):
    """Every setting of `ModelConfig` under its own name; transformers' names for some of them work too."""

    model_type = "quillgpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "context_length",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(self, **settings: Any) -> None:
        for setting in dataclasses.fields(ModelConfig):
            setattr(self, setting.name, settings.pop(setting.name, setting.default))
        self.use_cache = settings.pop("use_cache", True)
        self.tie_word_embeddings = settings.pop("tie_word_embeddings", False)
        super().__init__(**settings)

    def model_config(self) -> ModelConfig:
        """The settings as the model takes them."""
        return ModelConfig(**{setting.name: getattr(self, setting.name) for setting in dataclasses.fields(ModelConfig)})
