"""The settings of the optimizer and its schedule."""

from dataclasses import dataclass

from quillgpt.config.checks import check, check_each


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: str = "adamw"
    """optimizer: adamw; muon (for the blocks' matrices, with AdamW for the rest)"""
    lr: float = 6e-4
    """peak learning rate"""
    embedding_lr: float = 0.0
    """muon: peak rate of AdamW for embeddings; 0: lr"""
    head_lr: float = 0.0
    """muon: peak rate of AdamW for an untied output head; 0: lr"""
    scalar_lr: float = 0.0
    """muon: peak rate of AdamW for norm gains, biases and mixing scalars; 0: lr"""
    min_lr: float = 6e-5
    """learning rate at the end of the decay"""
    schedule: str = "cosine"
    """learning rate after warm-up: cosine, linear, wsd (warm-up, stable, decay), constant"""
    warmup_steps: int = 0
    """steps of linear warm-up from 0"""
    decay_steps: int = 0
    """step at which min_lr is reached; 0: the last step"""
    decay_fraction: float = 0.2
    """share of the steps after warm-up that the wsd schedule decays over, at the end"""
    weight_decay: float = 0.1
    """decoupled weight decay, on matrices only"""
    beta1: float = 0.9
    """AdamW's first-moment decay"""
    beta2: float = 0.95
    """AdamW's second-moment decay"""
    eps: float = 1e-8
    """AdamW's denominator offset"""
    momentum: float = 0.95
    """Muon's momentum"""
    momentum_warmup_steps: int = 0
    """steps over which Muon's momentum rises from 0.85"""
    gradient_clip: float = 1.0
    """largest global gradient norm; 0: no clipping"""

    def __post_init__(self) -> None:
        check_each(self)
        for name in ("lr", "min_lr", "weight_decay", "gradient_clip", "warmup_steps", "decay_steps", *_RATES):
            check(self, name, getattr(self, name) >= 0, "at least 0")
        check(self, "min_lr", self.min_lr <= self.lr, f"at most lr = {self.lr}")
        check(self, "momentum_warmup_steps", self.momentum_warmup_steps >= 0, "at least 0")
        for name in ("beta1", "beta2", "momentum"):
            check(self, name, 0.0 <= getattr(self, name) < 1.0, "at least 0 and below 1")
        check(self, "eps", 0.0 < self.eps < 1.0, "above 0 and below 1")
        check(self, "decay_fraction", 0.0 < self.decay_fraction <= 1.0, "above 0 and at most 1")


_RATES = ("embedding_lr", "head_lr", "scalar_lr")
