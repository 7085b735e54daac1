"""A quillgpt model for transformers: `from_pretrained`, `generate` with a cache, a loss from labels.

An export of a model that is not a GPT-2 has a copy of this file; nothing in quillgpt imports it.
"""

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache


class QuillGPTConfig(PretrainedConfig):
    """Every setting of `ModelConfig` under its own name, some also under transformers' name."""

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


class TransformersCache(KVCache):
    """A cache of transformers with the interface that the model's attention expects."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.length = cache.get_seq_length()

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the T new keys and values of a layer, each (B, H, T, D); return those of all S positions."""
        return self._cache.update(key, value, layer)

    def advance(self, count: int) -> None:
        """Do nothing: transformers counts the tokens itself."""


class QuillGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """A GPT with its output head; its weights have the prefix `gpt.`, then their names in quillgpt."""

    config_class = QuillGPTConfig
    base_model_prefix = "gpt"
    main_input_name = "input_ids"

    def __init__(self, config: QuillGPTConfig) -> None:
        super().__init__(config)
        settings = {setting.name: getattr(config, setting.name) for setting in dataclasses.fields(ModelConfig)}
        self.gpt = without_padding(GPT(ModelConfig(**settings)))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), or those of the last `logits_to_keep` positions; also the loss if `labels` (B, T) exist."""
        keeps = self.config.use_cache and not self.training if use_cache is None else use_cache
        cache = DynamicCache() if keeps and past_key_values is None else past_key_values
        check_padding(attention_mask, is_generating=cache is not None)
        hidden = self.gpt.hidden(input_ids, None if cache is None else TransformersCache(cache))
        logits = self.gpt.logits(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **options)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.gpt.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        assert isinstance(value, nn.Embedding)
        self.gpt.token_embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The output head, None if it is the token embedding."""
        return self.gpt.head

    def _init_weights(self, module: nn.Module) -> None:
        pass  # the model has initialized them


def without_padding(gpt: GPT) -> GPT:
    """The same model with exactly one row per token in its embedding and head."""
    tokens, channels = gpt.config.vocab_size, gpt.config.n_embd
    weight = gpt.token_embedding.weight[:tokens].detach().clone()
    gpt.token_embedding = nn.Embedding(tokens, channels, _weight=weight)
    if gpt.head is not None:
        weight = gpt.head.weight[:tokens].detach().clone()
        gpt.head = nn.Linear(channels, tokens, bias=False, device="meta")
        gpt.head.weight = nn.Parameter(weight)
    return gpt


def check_padding(attention_mask: Tensor | None, *, is_generating: bool) -> None:
    """Refuse padding that would be read as text: any in generation, otherwise any that does not follow the text."""
    if attention_mask is None or torch.compiler.is_compiling() or bool(attention_mask.all()):
        return
    follows_text = bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())
    if is_generating or not follows_text:
        raise ValueError("this model does not support padding; pass one sequence, or sequences of equal length")
