"""The settings of LoRA: whether small adapters are trained instead of the weights, and of what size."""

from dataclasses import dataclass

from quillgpt.config.checks import check, check_each


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA: the weights of `init` stay as they are, and small adapters beside them are trained [Hu 2021]."""

    lora_rank: int = 0
    """above 0: train adapters of this rank, and nothing else; 0: train all weights"""
    lora_alpha: float = 16.0
    """an adapter counts lora_alpha / lora_rank times; at one alpha another rank needs no other rate"""

    def __post_init__(self) -> None:
        check_each(self)
        check(self, "lora_rank", 0 <= self.lora_rank <= 1 << 20, "0 to 1,048,576")
        check(self, "lora_alpha", 0.0 < self.lora_alpha <= 1e6, "above 0 and at most 1,000,000")
