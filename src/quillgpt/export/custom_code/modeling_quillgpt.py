"""A quillgpt model behind the interface of transformers: `from_pretrained`, cached `generate`, a loss of labels."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from quillgpt.export.custom_code.configuration_quillgpt import QuillGPTConfig
from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache


class TransformersCache(KVCache):
    """The cache of transformers as the model's attention knows it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.length = cache.get_seq_length()

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's T new keys and values, each (B, H, T, D); return those of all S positions."""
        return self._cache.update(key, value, layer)

    def advance(self, count: int) -> None:
        """Nothing to do: transformers counts what it holds."""


class QuillGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The model and its output head; the weights are `gpt.` and their names in quillgpt."""

    config_class = QuillGPTConfig
    base_model_prefix = "gpt"
    main_input_name = "input_ids"

    def __init__(self, config: QuillGPTConfig) -> None:
        super().__init__(config)
        self.gpt = without_padding(GPT(config.model_config()))
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
        """Logits (B, T, V), or those of the last `logits_to_keep` positions; with `labels` (B, T) the loss too."""
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
        """Put another token embedding in its place."""
        assert isinstance(value, nn.Embedding)
        self.gpt.token_embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The output head, None where it is the token embedding."""
        return self.gpt.head

    def _init_weights(self, module: nn.Module) -> None:
        pass  # the model has drawn its own


def without_padding(gpt: GPT) -> GPT:
    """The same model with as many rows in its embedding and head as there are tokens."""
    tokens, channels = gpt.config.vocab_size, gpt.config.n_embd
    weight = gpt.token_embedding.weight[:tokens].detach().clone()
    gpt.token_embedding = nn.Embedding(tokens, channels, _weight=weight)
    if gpt.head is not None:
        weight = gpt.head.weight[:tokens].detach().clone()
        gpt.head = nn.Linear(channels, tokens, bias=False, device="meta")
        gpt.head.weight = nn.Parameter(weight)
    return gpt


def check_padding(attention_mask: Tensor | None, *, is_generating: bool) -> None:
    """Refuse padding that would be read as text: any while generating, otherwise any that is not behind the text."""
    if attention_mask is None or torch.compiler.is_compiling() or bool(attention_mask.all()):
        return
    is_behind = bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())
    if is_generating or not is_behind:
        raise ValueError("this model knows no padding; give one sequence at a time, or sequences of one length")
