"""The settings of the optimizer and its schedule."""

from dataclasses import dataclass

from quillgpt.config.checks import check, check_each


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: str = "adamw"
    """optimizer: adamw"""
    lr: float = 6e-4
    """peak learning rate"""
    min_lr: float = 6e-5
    """learning rate at the end of the decay"""
    schedule: str = "cosine"
    """learning rate after warm-up: cosine, linear, wsd (warm-up, stable, decay), constant"""
    warmup_steps: int = 0
    """steps of linear warm-up from 0"""
    decay_steps: int = 0
    """step at which min_lr is reached; 0: the last step"""
    decay_fraction: float = 0.2
    """share of the steps that the wsd schedule decays over"""
    weight_decay: float = 0.1
    """decoupled weight decay, on matrices only"""
    beta1: float = 0.9
    """AdamW's first-moment decay"""
    beta2: float = 0.95
    """AdamW's second-moment decay"""
    eps: float = 1e-8
    """AdamW's denominator offset"""
    gradient_clip: float = 1.0
    """largest global gradient norm; 0: no clipping"""

    def __post_init__(self) -> None:
        check_each(self)
        for name in ("lr", "min_lr", "weight_decay", "gradient_clip", "warmup_steps", "decay_steps"):
            check(self, name, getattr(self, name) >= 0, "at least 0")
        check(self, "min_lr", self.min_lr <= self.lr, f"at most lr = {self.lr}")
        for name in ("beta1", "beta2"):
            check(self, name, 0.0 <= getattr(self, name) < 1.0, "at least 0 and below 1")
        check(self, "eps", 0.0 < self.eps < 1.0, "above 0 and below 1")
        check(self, "decay_fraction", 0.0 < self.decay_fraction <= 1.0, "above 0 and at most 1")
