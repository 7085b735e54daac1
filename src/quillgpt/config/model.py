"""The settings of a model: its shape and which entry of each menu it is made of."""

from dataclasses import dataclass

from quillgpt.config.checks import check, check_each


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a GPT; the defaults are GPT-2 124M [Radford 2019, Table 2].

    For example:
        small = quillgpt.ModelConfig(n_layer=2, n_head=2, n_embd=64, context_length=64, vocab_size=257)
        model = quillgpt.GPT(dataclasses.replace(small, tied_head=False))
        print(model.config.n_layer, model.config.tied_head)  # 2 False
    """

    n_layer: int = 12
    """number of transformer blocks"""
    n_head: int = 12
    """number of attention heads; divides n_embd"""
    n_embd: int = 768
    """width of the residual stream (channels)"""
    context_length: int = 1024
    """number of earlier tokens the model can see"""
    vocab_size: int = 50257
    """number of tokens; bpe is trained to this size, the other tokenizers bring their own"""
    attention: str = "softmax"
    """softmax, explicit (the same), gaussian, gaussian-normalized, gaussian-poly-N, pointwise-ACT, power"""
    pointwise_length_power: float = 1.0
    """pointwise attention divides by the number of visible positions to this power: 0 not at all"""
    mlp: str = "gelu"
    """feed-forward part of a block: gelu (tanh form), gelu-exact, relu2, square, swiglu"""
    norm: str = "layernorm"
    """normalisation: layernorm, rmsnorm"""
    position: str = "learned"
    """how positions enter: learned (added to the embedding) or rotary (turns queries and keys)"""
    qk_norm: bool = False
    """normalise queries and keys before their product"""
    bias: bool = True
    """biases in linear layers and norms, as GPT-2 has them"""
    tied_head: bool = True
    """the output head shares the token embedding's weight"""
    embedding_norm: bool = False
    """normalise the embedded tokens before the first block"""
    residual: str = "plain"
    """what a block is given: plain (the stream) or mixed (learned shares of the stream and of the embedded tokens)"""
    value_embeddings: bool = False
    """every second block adds a learned vector of the token, gated, to its values"""
    logit_softcap: float = 0.0
    """if above 0: bend logits smoothly to at most this size"""
    initialization: str = "gpt2"
    """first weights: gpt2, or zero-output (what a block adds begins at 0)"""
    dropout: float = 0.0
    """probability of dropping an activation while training"""

    def __post_init__(self) -> None:
        check_each(self)
        for name, largest in _LARGEST.items():
            check(self, name, 1 <= getattr(self, name) <= largest, f"1 to {largest:,}")
        check(self, "n_head", self.n_embd % self.n_head == 0, f"a divisor of n_embd = {self.n_embd}")
        fits = self.position != "rotary" or self.n_embd // self.n_head % 2 == 0
        check(self, "n_head", fits, f"n_embd / n_head even for rotary positions (n_embd = {self.n_embd})")
        check(self, "pointwise_length_power", 0.0 <= self.pointwise_length_power <= 2.0, "0 to 2")
        check(self, "logit_softcap", 0.0 <= self.logit_softcap <= 1e4, "0 to 10,000")
        check(self, "dropout", 0.0 <= self.dropout < 1.0, "at least 0 and below 1")


_LARGEST = {"n_layer": 1_000, "n_head": 1 << 20, "n_embd": 1 << 20, "context_length": 1 << 24, "vocab_size": 1 << 32}
"""far beyond any model, so that a slip of the keyboard is told before memory is asked for"""
